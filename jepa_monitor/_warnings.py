"""Warnings that point at the user's line: in goes a message, out comes a warning of the first caller outside."""

from __future__ import annotations

import sys
import warnings

__all__ = ["warn"]

_PACKAGE = __name__.partition(".")[0]


def warn(message: str) -> None:
    """Warn of the line outside of this package that led here, as ``skip_file_prefixes`` of Python 3.12 does.

    Args:
        message: What to say.
    """
    frame, level = sys._getframe(1), 2
    while frame.f_globals.get("__name__", "").partition(".")[0] == _PACKAGE and frame.f_back:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)
