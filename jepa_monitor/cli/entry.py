"""Where the console script begins: says what to install if something is missing."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> int:
    """Run ``jepa-monitor``.

    Returns:
        The exit status.

    Raises:
        ModuleNotFoundError: If a part of the package itself is missing.
    """
    try:
        from jepa_monitor.cli.app import main as run
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("jepa_monitor"):
            raise
        print(  # noqa: T201
            f"jepa-monitor needs {error.name}: pip install 'jepa-monitor[cli]'", file=sys.stderr
        )
        return 1
    return run()
