"""The commands: in go words, out come files, a closing table and an exit status.

Nothing that takes long to import is imported before it is used: help and errors come at once.
"""

from __future__ import annotations

import dataclasses
import datetime
import inspect
import os
from collections.abc import Callable
from typing import Any

from jepa_monitor.cli.advice import AdviceSettings, advise
from jepa_monitor.cli.advice_mae import MaeSettings
from jepa_monitor.cli.advice_objective import ObjectiveSettings
from jepa_monitor.cli.comparison import compare
from jepa_monitor.cli.curation import curate
from jepa_monitor.cli.options import Option, Parser, options_of
from jepa_monitor.cli.replay import EXAMPLES as _REPLAY
from jepa_monitor.cli.replay import replay
from jepa_monitor.cli.reporting import report
from jepa_monitor.cli.screening import screen
from jepa_monitor.cli.settings import ModelSettings, ReplaySettings, Settings
from jepa_monitor.jacobian.options import ScoreOptions

__all__ = ["COMMANDS", "Command", "score"]

DONE, FAILED, REFUSED, SKIPPED, INTERRUPTED = 0, 1, 2, 3, 130

_SCORE = """
examples:
  jepa-monitor score --model timm/vit_small_patch14_dinov2.lvd142m --data photos/ --out scores.parquet
  jepa-monitor score --model hf/facebook/ijepa_vith14_1k --data photos/ --out scores.parquet
  jepa-monitor score --model open_clip/ViT-B-32-quickgelu/metaclip_400m --data photos/ --out s.csv
  jepa-monitor score --model runs/ijepa/version_0/checkpoints/last.ckpt --data photos/ --out s.csv
  jepa-monitor score --model my_code:encoder --mean 0.5 0.5 0.5 --std 0.5 0.5 0.5 --data 's-{00..09}.tar' \\
      --out s.jsonl --method exact --limit 500 --max-memory 2GB
  torchrun --nproc-per-node 8 -m jepa_monitor score --model … --data … --out …

a size:
  bytes (2000000000), or with a unit of 1000 (500MB, 2GB) or of 1024 (2GiB)

a list of numbers:
  words (--mean 0.5 0.5 0.5) or one word (--mean 0.5,0.5,0.5), one number a channel

a list of images:
  list.txt      a path a line; relative ones start from the list's folder
  list.csv      columns path and, if you like, label
  list.jsonl    {"path": "a.png", "label": "cat"} a line

exit status:
  0 all images are scored; 3 some were skipped, see NAME.errors.jsonl; 1 failed, or a hub cannot be
  reached; 2 refused: a wrong argument, or results of other settings under --out; 130 interrupted: the
  same command goes on
"""

_REPORT = """
examples:
  jepa-monitor report lightning_logs/version_0                      # a run: run.html beside its logs
  jepa-monitor report runs/a runs/b --out both.html                 # two runs side by side
  jepa-monitor report scores.parquet
  jepa-monitor report scores.csv --out page.html --rank-by jepa_score --thumbnails 5000
"""

_COMPARE = """
examples:
  jepa-monitor compare dinov2.parquet ijepa.parquet
  jepa-monitor compare a.parquet b.parquet --rank-by knn --out differences.csv
  jepa-monitor compare a.parquet b.parquet --page differences.html
"""

_CURATE = """
examples:
  jepa-monitor curate scores.parquet keep.txt --low 0.05
  jepa-monitor curate scores.parquet drop.jsonl --low 0.05 --by-class --drop
  jepa-monitor curate scores.parquet to_look_at --high 0.01        # a folder of links
  jepa-monitor curate scores.parquet keep.csv --budget 1000 --by-class
"""

_ADVISE = """
examples:
  jepa-monitor advise mae --data photos/
  jepa-monitor advise mae --data images.npz:train --sizes 2,4,8 --masks .5,.75,.9 --picture mae.png
  jepa-monitor advise objective --data photos/ --augment crop flip colour --corruption fog:3
  jepa-monitor advise objective --data photos/ --augment crop,inject:1 --corruption fog:5 --picture o.png
"""


_SCREEN = """
examples:
  jepa-monitor screen texts.jsonl --label label
  jepa-monitor screen reviews.csv --label stars --text review --out words.csv
"""


