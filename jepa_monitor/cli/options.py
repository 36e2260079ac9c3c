"""Options of a command: in go a function and records of settings, out come a parser and its help.

Names, types, defaults and explanations are those of signatures and docstrings, so nothing is said twice.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import shutil
import sys
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

__all__ = ["Option", "Parser", "flag", "options_of"]

_SIZES = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_BINARY = {"ki": 1024, "mi": 1024**2, "gi": 1024**3, "ti": 1024**4}


@dataclasses.dataclass(frozen=True)
class Option:
    """One thing that may be said.

    Args:
        name: Of the argument.
        kinds: Types that a value may have, without ``None``.
        default: What holds if nothing is said; ``inspect.Parameter.empty`` if it must be said.
        text: What it is, as its docstring has it.
        positional: Whether it is told by its place.
    """

    name: str
    kinds: tuple[Any, ...]
    default: Any
    text: str
    positional: bool = False

    @property
    def required(self) -> bool:
        """Whether it must be said."""
        return self.default is inspect.Parameter.empty


def flag(name: str) -> str:
    """Write an argument's name as people type it.

    Args:
        name: Such as ``max_memory``.

    Returns:
        Such as ``--max-memory``.
    """
    return "--" + name.replace("_", "-")


def options_of(what: Any, positional: bool = False) -> list[Option]:
    """Read the arguments of a function or record, and what its docstring says of them.

    Args:
        what: A function or a dataclass.
        positional: Whether those without a default are told by their place; positional-only ones
            always are.

    Returns:
        The options, in order. Arguments that are records themselves are left out.
    """
    hints = typing.get_type_hints(what.__init__ if inspect.isclass(what) else what)
    texts = _explanations(inspect.getdoc(what) or "")
    found = []
    for name, parameter in inspect.signature(what).parameters.items():
        kinds = _kinds(hints[name])
        if any(dataclasses.is_dataclass(kind) for kind in kinds):
            continue
        placed = positional and parameter.default is inspect.Parameter.empty
        placed = placed or parameter.kind is inspect.Parameter.POSITIONAL_ONLY
        found.append(Option(name, kinds, parameter.default, texts[name], placed))
    return found


def _kinds(hint: Any) -> tuple[Any, ...]:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return tuple(kind for kind in typing.get_args(hint) if kind is not type(None))
    return (hint,)


def _explanations(docstring: str) -> dict[str, str]:
    """Find the section ``Args:`` of a Google docstring."""
    found: dict[str, str] = {}
    _, _, section = docstring.partition("Args:\n")
    for line in section.splitlines():
        if line and not line.startswith(" "):
            break
        if begun := re.match(r"    (\w+): (.*)", line):
            found[begun[1]] = begun[2]
        elif found and line.strip():
            last = list(found)[-1]
            found[last] += " " + line.strip()
    return found


class Parser(argparse.ArgumentParser):
    """A parser of one command, whose errors are one line and name what was typed.

    Args:
        command: What is typed before the options.
        about: What it does.
        groups: Titles and options.
        epilog: Examples, in the lines that they are written in.
    """

    def __init__(
        self, command: str, about: str, groups: Sequence[tuple[str, list[Option]]], epilog: str
    ) -> None:
        must = [
            option.name.upper() if option.positional else f"{flag(option.name)} {_metavar(option)}"
            for _, options in groups
            for option in options
            if option.required
        ]
        super().__init__(
            prog=command,
            usage=" ".join([command, *must, "[options]"]),
            description=about,
            epilog=epilog,
            formatter_class=_Formatter,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
        )
        self.options = [option for _, options in groups for option in options]
        names = {option.name: option for option in self.options}
        for title, options in groups:
            group = self.add_argument_group(title)
            for option in options:
                self._add(group, option, names)

    @property
    def command(self) -> str:
        """The first word, which errors begin with."""
        return self.prog.split(" ", maxsplit=1)[0]

    def parse(self, words: Iterable[str]) -> dict[str, Any]:
        """Read what was typed.

        Args:
            words: After the command.

        Returns:
            What was said, by the names of the arguments, without defaults.
        """
        # LightningCLI's options have underscores, and so may have these.
        spelt = [re.sub(r"^--[a-z_]+", lambda m: m[0].replace("_", "-"), word) for word in words]
        return vars(self.parse_args(spelt))

    def spell(self, message: str) -> str:
        """Name options as people type them, where an error of a function names its arguments.

        Args:
            message: With names between backticks.

        Returns:
            The same with flags.
        """
        for option in self.options:
            shown = option.name.upper() if option.positional else flag(option.name)
            message = re.sub(rf"`{option.name}='?(\w+)'?`", rf"{shown} \1", message)
            message = message.replace(f"`{option.name}`", shown)
        return message

    def error(self, message: str) -> NoReturn:
        """Say in a line what was wrong with the words, and exit with 2.

        Args:
            message: What argparse found.

        Raises:
            SystemExit: Always.
        """
        message = re.sub(r"^argument ([^:]+): ", lambda m: m[1].split("/")[0] + " ", message)
        sys.stderr.write(f"{self.command}: error: {message} (see {self.prog} --help)\n")
        raise SystemExit(2)

    def _add(
        self, group: argparse._ActionsContainer, option: Option, names: dict[str, Option]
    ) -> None:
        text = re.sub(
            r"``\"?([^`\"]+)\"?``",
            lambda m: flag(m[1]) if m[1] in names else m[1],
            option.text,
        ).replace("%", "%%")
        if option.positional:
            several = "*" if list[str] in option.kinds else None
            group.add_argument(option.name, metavar=option.name.upper(), help=text, nargs=several)
            return
        if option.required:
            text += " (required)"
        elif option.default is not None and option.kinds != (bool,):
            text += f" (default: {option.default})"
        settings: dict[str, Any] = {"dest": option.name, "help": text, "required": option.required}
        if option.kinds == (bool,):
            action = argparse.BooleanOptionalAction if option.default else "store_true"
            settings |= {"action": action}
            settings["help"] += " (default: yes)" if option.default else " (default: no)"
        elif list[float] in option.kinds:
            settings |= {"nargs": "+", "action": _Numbers, "metavar": "NUMBER"}
        elif list[str] in option.kinds:
            settings |= {"nargs": "+", "metavar": "NAME"}
        else:
            settings |= {"type": _reader(option), "metavar": _metavar(option)}
        group.add_argument(flag(option.name), **settings)


def _is(option: Option, kind: type) -> bool:
    return kind in option.kinds


def _metavar(option: Option) -> str:
    if option.name.startswith("max_memory"):
        return "SIZE"
    return "NUMBER" if _is(option, int) or _is(option, float) else option.name.upper()


def _reader(option: Option) -> Callable[[str], Any]:
    """Choose how the text of a value is read."""
    if option.name == "max_memory":
        return _size
    if option.kinds == (int,):
        return _integer
    if option.kinds == (float,):
        return _number
    if _is(option, int):  # or a word, which the record judges
        return lambda text: int(text) if re.fullmatch(r"[+-]?\d+", text) else text
    return str


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be an integer, got {text!r}") from error


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from error


def _size(text: str) -> int:
    """Read a number of bytes, such as 500MB or 1.5GiB."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmgt]?i?)b?", text.strip().lower())
    unit = (_SIZES | _BINARY).get(found[2]) if found else None
    if found is None or unit is None:
        raise argparse.ArgumentTypeError(f"must be bytes, such as 500MB or 2GiB, got {text!r}")
    return round(float(found[1]) * unit)


class _Numbers(argparse.Action):
    """Several numbers, apart as words or by commas."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        texts = [text for word in values for text in word.strip("[]").split(",") if text]
        try:
            setattr(namespace, self.dest, [float(text) for text in texts])
        except ValueError:
            parser.error(f"{option_string} must be numbers, got {' '.join(values)!r}")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Help as wide as the terminal allows, with explanations beside short names."""

    def __init__(self, prog: str) -> None:
        width = min(shutil.get_terminal_size().columns - 2, 100)
        super().__init__(prog, max_help_position=26, width=width)
