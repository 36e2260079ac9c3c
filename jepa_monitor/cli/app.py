"""The command ``jepa-monitor``: in go words, out come files, a closing table and an exit status."""

from __future__ import annotations

import dataclasses
import datetime
import os
import re
import sys
import time
from argparse import HelpFormatter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from typing_extensions import Self

from jepa_monitor.cli.closing import closing_table, comparison_table
from jepa_monitor.cli.comparison import compare
from jepa_monitor.cli.curation import curate
from jepa_monitor.cli.decoding import BadImage
from jepa_monitor.cli.loaded import ModelSettings
from jepa_monitor.cli.models import load_encoder
from jepa_monitor.cli.page import report
from jepa_monitor.cli.scoring import Settings, score_dataset
from jepa_monitor.cli.tables import info_of
from jepa_monitor.jacobian.options import ScoreOptions

__all__ = ["main", "score"]

_DONE, _FAILED, _REFUSED, _SKIPPED, _INTERRUPTED = 0, 1, 2, 3, 130

_SCORE = """
examples:
  jepa-monitor score --model timm/vit_small_patch14_dinov2.lvd142m --data photos/ --out scores.parquet
  jepa-monitor score --model hf/facebook/ijepa_vith14_1k --data photos/ --out scores.parquet
  jepa-monitor score --model open_clip/ViT-B-32-quickgelu/metaclip_400m --data photos/ --out s.csv
  jepa-monitor score --model runs/ijepa/version_0/checkpoints/last.ckpt --data photos/ --out s.csv
  jepa-monitor score --model my_code:encoder --data list.csv --out s.jsonl --method exact --limit 500
  torchrun --nproc-per-node 8 -m jepa_monitor score --model … --data … --out …

exit status:
  0 all images are scored; 3 some were skipped, see NAME.errors.jsonl; 1 failed; 2 refused: a wrong
  argument, or results of other settings under --out; 130 interrupted: the same command goes on.
"""

_REPORT = """
examples:
  jepa-monitor report scores.parquet
  jepa-monitor report scores.csv --out page.html --rank-by log_density --thumbnails 5000
"""

_COMPARE = """
examples:
  jepa-monitor compare dinov2.parquet ijepa.parquet
  jepa-monitor compare a.parquet b.parquet --rank-by knn --out differences.csv
"""

_CURATE = """
examples:
  jepa-monitor curate scores.parquet keep.txt --low 0.05
  jepa-monitor curate scores.parquet drop.jsonl --low 0.05 --by-class --drop
  jepa-monitor curate scores.parquet to_look_at --high 0.01        # a folder of links
  jepa-monitor curate scores.parquet keep.csv --budget 1000 --by-class
"""


def score(
    model: str,
    data: str,
    out: str,
    reference: str | None = None,
    strict: bool = False,
    overwrite: bool = False,
    *,
    model_settings: ModelSettings,
    options: ScoreOptions,
    settings: Settings,
) -> int:
    """Score every image of a data set: the likely, the unlikely and the odd.

    Interrupted at any point, the same command goes on where it was.

    Args:
        model: timm/NAME, hf/ORG/NAME or hf/FOLDER, open_clip/NAME/TAG, a Lightning checkpoint
            (PATH.ckpt), or package.module:function, a function without arguments that returns an
            encoder, or an encoder and a transform.
        data: A folder (sub-folders are classes), a list (.txt, .csv or .jsonl with ``path`` and
            ``label``), FILE.npz, or FILE.npz:SPLIT for its arrays SPLIT_images and SPLIT_labels,
            WebDataset shards ('shards-{000..009}.tar', or with ``*``), or torchvision/NAME:SPLIT
            (files in ``data``, or torchvision/NAME:SPLIT@FOLDER).
        out: The table to write: .parquet, .csv or .jsonl.
        reference: Data that the images are compared with, like ``data``; default: they themselves.
        strict: Fail at the first image that cannot be read.
        overwrite: Begin again where there are results of other settings.
        model_settings: How to load the encoder.
        options: How to score.
        settings: How to go through the data.

    Returns:
        The exit status.
    """
    console = Console(stderr=True)
    loaded = load_encoder(model, model_settings)
    first = _join_processes() == 0
    if first:
        for sentence in loaded.assumed:
            console.print(f"Assumed: {sentence}.", markup=False, highlight=False)
    with _Bars(console, disable=not first) as bars:
        table = score_dataset(
            loaded,
            data,
            out,
            reference=reference,
            options=options,
            settings=settings,
            strict=strict,
            overwrite=overwrite,
            progress=bars.update,
        )
    if first:
        Console().print(closing_table(table, settings.rank_by))
        console.print(f"Wrote {out}", markup=False, highlight=False, soft_wrap=True)
    return _SKIPPED if info_of(table)["skipped"] else _DONE


