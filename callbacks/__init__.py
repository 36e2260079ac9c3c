"""Lightning callbacks: when to measure and where to write it; no maths."""

from jepa_monitor.callbacks.collapse import CollapseCallback
from jepa_monitor.callbacks.jepa_score import JepaScoreCallback

__all__ = ["CollapseCallback", "JepaScoreCallback"]
