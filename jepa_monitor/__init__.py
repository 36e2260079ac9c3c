"""Watch the density that a self-supervised encoder learns while it trains."""

from importlib.metadata import version as _version
from typing import TYPE_CHECKING

from jepa_monitor._lazy import imported_on_use

if TYPE_CHECKING:
    from jepa_monitor.callbacks import JepaScoreCallback, ShortcutCallback
    from jepa_monitor.jacobian.leverage import LeverageMap, leverage_map
    from jepa_monitor.jacobian.options import ScoreOptions
    from jepa_monitor.jacobian.precision import PrecisionAudit, audit_precision
    from jepa_monitor.jacobian.score import LogDensity, jacobian_spectrum, jepa_score, log_density
    from jepa_monitor.jacobian.spectrum import log_volume
    from jepa_monitor.monitor.monitor import DensityMonitor
    from jepa_monitor.monitor.report import Report

__version__ = _version("jepa-monitor")
__all__ = [
    "DensityMonitor",
    "JepaScoreCallback",
    "LeverageMap",
    "LogDensity",
    "PrecisionAudit",
    "Report",
    "ScoreOptions",
    "ShortcutCallback",
    "audit_precision",
    "jacobian_spectrum",
    "jepa_score",
    "leverage_map",
    "log_density",
    "log_volume",
]

# A plain training loop has no use for Lightning, nor `jepa-monitor --help` for torch: their imports
# take seconds.
__getattr__ = imported_on_use(
    __name__,
    {
        "DensityMonitor": "jepa_monitor.monitor.monitor",
        "JepaScoreCallback": "jepa_monitor.callbacks",
        "LeverageMap": "jepa_monitor.jacobian.leverage",
        "LogDensity": "jepa_monitor.jacobian.score",
        "PrecisionAudit": "jepa_monitor.jacobian.precision",
        "Report": "jepa_monitor.monitor.report",
        "ScoreOptions": "jepa_monitor.jacobian.options",
        "ShortcutCallback": "jepa_monitor.callbacks",
        "audit_precision": "jepa_monitor.jacobian.precision",
        "jacobian_spectrum": "jepa_monitor.jacobian.score",
        "jepa_score": "jepa_monitor.jacobian.score",
        "leverage_map": "jepa_monitor.jacobian.leverage",
        "log_density": "jepa_monitor.jacobian.score",
        "log_volume": "jepa_monitor.jacobian.spectrum",
    },
)