def _join_processes() -> int:
    """Join the processes that ``torchrun`` has started.

    Returns:
        This one's number.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0
    # They wait for each other once a phase, which may take days.
    torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(days=30))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    return torch.distributed.get_rank()


class _Bars:
    """A progress bar for each phase, with images a second in this session and time left."""

    def __init__(self, console: Console, disable: bool) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            disable=disable,
        )
        self._tasks: dict[str, tuple[TaskID, int, float]] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, phase: str, done: int, total: int) -> None:
        now = time.perf_counter()
        if phase not in self._tasks:
            task = self._progress.add_task(phase, total=total, completed=done, rate="")
            self._tasks[phase] = (task, done, now)
            return
        task, before, started = self._tasks[phase]
        rate = f"{(done - before) / max(now - started, 1e-9):.1f}/s"
        self._progress.update(task, completed=done, rate=rate)


class _Parser(ArgumentParser):
    """Shows options with hyphens, and the epilog in the lines that it is written in."""

    examples = ""

    def format_help(self, formatter: HelpFormatter | None = None) -> str:
        text = super().format_help() if formatter is None else super().format_help(formatter)
        return self._hyphened(text) + self.examples

    def format_usage(self) -> str:
        return self._hyphened(super().format_usage())

    @staticmethod
    def _hyphened(text: str) -> str:
        text = re.sub(r"--[a-z_]+", lambda found: found[0].replace("_", "-"), text)
        return text.replace("{true,false}", "[true|false]")


def _flags(parser: ArgumentParser) -> set[str]:
    """Find the options that are yes or no."""
    return {
        option
        for action in parser._actions
        if getattr(action, "_typehint", None) is bool
        for option in action.option_strings
    }


def _spell_out(arguments: Sequence[str], flags: set[str]) -> list[str]:
    """Write ``--max-memory`` as ``--max_memory``, and ``--strict`` as ``--strict=true``."""
    spelt: list[str] = []
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if not name.startswith("--"):
            spelt.append(argument)
            continue
        name = "--" + name[2:].replace("-", "_")
        following = "".join(arguments[position + 1 : position + 2]).lower()
        if name in flags and not equals and following not in ("true", "false"):
            equals, value = "=", "true"
        spelt.append(f"{name}{equals}{value}")
    return spelt


def _parser_of(function: Callable[..., Any], examples: str) -> _Parser:
    parser = _Parser(description=(function.__doc__ or "").split("\n    Args:")[0])
    parser.add_function_arguments(function, as_positional=True)
    parser.examples = examples
    return parser


def _score_parser() -> _Parser:
    parser = _Parser(description=(score.__doc__ or "").split("\n    Args:")[0])
    parser.examples = _SCORE
    skipped: set[str | int] = {"model_settings", "options", "settings"}
    parser.add_function_arguments(score, as_positional=False, skip=skipped)
    for record in (ModelSettings, ScoreOptions, Settings):
        parser.add_class_arguments(record)
    parser.set_defaults(method="auto")
    return parser


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _record(kind: type[Any], given: Namespace) -> Any:
    return kind(**{field.name: given[field.name] for field in dataclasses.fields(kind)})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Words after ``jepa-monitor``; default: the process's.

    Returns:
        The exit status.
    """
    commands = {
        "score": _score_parser(),
        "report": _parser_of(report, _REPORT),
        "compare": _parser_of(compare, _COMPARE),
        "curate": _parser_of(curate, _CURATE),
    }
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = _Parser(prog="jepa-monitor", description=main.__doc__)
    subcommands = parser.add_subcommands(required=True)
    for name, command in commands.items():
        subcommands.add_subcommand(name, command)
    if words and words[0] in commands:
        words = [words[0], *_spell_out(words[1:], _flags(commands[words[0]]))]
    given = parser.parse_args(words)
    try:
        return _RUNNERS[given["subcommand"]](given[given["subcommand"]])
    except KeyboardInterrupt:
        _say("Interrupted: the same command goes on from here.")
        return _INTERRUPTED
    except BadImage as error:
        _say(f"jepa-monitor: error: --strict: {error}")
        return _FAILED
    except (TypeError, ValueError) as error:
        _say(f"jepa-monitor: error: {error}")
        return _REFUSED


def _run_score(given: Namespace) -> int:
    named = ("model", "data", "out", "reference", "strict", "overwrite")
    return score(
        **{name: given[name] for name in named},
        model_settings=_record(ModelSettings, given),
        options=_record(ScoreOptions, given),
        settings=_record(Settings, given),
    )


def _run_report(given: Namespace) -> int:
    Console().print(f"Wrote {report(**vars(given))}", markup=False, highlight=False, soft_wrap=True)
    return _DONE


def _run_compare(given: Namespace) -> int:
    found = compare(**vars(given))
    Console().print(comparison_table(found.facts, found.table))
    return _DONE


def _run_curate(given: Namespace) -> int:
    text = f"Wrote {curate(**vars(given))} images to {given['out']}"
    Console().print(text, markup=False, highlight=False, soft_wrap=True)
    return _DONE


_RUNNERS: dict[str, Callable[[Namespace], int]] = {
    "score": _run_score,
    "report": _run_report,
    "compare": _run_compare,
    "curate": _run_curate,
}
