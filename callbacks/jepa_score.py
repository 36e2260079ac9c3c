"""The callback: in goes a Trainer at work, out come curves of what its encoder has learned."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from jepa_monitor._settings import divide, takes
from jepa_monitor.callbacks.discovery import EncoderSpec, is_fitting
from jepa_monitor.callbacks.logging import (
    current_step,
    log_dashboard,
    log_folder,
    log_pictures,
    log_text,
    page_writers,
    takes_pictures,
)
from jepa_monitor.callbacks.paced import PacedCallback
from jepa_monitor.callbacks.settings import CallbackArguments, CallbackSettings
from jepa_monitor.callbacks.twins import find_online
from jepa_monitor.insights._drawing import as_png
from jepa_monitor.monitor.loop import evaluate_density
from jepa_monitor.monitor.monitor import DensityMonitor
from jepa_monitor.monitor.overview import plot_overview
from jepa_monitor.monitor.page_file import figures_of, say_verdict, without_prefix, write_page
from jepa_monitor.monitor.report import Report
from jepa_monitor.monitor.run_page import keep_ends
from jepa_monitor.monitor.settings import MonitorArguments, MonitorSettings
from jepa_monitor.monitor.telling import is_news, settings_of, settings_table
from jepa_monitor.monitor.watch import Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from typing_extensions import Unpack

__all__ = ["JepaScoreCallback"]

_DEFAULTS: dict[str, Any] = {"polarity_samples": 8, "max_overhead": 0.05}


class JepaScoreArguments(MonitorArguments, CallbackArguments, total=False):
    """The keyword arguments of :class:`JepaScoreCallback`, for type checkers."""


@takes(MonitorSettings, CallbackSettings, **_DEFAULTS)
class JepaScoreCallback(PacedCallback):
    """Logs JEPA-SCORE and signs of collapse on held-out images during training.

    The first evaluation is before the first training step, then one after every epoch (or every
    ``every_n_steps`` steps), and one in ``Trainer.validate`` and ``Trainer.test``. Training itself
    is left exactly as it would be without the callback. An evaluation that fails is counted in
    ``monitor/failures`` and reported in one warning; training goes on.

    Logged, to all loggers and for ``EarlyStopping`` and ``ModelCheckpoint`` to monitor:

    - ``jepa_score/mean``, ``/std``, ``/p05``, ``/p50``, ``/p95``: the scores, in nats;
    - ``jepa_score/terms``: singular values that a score sums, on which its scale depends;
    - ``jepa_score/clipped``, ``/below_noise_floor``: singular values below ``eps`` and below the
      rounding error, an image; ``jacobian/*``: quantiles of their logarithms, effective rank;
    - ``log_density/*``: the full change of variables, with the law of the embeddings;
    - ``density/*``: whether that density is calibrated, generalises, meets its precondition
      (Gaussian embeddings), and is the right way up (``density/polarity``);
    - ``collapse/*``: ranks, spread, and their verdict, ``collapse/state`` (0 healthy, 1 dimensional,
      2 complete) and ``collapse/alarm``;
    - ``views/*``, ``clusters/*``: signs of quality that need no labels; ``ema/*``: how far a moving
      average trails, where one is watched;
    - ``text/*``: whether the two views of held-out pairs of texts agree by more than all texts do, where
      ``text_pairs`` are given;
    - ``quality/*``: k-NN, linear and few-shot accuracy, where the data yield labels;
    - ``outliers/*``, ``ood/<name>/*``: the share of outliers, and how well other data are told apart;
    - ``monitor/seconds``, ``/overhead``, ``/images``, ``/nonfinite``, ``/failures``, ``/skipped``,
      ``/failed_insights``.

    Where no ``reference`` is given, a fixed sample of the training data serves, as its transforms
    augment them.

    TensorBoard also gets histograms of the scores, a custom-scalars page, the sheet of the least and
    most likely images, the reliability diagram, score against Mahalanobis distance, and the fan of
    spectra over training. ``docs/metrics.md`` defines each.

    Args:
        encoder: What to watch: a dotted path in the LightningModule (``"teacher.backbone"``), a
            module, or a function of the LightningModule that returns an encoder. ``None`` takes the
            first submodule of a usual name, EMA targets first (``target_encoder``, ``teacher``,
            ``encoder``, ``backbone``, ...), and says which.
        probe: Held-out images: a tensor, a Dataset, a DataLoader. ``None`` takes the first images
            of the Trainer's validation data or, where there are none, a fixed sample of the
            training data, with a warning.
        every_n_epochs: Evaluate after every so many epochs; default 1, unless ``every_n_steps`` is
            given.
        every_n_steps: Evaluate after every so many optimizer steps instead.
        **settings: See :class:`~jepa_monitor.monitor.settings.MonitorSettings` and
            :class:`~jepa_monitor.callbacks.settings.CallbackSettings`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of range, or both cadences are given.

    Example::

        from jepa_monitor import JepaScoreCallback
        trainer = L.Trainer(callbacks=[JepaScoreCallback()])
    """

    def __init__(
        self,
        encoder: EncoderSpec = None,
        probe: Any = None,
        *,
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        **settings: Unpack[JepaScoreArguments],
    ) -> None:
        looks, acts = divide({**_DEFAULTS, **settings}, MonitorSettings, CallbackSettings)
        self.settings = MonitorSettings(**looks)
        super().__init__(
            encoder,
            probe,
            every_n_epochs=every_n_epochs,
            every_n_steps=every_n_steps,
            pool=self.settings.pool,
            batch_to_images=self.settings.batch_to_images,
            **acts,
        )
        self.monitor: DensityMonitor | None = None
        self._laid_out: Any = None  # the run whose loggers know how to arrange the curves
        self._announced: Any = None  # the run whose user knows what a look takes
        self._pictures: dict[str, dict[int, bytes]] = {}  # of the run's page
        self._undrawn: Report | None = None  # of the last look, if no logger takes pictures
        self._told_of: dict[str, str] = {}  # settings

    @property
    def wanted_images(self) -> int:
        """How many images of each set to keep."""
        return max(self.settings.max_probe_samples, self.settings.max_embedding_samples)

    def prepare(self, trainer: pl.Trainer, probe: Any, shuffle_seed: int | None) -> None:
        """Read the images.

        Args:
            trainer: The Trainer.
            probe: The source of the probe.
            shuffle_seed: How to draw them, if not the first ones.
        """
        self.monitor = self._build(trainer, probe, shuffle_seed)

    def measure(self, trainer: pl.Trainer, encoder: Any) -> Evaluation:
        """Evaluate the encoder.

        Args:
            trainer: The Trainer.
            encoder: What to look at.

        Returns:
            The report and what it says.

        Raises:
            RuntimeError: If an insight failed and the callback is strict.
        """
        assert self.monitor is not None
        if self._announced is not self._story:
            self._announced = self._story
            rank_zero_info(f"{type(self).__name__}: {self.monitor.plan(encoder)}")
        if self.settings.online is None:
            self.monitor.online = find_online(trainer, trainer.lightning_module, encoder)
        planned = self.monitor.settled
        found = evaluate_density(self._story, self.monitor, encoder)
        if self.monitor.settled != planned:  # a look takes more than was said
            why, plan = found.report.look.agreement, self.monitor.plan(encoder)
            rank_zero_info(f"{type(self).__name__}: {why}; from now on {plan}")
        if self.strict and found.report.failed:
            name, why = next(iter(found.report.failed.items()))
            raise RuntimeError(f"the insight {name!r} failed: {why}")
        if not self._partners:
            return found
        # A CollapseCallback of the same name looks at the same embeddings, only more often.
        scalars = {t: v for t, v in found.scalars.items() if not t.startswith("collapse/")}
        return Evaluation(scalars, found.embeddings[:0], found.report)

    def write(
        self, trainer: pl.Trainer, scalars: dict[str, float], found: Evaluation | None, x: int
    ) -> None:
        """Write numbers to every logger, and pictures to those that take them.

        Args:
            trainer: The Trainer.
            scalars: Finite numbers by tag, prefix included.
            found: The look; ``None`` if it failed.
            x: The x-coordinate.
        """
        try:
            super().write(trainer, scalars, found, x)
        finally:  # one logger's failure is no reason to keep pictures from the others
            self._write_pictures(trainer, found, x)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the final weights, if that was put off, and write the page of the run.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
        """
        super().on_train_end(trainer, pl_module)
        self._close(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Write the page of a run that breaks off: it may say why.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
            exception: What happened.
        """
        if is_fitting(trainer):
            self._close(trainer)

    def _write_pictures(self, trainer: pl.Trainer, found: Evaluation | None, x: int) -> None:
        if self.monitor is not None and self._laid_out is not self._story:
            self._laid_out = self._story
            self._pictures = {}
            self._told_of = {"encoder": self.watched, **settings_of(self.monitor)}
            watching = [c for c in trainer.callbacks if isinstance(c, JepaScoreCallback)]  # type: ignore[attr-defined]
            watched = {callback.prefix: callback.settings.all_insights for callback in watching}
            known = [tag for look in without_prefix(self.history[-1:], self.prefix) for tag in look]
            log_dashboard(
                trainer.loggers, self.prefix, settings_table(self._told_of), watched, known, x
            )
        self._undrawn = None
        if found is None or found.report is None:
            return
        looks = without_prefix(self.history, self.prefix)
        report = dataclasses.replace(found.report, scalars=found.report.scalars | looks[-1])
        verdict = report.judge(looks[-1]["step"])
        if is_news(self._story.memory, verdict):
            log_text(trainer.loggers, f"{self.prefix}monitor/verdict", str(verdict), x)
            rank_zero_info(f"{type(self).__name__} at step {trainer.global_step}: {verdict}")
        if not takes_pictures(trainer.loggers):
            self._undrawn = report
            return
        figures = figures_of(report, self._story.memory)
        figures["monitor/overview"] = plot_overview(
            report.look, report.insights, verdict, looks, self._story.memory.get("spectra")
        )
        pictures = self._keep(figures)
        log_pictures(trainer.loggers, report.histograms, pictures, x, self.prefix)

    def _keep(self, figures: dict[str, Figure]) -> dict[str, bytes]:
        """Draw figures, and keep the first and the last of each for the page."""
        pictures = {tag: as_png(tag, figure) for tag, figure in figures.items()}
        for tag, png in pictures.items():
            keep_ends(self._pictures.setdefault(tag, {}), self._story.last_step, png)
        return pictures

    def _close(self, trainer: pl.Trainer) -> None:
        """Say what there is to say of the whole run, and write its page."""
        if not trainer.is_global_zero or not self._fitted.history:
            return
        stories = [self._fitted, *(partner._fitted for partner in self._partners)]

        def tell(words: str) -> None:
            rank_zero_info(f"{type(self).__name__}: {words}")
            log_text(trainer.loggers, f"{self.prefix}monitor/closing", words, current_step(trainer))

        say_verdict(stories, self.name, tell)
        folder, takers = log_folder(trainer.loggers), page_writers(trainer.loggers)
        if folder is None and not takers:
            return
        called = "" if folder else f"{trainer.loggers[0].name} {trainer.loggers[0].version}"
        place = write_page(stories, self.name, self._rest_of_page, folder, called, takers)
        if place is not None:
            rank_zero_info(f"{type(self).__name__}: what there is to see of this run: {place}")

    def _rest_of_page(self) -> dict[str, Any]:
        """Give settings, insights and pictures; those that no logger took are drawn now."""
        if self._undrawn is not None:
            self._keep(figures_of(self._undrawn, self._fitted.memory))
        return {
            "settings": self._told_of,
            "insights": self.settings.all_insights,
            "pictures": self._pictures,
        }

    def _build(self, trainer: pl.Trainer, probe: Any, shuffle_seed: int | None) -> DensityMonitor:
        settings = self.settings
        if getattr(trainer, "fast_dev_run", False):
            settings = dataclasses.replace(settings, max_probe_samples=2)
        if "probe" in self._passing and (callable(settings.labels) or settings.groups):
            rank_zero_warn(
                "JepaScoreCallback goes without `labels` and `groups`: of batches that pass it keeps the images "
                "alone. Pass `probe`, a data set that can be read by itself."
            )
            settings = dataclasses.replace(settings, labels=None, groups=None)

        def build(settings: MonitorSettings) -> DensityMonitor:
            return DensityMonitor(
                probe,
                shuffle_seed=shuffle_seed,
                distributed=trainer.world_size > 1,
                **settings.arguments,
            )

        given = {
            name: self.given_source(trainer, data) for name, data in (settings.ood or {}).items()
        }
        pairs = settings.text_pairs
        if pairs is not None:
            pairs = tuple(self.given_source(trainer, view) for view in pairs)
        settings = dataclasses.replace(settings, ood=given, text_pairs=pairs)
        if settings.reference is not None:
            reference = self.given_source(trainer, settings.reference)
            return build(dataclasses.replace(settings, reference=reference))
        training = self.training_source(trainer)
        if training is None:
            return build(settings)
        try:
            return build(dataclasses.replace(settings, reference=training))
        except (TypeError, ValueError) as error:
            monitor = build(settings)  # if the fault is not the reference's, this raises it
            rank_zero_warn(
                f"JepaScoreCallback goes without a reference, since the training data cannot serve: "
                f"{error} Pass `reference`."
            )
            return monitor
