"""Watch the density that a self-supervised encoder learns while it trains."""

from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

from jepa_monitor.jacobian.options import ScoreOptions
from jepa_monitor.jacobian.precision import PrecisionAudit, audit_precision
from jepa_monitor.jacobian.score import LogDensity, jacobian_spectrum, jepa_score, log_density
from jepa_monitor.jacobian.spectrum import log_volume
from jepa_monitor.monitor.monitor import DensityMonitor
from jepa_monitor.monitor.report import Report

if TYPE_CHECKING:
    from jepa_monitor.callbacks import JepaScoreCallback

__version__ = _version("jepa-monitor")
__all__ = [
    "DensityMonitor",
    "JepaScoreCallback",
    "LogDensity",
    "PrecisionAudit",
    "Report",
    "ScoreOptions",
    "audit_precision",
    "jacobian_spectrum",
    "jepa_score",
    "log_density",
    "log_volume",
]


def __getattr__(name: str) -> Any:
    # A plain training loop has no use for Lightning, whose import takes seconds.
    if name == "JepaScoreCallback":
        from jepa_monitor.callbacks import JepaScoreCallback

        return JepaScoreCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
