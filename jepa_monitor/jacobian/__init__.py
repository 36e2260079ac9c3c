"""Images → rows of the encoder's Jacobian → spectra → scores, within a budget."""

from jepa_monitor.jacobian.options import ScoreOptions
from jepa_monitor.jacobian.precision import PrecisionAudit, audit_precision
from jepa_monitor.jacobian.score import LogDensity, jacobian_spectrum, jepa_score, log_density
from jepa_monitor.jacobian.spectrum import log_volume

__all__ = [
    "LogDensity",
    "PrecisionAudit",
    "ScoreOptions",
    "audit_precision",
    "jacobian_spectrum",
    "jepa_score",
    "log_density",
    "log_volume",
]
