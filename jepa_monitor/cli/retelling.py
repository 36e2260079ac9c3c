"""The story of a run that is over: in go kept looks in order, out come curves, words and a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jepa_monitor.callbacks.logging import log_dashboard, log_pictures, log_scalars, log_text
from jepa_monitor.cli.events import DatedEvents, move_events
from jepa_monitor.cli.kept_looks import KeptLook
from jepa_monitor.cli.looking import Failure
from jepa_monitor.cli.run_order import Course, Saved
from jepa_monitor.insights._drawing import as_png
from jepa_monitor.insights.spectrum import plot_spectra
from jepa_monitor.monitor.alarm import default_patience
from jepa_monitor.monitor.closing import Closing, close_run, in_unit
from jepa_monitor.monitor.monitor import DensityMonitor
from jepa_monitor.monitor.overview import plot_overview
from jepa_monitor.monitor.telling import is_news, remember_spectrum, settings_of, settings_table
from jepa_monitor.monitor.verdict import judge
from jepa_monitor.monitor.watch import Evaluation, Watch

__all__ = ["Story", "patience_of", "retell"]


class Story(NamedTuple):
    """A run, told.

    Args:
        looks: Scalars by tag of every look that succeeded, each with its ``step``.
        said: What the monitor would have warned of, in order.
        closing: The verdict.
    """

    looks: list[dict[str, float]]
    said: list[str]
    closing: Closing


class _Retold(Watch):
    """A watch over what is over: it keeps what it would have warned of."""

    def __init__(self, patience: int) -> None:
        super().__init__("jepa-monitor replay", patience_steps=patience)
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)

    def fail(self, step: int, error: Exception) -> None:
        self.failures += 1
        self.said.append(f"The look at step {step} failed: {error}")


def patience_of(course: Course, asked: int | None) -> int:
    """Say how long a first collapse may last.

    Args:
        course: The checkpoints.
        asked: What the user said.

    Returns:
        Steps, or epochs where these are counted: a tenth of the run, of which at least 1000 steps; how
        many epochs these are is not known.
    """
    if asked is not None:
        return asked
    last = course.saved[-1].step
    return default_patience(last) if course.unit == "step" else max(1, -(-last // 10))


def retell(
    course: Course,
    looks: Mapping[Saved, KeptLook],
    failures: Mapping[Saved, Failure],
    monitor: DensityMonitor,
    insights: Sequence[Any],
    patience: int,
    facts: Mapping[str, str],
    folder: Path,
) -> Story:
    """Tell the story of a run in order, to TensorBoard too.

    Args:
        course: The checkpoints.
        looks: At those that could be looked at.
        failures: Of the others.
        monitor: What looked.
        insights: All of its insights.
        patience: Steps that a first collapse may last.
        facts: What else the numbers depend on.
        folder: Where the event file goes, in place of an earlier one.

    Returns:
        The story.
    """
    scratch = folder / "looks" / "events"
    for file in scratch.glob("*"):  # of a telling that was interrupted
        file.unlink()
    events = DatedEvents(scratch)
    settings = {**settings_of(monitor), "counted in": course.unit, **facts}
    known = next((kept.scalars for kept in looks.values()), {})
    log_dashboard([events], "", settings_table(settings), {"": insights}, known)
    watch = _Retold(patience)
    told: list[dict[str, float]] = []
    cause = ""
    for saved in course.saved:
        kept, failure = looks.get(saved), failures.get(saved)
        if kept is None and (failure is None or not failure.loaded):
            continue
        events.time = saved.time

        def evaluate(kept: KeptLook | None = kept, failure: Failure | None = failure) -> Evaluation:
            if kept is None:
                raise RuntimeError(failure.reason if failure else "there is none")
            return Evaluation(kept.scalars, kept.embeddings)

        look = watch.look(saved.step, evaluate)
        # Of a run that is over nothing was spent, and nothing put off.
        scalars = {
            tag: value
            for tag, value in look.scalars.items()
            if tag not in ("monitor/overhead", "monitor/skipped")
        }
        log_scalars([events], scalars, saved.step)
        if look.began is not None:
            cause = in_unit(look.began.reason, course.unit)
            log_text([events], "monitor/alarm", cause, saved.step)
            watch.say(f"Alarm at {course.unit} {saved.step}: {cause}")
        if kept is not None:
            told.append({"step": float(saved.step), **scalars})
            _picture(events, kept, told, watch, monitor, insights, course.unit)
    closing = close_run(told, cause, course.unit)
    kept_at = closing.keep.step
    path = next((str(saved.path) for saved in course.saved if saved.step == kept_at), None)
    closing = closing._replace(path=path)
    if told:
        log_text([events], "monitor/closing", str(closing), int(told[-1]["step"]))
    events.close()
    move_events(scratch, folder)
    return Story(told, watch.said, closing)


def _picture(
    events: DatedEvents,
    kept: KeptLook,
    told: list[dict[str, float]],
    watch: Watch,
    monitor: DensityMonitor,
    insights: Sequence[Any],
    unit: str,
) -> None:
    """Write the words and pictures of a look."""
    scalars, step = told[-1], int(told[-1]["step"])
    heard = [insight for insight in insights if insight.name not in kept.failed]
    verdict = judge(scalars, heard, step)
    told_in_unit = tuple(in_unit(sentence, unit) for sentence in verdict.sentences)
    verdict = verdict._replace(headline=in_unit(verdict.headline, unit), sentences=told_in_unit)
    if is_news(watch.memory, verdict):
        log_text([events], "monitor/verdict", str(verdict), step)
    pictures = kept.pictures()
    look = kept.look(monitor.images, monitor.options)
    values = look.probe.singular_values
    drawn = remember_spectrum(watch.memory, step, values, monitor.options.eps)
    if pictures:
        spectra = watch.memory.get("spectra")
        figures = {"monitor/overview": plot_overview(look, heard, verdict, told, spectra)}
        if drawn:
            figures["jacobian/spectra"] = plot_spectra(drawn, monitor.options.eps)
        pictures |= {tag: as_png(tag, figure) for tag, figure in figures.items()}
    log_pictures([events], kept.histograms(), pictures, step, "")