@dataclasses.dataclass(frozen=True)
class Command:
    """A word that may follow ``jepa-monitor``.

    Args:
        function: What does the work; its docstring is the help.
        run: Calls it with what was typed and returns the exit status.
        examples: End of the help.
        records: Records of settings that are options too.
    """

    function: Callable[..., Any]
    run: Callable[[dict[str, Any]], int]
    examples: str
    records: tuple[type[Any], ...] = ()

    @property
    def summary(self) -> str:
        """What it does, in a line."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    def parser(self, name: str) -> Parser:
        """Make its parser.

        Args:
            name: What is typed for it.

        Returns:
            The parser.
        """
        about = (inspect.getdoc(self.function) or "").partition("\nArgs:")[0]
        own = options_of(self.function, positional=not self.records)
        groups = [("arguments", own)]
        for record in self.records:
            title = (inspect.getdoc(record) or "").partition(".\n")[0]
            groups.append((title[0].lower() + title[1:], _adapted(options_of(record))))
        return Parser(f"jepa-monitor {name}", about, groups, self.examples)


def _adapted(options: list[Option]) -> list[Option]:
    """Sketch where that is good enough: a data set is larger than a probe."""
    return [dataclasses.replace(o, default="auto") if o.name == "method" else o for o in options]


def score(
    model: str,
    data: str,
    out: str,
    reference: str | None = None,
    detectors: list[str] | None = None,
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
        data: A folder (sub-folders are classes), a list (.txt, .csv, .jsonl), FILE.npz or
            FILE.npz:SPLIT (its arrays SPLIT_images and SPLIT_labels), WebDataset shards
            ('shards-{000..009}.tar', or with a star), or torchvision/NAME:SPLIT (whose files are in
            data/, or in FOLDER of torchvision/NAME:SPLIT@FOLDER).
        out: The table to write: .parquet, .csv or .jsonl.
        reference: What the images are compared with, named as ``data`` is; default: they
            themselves.
        detectors: What to score by too, beside jepa_score, log_density, knn, mahalanobis and
            combined: other names of the registry, such as spectrum_shape, or package.module:Class of
            a detector of your own; each has a column; default: none.
        strict: Fail at the first image that cannot be read.
        overwrite: Begin again where there are results of other settings.
        model_settings: How to load the encoder.
        options: How to score.
        settings: How to go through the data.

    Returns:
        The exit status.
    """
    from jepa_monitor.cli.closing import closing_table
    from jepa_monitor.cli.console import Bars, printed, stderr_console
    from jepa_monitor.cli.loaded import import_from
    from jepa_monitor.cli.models import load_encoder
    from jepa_monitor.cli.scoring import check_request, score_dataset
    from jepa_monitor.cli.tables import info_of

    console = stderr_console()
    first = _join_processes() == 0
    source, other, _ = check_request(data, out, reference, settings)
    named: list[Any] = [
        import_from(name, "detectors") if ":" in name else name for name in detectors or ()
    ]
    own: list[Any] = [found() if inspect.isclass(found) else found for found in named]
    loaded = load_encoder(model, model_settings)
    if first:
        parser = COMMANDS["score"].parser("score")
        for sentence in loaded.assumed:
            printed(f"Assumed: {parser.spell(sentence)}.", console)
    with Bars(console, disable=not first) as bars:
        table = score_dataset(
            loaded,
            source,
            out,
            reference=other,
            options=options,
            settings=settings,
            detectors=own,
            strict=strict,
            overwrite=overwrite,
            progress=bars.update,
        )
    if first:
        printed(closing_table(table, info_of(table)["rank_by"]))
        printed(f"Wrote {out}", console)
    return SKIPPED if info_of(table)["skipped"] else DONE


def _join_processes() -> int:
    """Join the processes that ``torchrun`` has started.

    Returns:
        This one's number.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0
    import torch

    # They wait for each other once a phase, which may take days.
    torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(days=30))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    return torch.distributed.get_rank()


def _record(kind: type[Any], given: dict[str, Any], **defaults: Any) -> Any:
    names = {field.name for field in dataclasses.fields(kind)}
    return kind(**(defaults | {name: given[name] for name in names & given.keys()}))


def _run_score(given: dict[str, Any]) -> int:
    records = {
        "model_settings": _record(ModelSettings, given),
        "options": _record(ScoreOptions, given, method="auto"),
        "settings": _record(Settings, given),
    }
    names = inspect.signature(score).parameters.keys() - records.keys()
    return score(**{name: given[name] for name in names & given.keys()}, **records)


def _run_replay(given: dict[str, Any]) -> int:
    records = {
        "model_settings": _record(ModelSettings, given),
        "options": _record(ScoreOptions, given, method="auto"),
        "settings": _record(ReplaySettings, given),
    }
    names = inspect.signature(replay).parameters.keys() - records.keys() - {"checkpoints"}
    words = {name: given[name] for name in names & given.keys()}
    problems = replay(given.get("checkpoints", []), **words, **records)
    return SKIPPED if problems else DONE


def _run_report(given: dict[str, Any]) -> int:
    place = report(given.pop("results", []), **given)
    from jepa_monitor.cli.console import printed

    printed(f"Wrote {place}")
    return DONE


def _run_compare(given: dict[str, Any]) -> int:
    found = compare(**given)
    from jepa_monitor.cli.closing import comparison_table
    from jepa_monitor.cli.console import printed

    printed(comparison_table(found.facts, found.table))
    return DONE


def _run_curate(given: dict[str, Any]) -> int:
    count = curate(**given)
    from jepa_monitor.cli.console import printed

    printed(f"Wrote {count} images to {given['out']}")
    return DONE


def _run_advise(given: dict[str, Any]) -> int:
    from jepa_monitor.cli.closing import advice_table
    from jepa_monitor.cli.console import printed

    words = {name: given[name] for name in ("data", "out", "picture") if name in given}
    for what, kind in (("mae", MaeSettings), ("objective", ObjectiveSettings)):
        foreign = {field.name for field in dataclasses.fields(kind)} & given.keys()
        if foreign and given["what"] != what:
            raise ValueError(f"`{min(foreign)}` is of advise {what}, got advise {given['what']}.")
    found = advise(
        given["what"],
        **words,
        settings=_record(AdviceSettings, given),
        mae=_record(MaeSettings, given),
        objective=_record(ObjectiveSettings, given),
    )
    printed(advice_table(found.facts, found.table))
    return DONE


def _run_screen(given: dict[str, Any]) -> int:
    found = screen(**given)
    from jepa_monitor.cli.closing import screening_table
    from jepa_monitor.cli.console import printed

    printed(screening_table(found.facts, found.table))
    return DONE


COMMANDS = {
    "score": Command(score, _run_score, _SCORE, (ModelSettings, ScoreOptions, Settings)),
    "report": Command(report, _run_report, _REPORT),
    "compare": Command(compare, _run_compare, _COMPARE),
    "curate": Command(curate, _run_curate, _CURATE),
    "replay": Command(replay, _run_replay, _REPLAY, (ModelSettings, ScoreOptions, ReplaySettings)),
    "advise": Command(
        advise, _run_advise, _ADVISE, (AdviceSettings, MaeSettings, ObjectiveSettings)
    ),
    "screen": Command(screen, _run_screen, _SCREEN),
}
