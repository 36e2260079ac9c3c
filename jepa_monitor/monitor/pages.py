"""Pages to look at: in go a page's part and what it shows, out comes HTML that needs nothing else.

Every page of the package has the same shell: colours for light and dark, the few functions that draw,
and a policy that lets nothing be loaded. What a page shows is data; no name of a file or a run becomes markup.
"""

from __future__ import annotations

import importlib.resources
import json
from typing import Any

__all__ = ["fill_page"]

_SHELL = ("jepa_monitor.monitor", "shell.html")


def fill_page(package: str, part: str, content: dict[str, Any]) -> str:
    """Put a part and what it shows into the shell.

    Args:
        package: That has the part.
        part: Name of its file: a ``<style>``, a ``<body>`` and a ``<script>``, which finds the content
            in ``data``.
        content: What JSON can hold; numbers must be finite.

    Returns:
        The page.

    Raises:
        ValueError: If a number is not finite.
    """
    page = _read(*_SHELL)
    text = _read(package, part)
    for mark in ("style", "body", "script"):
        inside = text.partition(f"<{mark}>\n")[2].rpartition(f"</{mark}>")[0]
        page = page.replace(f"@{mark.upper()}@", inside, 1)
    # The only thing that goes into the page; without "<" it cannot end its own element.
    shown = json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return page.replace("@DATA@", shown, 1)


def _read(package: str, name: str) -> str:
    return importlib.resources.files(package).joinpath(name).read_text("utf-8")
