"""Names that are imported when they are first asked for: in goes where they live, out come hooks."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from jepa_monitor._extras import explained

__all__ = ["imported_on_use"]


def imported_on_use(
    package: str, homes: dict[str, str], extra: str | None = None
) -> Callable[[str], Any]:
    """Make the ``__getattr__`` of a package (PEP 562), which then costs nothing to import.

    Args:
        package: Name of the package.
        homes: The module of each name.
        extra: What to install for these modules; the error of one that is missing says so.

    Returns:
        The function to bind to ``__getattr__``.
    """

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            return getattr(importlib.import_module(homes[name]), name)
        except ModuleNotFoundError as error:
            if extra is None:
                raise
            raise explained(f"{package}.{name}", extra, error) from error

    return find
