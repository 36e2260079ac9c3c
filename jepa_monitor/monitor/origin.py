"""Where a run comes from: out come the command that started it, its folder and the versions of what it rests on."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["find_origin", "spell_command"]

_PACKAGES = ("jepa-monitor", "torch", "lightning", "timm", "numpy")
_SECRET = re.compile(r"(token|secret|passw|credential|api[_-]?key|auth)", re.IGNORECASE)


def find_origin() -> dict[str, str]:
    """Say what it takes to run this process again.

    Returns:
        ``command``, if there is one that can be typed, ``run in`` and ``versions``.
    """
    versions = [f"Python {platform.python_version()}"]
    for name in _PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:  # noqa: PERF203 - run from its sources
            continue
    command = spell_command(sys.orig_argv)
    told = {"command": command} if command else {}
    return {**told, "run in": str(Path.cwd()), "versions": ", ".join(versions)}


def spell_command(words: Sequence[str]) -> str:
    """Write a command as it can be typed again.

    Args:
        words: As the operating system has them.

    Returns:
        One line, without what looks like a secret; empty for a notebook and an interactive session.
    """
    if len(words) < 2 or any("ipykernel" in word or "colab_kernel" in word for word in words):
        return ""
    shown, hide = [Path(words[0]).name], False
    for word in words[1:]:
        name, sign, _ = word.partition("=")
        if hide and not word.startswith("-"):
            shown.append("***")
            hide = False
            continue
        hide = word.startswith("-") and not sign and bool(_SECRET.search(word))
        shown.append(f"{name}=***" if sign and _SECRET.search(name) else word)
    return " ".join(word if word.endswith("***") else shlex.quote(word) for word in shown)
