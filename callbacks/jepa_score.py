"""The callback: in goes a Trainer at work, out come curves of what its encoder has learned."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from jepa_monitor._checks import check_choice, check_positive, check_positive_int
from jepa_monitor.alarm import MIN_SAMPLES, AlarmReading, CollapseAlarm
from jepa_monitor.callbacks.discovery import (
    EncoderSpec,
    find_encoder,
    find_training_data,
    find_validation_data,
)
from jepa_monitor.callbacks.logging import current_step, log_dashboard, log_report
from jepa_monitor.encoders import Pool, check_pool
from jepa_monitor.monitor import DensityMonitor
from jepa_monitor.options import ScoreOptions
from jepa_monitor.plotting import plot_spectra
from jepa_monitor.report import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["JepaScoreCallback"]

_FAN = 12  # spectra in one picture


class JepaScoreCallback(pl.Callback):
    """Logs JEPA-SCORE and signs of collapse on held-out images during training.

    The first evaluation is before the first training step, then one after every epoch (or every
    ``every_n_steps`` steps), and one in ``Trainer.validate`` and ``Trainer.test``. Training itself
    is left exactly as it would be without the callback. An evaluation that fails is counted in
    ``monitor/failures`` and reported in one warning; training goes on.

    Logged, to all loggers and for ``EarlyStopping`` and ``ModelCheckpoint`` to monitor:

    - ``jepa_score/mean``, ``/std``, ``/p05``, ``/p50``, ``/p95``: the scores, in nats;
    - ``jepa_score/clipped``, ``/below_noise_floor``: singular values below ``eps`` and below the
      rounding error, an image; ``jacobian/*``: quantiles of their logarithms, effective rank;
    - ``log_density/*``: the full change of variables, with the law of the embeddings;
    - ``density/*``: whether that density is calibrated, generalises, meets its precondition
      (Gaussian embeddings), and is the right way up (``density/polarity``);
    - ``collapse/*``: ranks, spread, and their verdict, ``collapse/state`` (0 healthy, 1 dimensional,
      2 complete) and ``collapse/alarm``;
    - ``outliers/*``, ``ood/<name>/*``: the share of outliers, and how well other data are told apart;
    - ``monitor/seconds``, ``/overhead``, ``/images``, ``/nonfinite``, ``/failures``, ``/skipped``.

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
        reference: Training images; ``None`` takes a fixed sample of the training data, as its
            transforms augment them.
        ood: Out-of-distribution images by name.
        every_n_epochs: Evaluate after every so many epochs; default 1, unless ``every_n_steps`` is
            given.
        every_n_steps: Evaluate after every so many optimizer steps instead.
        max_probe_samples: How many images of each set to score.
        max_embedding_samples: How many images of each set to embed.
        polarity_samples: How many probe images to score again in corrupted versions.
        max_overhead: Largest share of the wall time to spend; an evaluation that would exceed it is
            put off and counted in ``monitor/skipped``. The first and the last are always made.
            ``None`` for no limit.
        on_collapse: What to do at the first alarm: ``"warn"``, ``"stop"`` the training, or a
            function that is called with the Trainer and the
            :class:`~jepa_monitor.alarm.AlarmReading`.
        patience_steps: How many steps the first collapse may last before it is an alarm.
        name: Prefix of all tags, which makes room for more than one such callback in a Trainer.
        strict: Raise when an evaluation fails, instead of warning once.
        pool: How outputs become (B, K); see :func:`~jepa_monitor.encoders.pool_output`.
        batch_to_images: Finds the images in a batch of the probe; default
            :func:`~jepa_monitor.probes.batch_images`.
        options: How to score; default ``ScoreOptions(method="auto")``.

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
        reference: Any = None,
        ood: dict[str, Any] | None = None,
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        max_probe_samples: int = 64,
        max_embedding_samples: int = 512,
        polarity_samples: int = 8,
        max_overhead: float | None = 0.05,
        on_collapse: str | Callable[[pl.Trainer, AlarmReading], Any] = "warn",
        patience_steps: int = 1000,
        name: str = "",
        strict: bool = False,
        pool: Pool = "auto",
        batch_to_images: Callable[[Any], Tensor] | None = None,
        options: ScoreOptions | None = None,
    ) -> None:
        if every_n_epochs is not None and every_n_steps is not None:
            raise ValueError(
                "`every_n_epochs` and `every_n_steps` exclude each other, got "
                f"{every_n_epochs} and {every_n_steps}: give one."
            )
        if every_n_steps is not None:
            check_positive_int(every_n_steps, "every_n_steps")
        if encoder is not None and not (isinstance(encoder, str) or callable(encoder)):
            raise TypeError(
                "`encoder` must be a dotted path, a module, a function of the LightningModule or "
                f"None, got {type(encoder).__name__}."
            )
        if max_overhead is not None and check_positive(max_overhead, "max_overhead") > 1:
            raise ValueError(f"`max_overhead` must be a share of at most 1, got {max_overhead}.")
        if not callable(on_collapse):
            check_choice(on_collapse, "on_collapse", ("warn", "stop"))
        if not isinstance(name, str):
            raise TypeError(f"`name` must be a string, got {type(name).__name__}.")
        self.encoder = encoder
        self.probe = probe
        self.reference = reference
        self.ood = ood
        self.polarity_samples = polarity_samples
        self.max_overhead = max_overhead
        self.on_collapse = on_collapse
        self.name = name
        self.strict = strict
        self.alarm = CollapseAlarm(patience_steps)
        self.every_n_steps = every_n_steps
        self.every_n_epochs = check_positive_int(
            1 if every_n_epochs is None else every_n_epochs, "every_n_epochs"
        )
        self.max_probe_samples = check_positive_int(max_probe_samples, "max_probe_samples")
        self.max_embedding_samples = check_positive_int(
            max_embedding_samples, "max_embedding_samples"
        )
        self.batch_to_images = batch_to_images
        self.pool = check_pool(pool)
        self.options = options or ScoreOptions(method="auto")
        self.monitor: DensityMonitor | None = None
        self.history: list[dict[str, float]] = []
        self.failures = 0
        self.skipped = 0
        self._spectra: dict[int, Tensor] = {}
        self._spent = 0.0
        self._started = time.perf_counter()
        self._last_step = -1
        self._alarmed = False
        self._inverted = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the encoder, so that a wrong path is an error before any training.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
        """
        name, encoder = find_encoder(pl_module, self.encoder)
        if self.encoder is None:
            rank_zero_info(
                f"JepaScoreCallback watches {type(pl_module).__name__}.{name} "
                f"({type(encoder).__name__}). Pass `encoder` to watch another module."
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the probe and evaluate the model as training finds it.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
        """
        self._spent, self._started = 0.0, time.perf_counter()
        self.monitor = self.monitor or self._build_monitor(trainer)
        if trainer.is_global_zero:
            log_dashboard(trainer.loggers, self._prefix, self._settings())
        if trainer.global_step == 0:
            self._evaluate(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        """Evaluate after every ``every_n_steps`` optimizer steps.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
            *_: The batch and what the training step made of it.
        """
        steps = self.every_n_steps
        # With accumulated gradients the same step is seen more than once.
        if steps and trainer.global_step % steps == 0 and self._may_evaluate(trainer):
            self._evaluate(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate after every ``every_n_epochs`` epochs.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
        """
        if self._epoch_is_due(trainer) and self._may_evaluate(trainer):
            self._evaluate(trainer, pl_module, current_step(trainer) - 1)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate in ``Trainer.validate``, and in ``fit`` when the epoch ends with a validation.

        Then the value belongs to the very weights that a checkpoint after validation saves.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
        """
        if trainer.sanity_checking:
            return
        if trainer.state.fn == "validate":
            self.monitor = self.monitor or self._build_monitor(trainer)
            self._evaluate(trainer, pl_module)
        elif self._epoch_is_due(trainer) and trainer.is_last_batch and self._may_evaluate(trainer):
            self._evaluate(trainer, pl_module)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate once in ``Trainer.test``.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
        """
        self.monitor = self.monitor or self._build_monitor(trainer)
        self._evaluate(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate the final weights, if the last evaluation was put off.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
        """
        if self._put_off and trainer.global_step > self._last_step:
            self._evaluate(trainer, pl_module)

    @property
    def state_key(self) -> str:
        """Key of the state in checkpoints, one for each name."""
        return self._generate_state_key(name=self.name)

    def state_dict(self) -> dict[str, Any]:
        """Give what a resumed run needs.

        Returns:
            History, counts, spectra and the alarm's state, as plain numbers and tensors.
        """
        return {
            "history": self.history,
            "failures": self.failures,
            "skipped": self.skipped,
            "last_step": self._last_step,
            "alarmed": self._alarmed,
            "inverted": self._inverted,
            "spectra": self._spectra,
            "alarm": self.alarm.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where a checkpoint left off.

        Args:
            state_dict: From :meth:`state_dict`.
        """
        self.history = list(state_dict["history"])
        self.failures = state_dict["failures"]
        self.skipped = state_dict["skipped"]
        self._last_step = state_dict["last_step"]
        self._alarmed = state_dict["alarmed"]
        self._inverted = state_dict["inverted"]
        self._spectra = dict(state_dict["spectra"])
        self.alarm.load_state_dict(state_dict["alarm"])

    def _epoch_is_due(self, trainer: pl.Trainer) -> bool:
        return self.every_n_steps is None and (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def _build_monitor(self, trainer: pl.Trainer) -> DensityMonitor:
        probe, shuffle_seed = self.probe, None
        if probe is None:
            probe = find_validation_data(trainer)
        if probe is None:
            probe, shuffle_seed = find_training_data(trainer), 0
            if probe is None:
                raise ValueError(
                    "`probe` was not given, and the Trainer has neither validation nor training "
                    "data to take images from."
                )
            rank_zero_warn(
                "JepaScoreCallback found no validation data, so it watches images of the training "
                "set, as its transforms augment them: they are not held out. Pass `probe` or "
                "validation data."
            )
        build = functools.partial(
            DensityMonitor,
            probe,
            ood=self.ood,
            max_probe_samples=2
            if getattr(trainer, "fast_dev_run", False)
            else self.max_probe_samples,
            max_embedding_samples=self.max_embedding_samples,
            polarity_samples=self.polarity_samples,
            pool=self.pool,
            batch_to_images=self.batch_to_images,
            options=self.options,
            shuffle_seed=shuffle_seed,
        )
        if self.reference is not None:
            return build(reference=self.reference)
        training = find_training_data(trainer) if trainer.training else None
        if training is None:
            return build()
        try:
            return build(reference=training)
        except (TypeError, ValueError) as error:
            monitor = build()  # if the fault is not the reference's, this raises it
            rank_zero_warn(
                f"JepaScoreCallback goes without a reference, since the training data cannot serve: "
                f"{error} Pass `reference`."
            )
            return monitor

    @property
    def _prefix(self) -> str:
        return f"{self.name}/" if self.name else ""

    @property
    def _put_off(self) -> bool:
        return self.skipped > 0

    def _settings(self) -> str:
        assert self.monitor is not None
        reference, ood = self.monitor.reference, self.monitor.ood
        rows = {
            "probe": f"{len(self.monitor.images)} images",
            "reference": "none" if reference is None else f"{len(reference)} images",
            "out of distribution": ", ".join(ood) or "none",
            "scored of each": self.max_probe_samples,
            "options": self.options,
        }
        return "\n".join(
            ["| setting | value |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())]
        )

    def _may_evaluate(self, trainer: pl.Trainer) -> bool:
        """Say whether there is something new to see and time to look, the same on all ranks."""
        if trainer.global_step <= self._last_step:
            return False
        if self.max_overhead is None or not self.history:
            return True
        cost = self.history[-1][self._prefix + "monitor/seconds"]
        elapsed = time.perf_counter() - self._started
        fits = self._spent + cost <= self.max_overhead * (elapsed + cost)
        fits = bool(trainer.strategy.broadcast(fits))
        self.skipped += not fits
        return fits

    def _evaluate(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, x: int | None = None
    ) -> None:
        assert self.monitor is not None
        self._last_step, started = trainer.global_step, time.perf_counter()
        x = current_step(trainer) if x is None else x
        try:
            _, encoder = find_encoder(pl_module, self.encoder)
            report = self.monitor.evaluate(encoder)
            scalars = report.scalars
            scalars |= self._read_alarm(trainer, report)
        except Exception as error:
            if self.strict:
                raise
            self.failures += 1
            if self.failures == 1:
                rank_zero_warn(
                    f"JepaScoreCallback could not evaluate at step {trainer.global_step}: "
                    f"{type(error).__name__}: {error} Training goes on; further failures are only "
                    "counted, in monitor/failures."
                )
            report, scalars = None, {}
        self._spent += time.perf_counter() - started
        elapsed = max(time.perf_counter() - self._started, 1e-9)
        scalars["monitor/overhead"] = min(1.0, self._spent / elapsed)
        scalars["monitor/failures"] = float(self.failures)
        scalars["monitor/skipped"] = float(self.skipped)
        tagged = {self._prefix + tag: value for tag, value in scalars.items()}
        if report is not None:
            self.history.append({"step": float(trainer.global_step), **tagged})
            self._warn_if_inverted(scalars)
            if trainer.is_global_zero:
                figures = report.figures() | self._fan(trainer.global_step, report)
                log_report(trainer.loggers, report, figures, x, self._prefix)
        # LightningModule.log would make them visible to EarlyStopping and ModelCheckpoint only when
        # the loop at hand ends; here they are from now on, in every hook.
        trainer.callback_metrics.update(
            {tag: torch.tensor(value, device=pl_module.device) for tag, value in tagged.items()}
        )

    def _fan(self, step: int, report: Report) -> dict[str, Figure]:
        """Draw the mean spectra of up to a dozen evaluations, this one among them."""
        values = report.probe.singular_values
        values = values[torch.isfinite(values).all(1)]
        if not len(values):
            return {}
        self._spectra[step] = values.clamp_min(self.options.eps).log().mean(0).float()
        if len(self._spectra) > _FAN:
            steps = sorted(self._spectra)
            gaps = [after - before for before, after in zip(steps[:-2], steps[2:], strict=True)]
            del self._spectra[steps[1 + gaps.index(min(gaps))]]
        return {"jacobian/spectra": plot_spectra(self._spectra, self.options.eps)}

    def _read_alarm(self, trainer: pl.Trainer, report: Report) -> dict[str, float]:
        embeddings = report.probe.embeddings
        if len(embeddings) < MIN_SAMPLES:
            return {}
        reading = self.alarm.update(trainer.global_step, embeddings)
        if reading.alarm and not self._alarmed:
            if callable(self.on_collapse):
                self.on_collapse(trainer, reading)
            else:
                rank_zero_warn(f"JepaScoreCallback at step {trainer.global_step}: {reading.reason}")
                trainer.should_stop |= self.on_collapse == "stop"
        self._alarmed = reading.alarm
        return reading.scalars

    def _warn_if_inverted(self, scalars: dict[str, float]) -> None:
        polarity = scalars.get("density/polarity", 1.0)
        if polarity < 0.5 and not self._inverted and scalars.get("monitor/images", 0) >= 8:
            self._inverted = True
            rank_zero_warn(
                f"JEPA-SCORE is inverted at this stage: corrupted images score higher than the "
                f"probe (density/polarity {polarity:.2f}). Early in training this is common; while "
                "it lasts, a high score does not mean a likely image. Compare log_density/* and "
                "outliers/*, which do not rest on the Jacobian alone."
            )
