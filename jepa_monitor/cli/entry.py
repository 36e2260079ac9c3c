"""Where the console script begins: whatever happens ends in one line and an exit status."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence

import jepa_monitor
from jepa_monitor._extras import MissingExtraError, missing_of
from jepa_monitor.cli.app import COMMANDS, DONE, FAILED, INTERRUPTED, REFUSED
from jepa_monitor.cli.errors import BadImage, UnreachableError

__all__ = ["main"]

_ABOUT = "Which images of a data set are likely under an encoder, and which are odd?"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``jepa-monitor``.

    Args:
        arguments: Words after ``jepa-monitor``; default: the process's.

    Returns:
        The exit status.
    """
    name, *words = list(sys.argv[1:] if arguments is None else arguments) or [""]
    if name in ("-h", "--help", "help", "--version"):
        shown = f"jepa-monitor {jepa_monitor.__version__}\n" if name == "--version" else _help()
        sys.stdout.write(shown)
        return DONE
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {close[0]}?" if close else f"one of {', '.join(COMMANDS)}"
        found = f"there is no command {name!r}: {hint}" if name else f"a command is missing: {hint}"
        return _failed(f"{found} (see jepa-monitor --help)", REFUSED)
    parser = COMMANDS[name].parser(name)
    given = parser.parse(words)
    if (missing := missing_of("this command", "cli")) is not None:  # now, not after hours of work
        return _failed(str(missing), FAILED)
    try:
        return COMMANDS[name].run(given)
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted: the same command goes on from here.\n")
        return INTERRUPTED
    except BadImage as error:
        return _failed(f"--strict: {error}", FAILED)
    except (MissingExtraError, UnreachableError) as error:
        return _failed(parser.spell(str(error)), FAILED)
    except OSError as error:
        place = f": {error.filename!r}" if error.filename else ""
        kept = (
            ". What is done is kept: the same command goes on"
            if name in ("score", "replay")
            else ""
        )
        return _failed(f"{error.strerror or error}{place}{kept}", FAILED)
    except MemoryError as error:
        return _failed(parser.spell(str(error)) or "there is not enough memory", FAILED)
    except (TypeError, ValueError) as error:
        return _failed(parser.spell(str(error)), REFUSED)


def _failed(sentence: str, status: int) -> int:
    sys.stderr.write(f"jepa-monitor: error: {sentence}\n")
    return status


def _help() -> str:
    lines = [f"  {name:<9} {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: jepa-monitor COMMAND [options]",
            "",
            _ABOUT,
            "",
            "commands:",
            *lines,
            "",
            "jepa-monitor COMMAND --help has the options of each, with examples; jepa-monitor --version.",
            "",
        ]
    )
