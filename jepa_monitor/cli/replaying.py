"""Replay a run from its checkpoints: in go files and images, out come the callback's dashboard and a verdict."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jepa_monitor._files import check_place, write_bytes
from jepa_monitor.cli.checkpoints import read_file
from jepa_monitor.cli.kept_looks import read_look
from jepa_monitor.cli.loaded import LoadedEncoder
from jepa_monitor.cli.looking import Failure, Plan, look_at_all, look_path, monitor_of
from jepa_monitor.cli.probe_data import Found, find_data, read_images
from jepa_monitor.cli.retelling import patience_of, retell
from jepa_monitor.cli.run_events import read_run
from jepa_monitor.cli.run_order import Course, find_checkpoints, in_order
from jepa_monitor.cli.runs import Run
from jepa_monitor.cli.scoring import find_device
from jepa_monitor.cli.series import Series
from jepa_monitor.cli.settings import ModelSettings, ReplaySettings
from jepa_monitor.encoders.embedder import Embedder
from jepa_monitor.insights import default_insights
from jepa_monitor.jacobian.options import ScoreOptions
from jepa_monitor.monitor.closing import Closing
from jepa_monitor.monitor.keep import Keep
from jepa_monitor.monitor.run_page import RUN_PAGE, run_page

__all__ = ["Replay", "read_replay", "replay_run"]

_FORMAT = 1
_REPORT = "replay.json"
_REFERENCE_SEED = 1  # as the monitor draws its reference
# What changes no look: the story is told anew from the kept ones every time.
_NOT_DECIDING = ("workers", "device", "patience_steps", "steps_per_epoch")


class Replay(NamedTuple):
    """A run that was replayed.

    Args:
        looks: Scalars by tag of every look, each with its ``step``, in order.
        closing: The verdict.
        facts: What there is to say of it, pairs of a name and words.
        problems: Checkpoints and images that were left out, with the reason.
        assumed: What nobody said, in sentences.
        said: What the callback would have warned of.
        data: Name and content of the sets of images.
        unit: What ``step`` counts.
    """

    looks: list[dict[str, float]]
    closing: Closing
    facts: list[tuple[str, str]]
    problems: list[dict[str, str]]
    assumed: list[str]
    said: list[str]
    data: dict[str, str | None]
    unit: str


def replay_run(
    checkpoints: Iterable[str],
    data: str,
    out: str | Path,
    *,
    model: str | None = None,
    reference: str | None = None,
    anew: bool = False,
    model_settings: ModelSettings | None = None,
    options: ScoreOptions | None = None,
    settings: ReplaySettings | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Replay:
    """Look at every checkpoint of a run as the callback would have, and tell its story in order.

    It can be interrupted at any point and called again: checkpoints that have been looked at are not
    looked at again, new ones are.

    Args:
        checkpoints: Files, patterns and folders; see
            :func:`~jepa_monitor.cli.run_order.find_checkpoints`.
        data: Held-out images; see :func:`~jepa_monitor.cli.probe_data.find_data`.
        out: Folder for the event file, the kept looks and ``replay.json``.
        model: See :class:`~jepa_monitor.cli.series.Series`.
        reference: Training images.
        anew: Begin again where there are looks of other settings.
        model_settings: How to load the encoders.
        options: How to score; default ``ScoreOptions(method="auto")``.
        settings: How to look.
        progress: Called with what is done, how much of it, and of how much.

    Returns:
        What was found.

    Raises:
        RefusedError: If there are looks of other settings in ``out``.
        TypeError: If an argument is of the wrong type.
        ValueError: If there are no such checkpoints or data, or none of them can be looked at.
    """
    model_settings = model_settings or ModelSettings()
    options, settings = options or ScoreOptions(method="auto"), settings or ReplaySettings()
    if model_settings.random_weights:
        raise ValueError("`random_weights` leaves nothing to replay: the checkpoints have weights.")
    folder = Path(out)
    check_place(folder / _REPORT, "out")
    find_device(settings.device)
    asked = dict(one.split("=", 1) for one in settings.ood or ())
    found = find_data(data, reference, asked, settings.max_pixels)
    paths = find_checkpoints(checkpoints)
    course = in_order(
        paths, lambda path: read_file(path, model_settings.trust_pickle), settings.steps_per_epoch
    )
    series = Series(model, model_settings)
    first = _first(course, series)
    plan, problems = _plan(folder / "looks" / "kept", found, first, model, model_settings, options,
                           settings)  # fmt: skip
    monitor = monitor_of(plan)
    run = Run(folder / "looks")
    with run.locked():
        if anew:
            run.clear()
        run.claim(_identity(plan, found, first), {})
        failures = look_at_all(course.saved, plan, series, progress)
        looks = {
            saved: kept
            for saved in course.saved
            if saved not in failures and (kept := read_look(look_path(plan, saved))) is not None
        }
        if not looks:
            one, failure = next(iter(failures.items()))
            raise ValueError(
                f"`checkpoints`: none of {len(failures)} can be looked at; {str(one.path)!r} "
                f"{failure.reason}"
            )
        patience = patience_of(course, settings.patience_steps)
        insights = (*default_insights(settings.polarity_samples), *monitor.insights)
        method = list(looks.values())[-1].method
        facts = _facts(course, len(looks), patience, method)
        story = retell(course, looks, failures, monitor, insights, patience, dict(facts), folder)
        problems = [*course.problems, *_told(failures), *problems]
        replay = Replay(
            story.looks,
            story.closing,
            facts,
            problems,
            [*found.assumed, *first.assumed, *course.doubles],
            story.said,
            found.fingerprint(),
            course.unit,
        )
        _write(replay, folder / _REPORT)
        if story.looks:
            write_bytes(folder / RUN_PAGE, run_page([read_run(folder)]).encode())
    return replay


def read_replay(folder: str | Path, argument: str = "folder") -> Replay:
    """Read what :func:`replay_run` has written.

    Args:
        folder: Its ``out``.
        argument: What to call it in errors.

    Returns:
        The same.

    Raises:
        ValueError: If there is nothing of it, or of another format.
    """
    path = Path(folder) / _REPORT
    try:
        content = json.loads(path.read_text())
        if content.pop("format") != _FORMAT:
            raise ValueError("its format is of another version")
        closing = content.pop("closing")
        closing["keep"] = Keep(**closing["keep"])
        facts = [(name, value) for name, value in content.pop("facts")]
        return Replay(closing=Closing(**closing), facts=facts, **content)
    except FileNotFoundError as error:
        raise ValueError(f"`{argument}`: there is no replay in {str(folder)!r}.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"`{argument}`: {path} cannot be read: {error}.") from error


def _first(course: Course, series: Series) -> LoadedEncoder:
    """Load the first encoder that can be, which says how images are prepared."""
    reasons = []
    for saved in course.saved:
        try:
            return series.load(saved.path)
        except ValueError as error:  # noqa: PERF203
            reasons.append(f"{str(saved.path)!r} {error}")
    raise ValueError(f"`checkpoints`: none of {len(reasons)} has an encoder; {reasons[0]}")


def _plan(
    folder: Path,
    found: Found,
    first: LoadedEncoder,
    model: str | None,
    model_settings: ModelSettings,
    options: ScoreOptions,
    settings: ReplaySettings,
) -> tuple[Plan, list[dict[str, str]]]:
    """Read the images."""
    count = max(settings.max_probe_samples, settings.max_embedding_samples)
    probe = read_images(found.probe, first, count, settings.shuffle, "data")
    problems, reference = list(probe.problems), None
    if found.reference is not None:
        read = read_images(found.reference, first, count, _REFERENCE_SEED, "reference")
        problems, reference = problems + read.problems, read.images
    ood = {}
    for name, source in found.ood.items():
        read = read_images(source, first, count, None, "ood")
        problems, ood[name] = problems + read.problems, read.images
    labelled = bool({"tasks", "separation"} & set(settings.insights or ()))
    plan = Plan(
        folder,
        model,
        model_settings,
        options,
        settings,
        probe.images,
        first.preprocessing,
        reference,
        ood,
        probe.labels if labelled else None,
    )
    return plan, problems


def _identity(plan: Plan, found: Found, first: LoadedEncoder) -> dict[str, Any]:
    """Say what the kept looks depend on, as it comes back from a file."""
    digest = hashlib.sha256()
    for module in Embedder(first.encoder).modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    settings = dataclasses.asdict(plan.settings)
    identity = {
        "format": _FORMAT,
        "model": {
            "name": plan.model,
            "architecture": digest.hexdigest(),
            "preprocessing": plan.preprocessing,
            **dataclasses.asdict(plan.model_settings),
        },
        "data": found.fingerprint(),
        "options": dataclasses.asdict(plan.options),
        "settings": {k: v for k, v in settings.items() if k not in _NOT_DECIDING},
    }
    plain: dict[str, Any] = json.loads(json.dumps(identity))
    return plain


def _told(failures: Mapping[Any, Failure]) -> list[dict[str, str]]:
    return [{"path": str(one.path), "reason": f.reason} for one, f in failures.items()]


def _facts(course: Course, looked: int, patience: int, method: str) -> list[tuple[str, str]]:
    first, last, unit = course.saved[0], course.saved[-1], course.unit
    found = len(course.saved) + len(course.problems)
    return [
        ("checkpoints", f"{looked} of {found} looked at, {unit} {first.step} to {last.step}"),
        (f"{unit}s told by", course.source),
        ("alarm's patience", f"{patience} {unit}s"),
        ("scored", method),
    ]


def _write(replay: Replay, path: Path) -> None:
    closing = replay.closing._asdict() | {"keep": replay.closing.keep._asdict()}
    content = {"format": _FORMAT, **replay._asdict(), "closing": closing}
    write_bytes(path, json.dumps(content, indent=1, ensure_ascii=False).encode())
