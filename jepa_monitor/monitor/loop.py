"""Watch a run in a plain loop: in go an encoder and the steps done, out comes a look when it is due."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jepa_monitor._checks import check_positive_int
from jepa_monitor.encoders.processes import Processes
from jepa_monitor.insights._drawing import as_html, as_png
from jepa_monitor.insights.registry import default_insights
from jepa_monitor.monitor.closing import close_run
from jepa_monitor.monitor.overview import plot_overview
from jepa_monitor.monitor.page_file import figures_of, write_page
from jepa_monitor.monitor.pair_shortcut import follow_pairs
from jepa_monitor.monitor.report import Report
from jepa_monitor.monitor.telling import remember_spectrum, settings_of
from jepa_monitor.monitor.watch import Evaluation, Look, Watch, check_overhead

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jepa_monitor.monitor.monitor import DensityMonitor

__all__ = ["DensityWatch", "evaluate_density"]


def evaluate_density(watch: Watch, monitor: DensityMonitor, encoder: Any) -> Evaluation:
    """Have a monitor evaluate an encoder, and the watch remember what later looks compare with.

    Args:
        watch: The story of the run.
        monitor: What evaluates.
        encoder: What to look at.

    Returns:
        What was found.
    """
    monitor.memory = watch.memory.setdefault("monitor", {})
    report = monitor.evaluate(encoder)
    values = report.probe.singular_values
    remember_spectrum(watch.memory, watch.last_step, values, monitor.options.eps)
    told = follow_pairs(watch.memory, watch.last_step, report.scalars)
    return Evaluation({**report.scalars, **told}, report.probe.embeddings, report)


class DensityWatch(Watch):
    """Watches an encoder in a training loop of your own; made by :meth:`DensityMonitor.watch`.

    Args:
        monitor: What evaluates.
        every_n_steps: Look when so many steps have passed.
        max_overhead: See :class:`Watch`.
        patience_steps: See :class:`Watch`.
        strict: See :class:`Watch`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        monitor: DensityMonitor,
        *,
        every_n_steps: int = 1,
        max_overhead: float | None = 0.05,
        patience_steps: int | None = None,
        strict: bool = False,
    ) -> None:
        check_positive_int(every_n_steps, "every_n_steps")
        if patience_steps is not None:
            check_positive_int(patience_steps, "patience_steps")
        if not isinstance(strict, bool):
            raise TypeError(f"`strict` must be True or False, got {strict!r}.")
        super().__init__(
            "DensityMonitor",
            every_n_steps=every_n_steps,
            max_overhead=check_overhead(max_overhead),
            patience_steps=patience_steps,
            strict=strict,
            processes=Processes(monitor.distributed),
            batch_to_images=monitor.batch_to_images,
        )
        self.monitor = monitor
        self._encoder = ""  # of the last look, in words
        self._report: Report | None = None  # of the last look that succeeded

    def __call__(self, encoder: Any, step: int, *, last: bool = False) -> Look:
        """Look if it is time: at the first call, and when ``every_n_steps`` steps have passed.

        What goes wrong is one warning and a count, ``monitor/failures``; with ``strict`` it is
        raised. An alarm is a warning, once for each collapse.

        Args:
            encoder: What to look at.
            step: Training steps done, which must not decrease.
            last: Whether these are the final weights, which are looked at in any case.

        Returns:
            The look. If none was due it is false and has no scalars.
        """
        look = self.ask(lambda: encoder, step, last=last)
        if look.began is not None:
            self.say(f"{self.who} at step {step}: {look.began.reason}")
        return look

    def ask(self, find: Callable[[], Any], step: int, *, last: bool = False) -> Look:
        """Look if it is time, and leave it to the caller to react to an alarm.

        Args:
            find: Finds the encoder; that it fails is a failure of the look.
            step: Training steps done, which must not decrease.
            last: Whether these are the final weights.

        Returns:
            The look.
        """
        due = self.is_due(step)
        if self.last_step < 0:
            self.start()
        elif not (due and self.has_time(step)) and not (last and self.is_news(step)):
            return Look(step)

        def evaluate() -> Evaluation:
            encoder = find()
            self._encoder = getattr(encoder, "__qualname__", type(encoder).__name__)
            return evaluate_density(self, self.monitor, encoder)

        look = self.look(step, evaluate)
        if look.evaluation is not None:
            report = look.evaluation.report
            self._report = replace(report, scalars=report.scalars | look.scalars)
        return look

    def overview(self) -> Figure:
        """Draw the run up to the last look in one picture: what it says, its curves, its images.

        Returns:
            The figure, for ``SummaryWriter.add_figure`` and its like.

        Raises:
            ValueError: If no look has succeeded yet.
        """
        report = self._report
        if report is None:
            raise ValueError("there is nothing to draw: no look has succeeded yet.")
        verdict, spectra = report.judge(self.history[-1]["step"]), self.memory.get("spectra")
        return plot_overview(report.look, report.insights, verdict, self.history, spectra)

    def _repr_html_(self) -> str | None:
        """Show the verdict on the run and its overview in a notebook."""
        if self._report is None:
            return None
        words = str(close_run(self.history, self.memory.get("cause")))
        picture = as_html("monitor/overview", self.overview(), words)
        return f"<p>{html.escape(words)}</p>{picture}"

    def write_page(self, folder: str | Path) -> Path | None:
        """Write the page of the run, ``run.html``, which opens in a browser and loads nothing.

        It has the verdict, which checkpoint to keep, all curves with what is healthy, the pictures of
        the last look, and what the numbers depend on. Call it when the run is over, or at any time
        before. The first process alone writes it.

        Args:
            folder: Where; that of the run's logs. It is made if it is not there.

        Returns:
            Its path; ``None`` in another process, or if it could not be written, which is a warning.

        Raises:
            TypeError: If ``folder`` is no path.
        """
        if not isinstance(folder, (str, Path)):
            raise TypeError(f"`folder` must be a path, got {type(folder).__name__}.")
        if self.processes.rank != 0:
            return None
        return write_page([self], "", self._rest_of_page, Path(folder))

    def _rest_of_page(self) -> dict[str, Any]:
        """Give settings, insights and pictures: none of a run that was resumed and not looked at since."""
        report, pictures = self._report, {}
        if report is not None:
            step, figures = int(self.history[-1]["step"]), figures_of(report, self.memory)
            pictures = {tag: {step: as_png(tag, figure)} for tag, figure in figures.items()}
        monitor = self.monitor
        return {
            "settings": {"encoder": self._encoder, **settings_of(monitor)},
            "insights": (*default_insights(monitor.polarity_samples), *monitor.insights),
            "pictures": pictures,
        }
