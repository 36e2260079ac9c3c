"""An encoder, whenever it is looked at → a report: numbers, pictures, and the alarm."""

from jepa_monitor.monitor.monitor import DensityMonitor
from jepa_monitor.monitor.report import Report

__all__ = ["DensityMonitor", "Report"]
