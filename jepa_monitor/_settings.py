"""Settings that several entry points share: written once in a dataclass, spelt out in each."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

__all__ = ["divide", "takes"]

_T = TypeVar("_T")
_KEYWORDS = re.compile(r"^(?P<indent> *)\*\*\w+: .*\n(?:(?P=indent) +.*\n)*", re.MULTILINE)


def takes(*settings: type, **defaults: Any) -> Callable[[_T], _T]:
    """Spell out the keyword arguments that a function or a class hands on to dataclasses.

    ``inspect.signature``, ``help`` and configuration files then see the fields of the dataclasses,
    their defaults and what their docstrings say of them, where the code has ``**settings``.

    Args:
        *settings: Dataclasses, of different fields.
        **defaults: Other defaults than theirs.

    Returns:
        A decorator.

    Example:
        >>> @dataclasses.dataclass
        ... class Style:
        ...     '''How to draw.
        ...
        ...     Args:
        ...         width: Of the lines.
        ...     '''
        ...
        ...     width: float = 1.0
        >>> @takes(Style)
        ... def draw(curve, **style):
        ...     '''Draw a curve.
        ...
        ...     Args:
        ...         curve: What to draw.
        ...         **style: How.
        ...     '''
        >>> inspect.signature(draw)
        <Signature (curve, *, width: float = 1.0)>
        >>> print(inspect.getdoc(draw))
        Draw a curve.
        <BLANKLINE>
        Args:
            curve: What to draw.
            width: Of the lines.
    """
    found = [p for kind in settings for p in _parameters(kind, defaults)]

    def spell_out(target: _T) -> _T:
        function: Any = vars(target)["__init__"] if isinstance(target, type) else target
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        function.__signature__ = signature.replace(parameters=[*own, *found])
        lines = "".join(_arguments(inspect.getdoc(kind) or "") for kind in settings)
        text = (inspect.getdoc(target) or "") + "\n"
        target.__doc__ = _KEYWORDS.sub(lambda _: lines, text, count=1)
        return target

    return spell_out


def divide(given: Mapping[str, Any], *settings: Any) -> tuple[dict[str, Any], ...]:
    """Give each of several dataclasses its keyword arguments.

    Args:
        given: All of them.
        *settings: Dataclasses, of different fields.

    Returns:
        Those of each.

    Raises:
        TypeError: If there is one that none of them has.

    Example:
        >>> @dataclasses.dataclass
        ... class Style:
        ...     width: float = 1.0
        >>> divide({"width": 2.0}, Style)
        ({'width': 2.0},)
    """
    names = [{field.name for field in dataclasses.fields(kind)} for kind in settings]
    for name in given:
        if not any(name in own for own in names):
            raise TypeError(f"got an unexpected keyword argument {name!r}")
    return tuple({name: given[name] for name in given if name in own} for own in names)


def _parameters(settings: Any, defaults: Mapping[str, Any]) -> list[inspect.Parameter]:
    hints = typing.get_type_hints(settings)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=defaults.get(field.name, field.default),
            annotation=hints[field.name],
        )
        for field in dataclasses.fields(settings)
    ]


def _arguments(text: str) -> str:
    """Cut the lines out of a docstring that explain the arguments."""
    _, _, after = text.partition("Args:\n")
    return re.split(r"\n\n", after)[0].rstrip("\n") + "\n"
