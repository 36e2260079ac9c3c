"""Lightning callbacks: when to measure and where to write it; no maths."""

from jepa_monitor.callbacks.collapse import CollapseCallback
from jepa_monitor.callbacks.jepa_score import JepaScoreCallback
from jepa_monitor.callbacks.shortcut import ShortcutCallback

__all__ = ["CollapseCallback", "JepaScoreCallback", "ShortcutCallback"]
