"""What to install: in goes the name of a module that is missing, out comes a line for pip."""

from __future__ import annotations

import importlib.util

__all__ = ["MissingExtraError", "explained", "missing_of"]

# The modules of each extra of pyproject.toml, by the names that they are imported by.
_EXTRAS = {
    "cli": ("pyarrow", "rich", "torchvision", "PIL"),
    "recipes": ("jsonargparse", "docstring_parser", "sklearn", "torchvision", "rich", "PIL"),
    "hf": ("transformers",),
    "text": ("transformers", "tokenizers", "peft"),
    "open-clip": ("open_clip",),
}


class MissingExtraError(ModuleNotFoundError):
    """A module that an extra would install is not there; the message says which, and how."""


def explained(who: str, extra: str, error: ModuleNotFoundError) -> ModuleNotFoundError:
    """Say of a failed import what to install.

    Args:
        who: What needs the module.
        extra: The extra that it most likely belongs to.
        error: What the import raised.

    Returns:
        An error that says so; the same one if the module is of no extra, but of somebody's code.
    """
    missing = (error.name or "").partition(".")[0]
    for name in (extra, *_EXTRAS):
        if missing in _EXTRAS[name]:
            sentence = f"{who} needs {missing}: pip install 'jepa-monitor[{name}]'"
            return MissingExtraError(sentence, name=error.name)
    return error


def missing_of(who: str, extra: str) -> ModuleNotFoundError | None:
    """Look for the modules of an extra, without importing them.

    Args:
        who: What needs them.
        extra: Its name.

    Returns:
        What importing the first missing one should raise; ``None`` if all are there.
    """
    for name in _EXTRAS[extra]:
        if importlib.util.find_spec(name) is None:
            return explained(who, extra, ModuleNotFoundError(name=name))
    return None
