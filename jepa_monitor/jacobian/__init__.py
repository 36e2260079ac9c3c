"""Images → rows of the encoder's Jacobian → spectra → scores, within a budget."""

from typing import TYPE_CHECKING

from jepa_monitor._lazy import imported_on_use

if TYPE_CHECKING:
    from jepa_monitor.jacobian.estimate import ScoreEstimate, estimate_scores
    from jepa_monitor.jacobian.leverage import LeverageMap, leverage_map
    from jepa_monitor.jacobian.options import ScoreOptions
    from jepa_monitor.jacobian.precision import PrecisionAudit, audit_precision
    from jepa_monitor.jacobian.score import LogDensity, jacobian_spectrum, jepa_score, log_density
    from jepa_monitor.jacobian.spectrum import log_volume

__all__ = [
    "LeverageMap",
    "LogDensity",
    "PrecisionAudit",
    "ScoreEstimate",
    "ScoreOptions",
    "audit_precision",
    "estimate_scores",
    "jacobian_spectrum",
    "jepa_score",
    "leverage_map",
    "log_density",
    "log_volume",
]

__getattr__ = imported_on_use(
    __name__,
    {
        "LeverageMap": "jepa_monitor.jacobian.leverage",
        "LogDensity": "jepa_monitor.jacobian.score",
        "PrecisionAudit": "jepa_monitor.jacobian.precision",
        "ScoreEstimate": "jepa_monitor.jacobian.estimate",
        "ScoreOptions": "jepa_monitor.jacobian.options",
        "audit_precision": "jepa_monitor.jacobian.precision",
        "estimate_scores": "jepa_monitor.jacobian.estimate",
        "jacobian_spectrum": "jepa_monitor.jacobian.score",
        "jepa_score": "jepa_monitor.jacobian.score",
        "leverage_map": "jepa_monitor.jacobian.leverage",
        "log_density": "jepa_monitor.jacobian.score",
        "log_volume": "jepa_monitor.jacobian.spectrum",
    },
)
