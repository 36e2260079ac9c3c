"""What callbacks that look at an encoder share: when to look, at what, and how to say it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch

from jepa_monitor.callbacks.averaging import averaged_encoder, follow_averaging
from jepa_monitor.callbacks.discovery import (
    EncoderSpec,
    is_fitting,
)
from jepa_monitor.callbacks.logging import current_step, log_scalars, log_text
from jepa_monitor.callbacks.reading import ReadingCallback
from jepa_monitor.callbacks.settings import CallbackArguments, CallbackSettings
from jepa_monitor.encoders import Pool, check_pool
from jepa_monitor.encoders.processes import Processes
from jepa_monitor.monitor.alarm import CollapseAlarm
from jepa_monitor.monitor.watch import Evaluation, Reading, Watch, check_overhead
from jepa_monitor.probes.images import BatchToImages, check_batch_to_images

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["EncoderCallback"]


class EncoderCallback(ReadingCallback):
    """Looks at an encoder: takes the looks, writes them, reacts to an alarm, keeps the story of a run.

    A subclass says what to keep of the images (:meth:`prepare`), what to measure (:meth:`measure`)
    and, if it is more than scalars, how to write it (:meth:`write`). A look that fails is counted
    in ``monitor/failures`` and reported in one warning; training goes on. Arguments that cannot be
    right are an error before training: a ``TypeError`` or ``ValueError`` that names them.

    Each ``fit``, ``validate`` and ``test`` has data and a story of its own; only a run that is resumed
    goes on with the story in its checkpoint. ``history``, ``failures``, ``skipped`` and ``alarm`` are
    those of the latest. A checkpoint holds those of the latest ``fit``.

    Args:
        encoder: A dotted path, a module, a function of the LightningModule, or ``None``.
        probe: Held-out images, or ``None`` for the Trainer's.
        pool: How outputs become (B, K).
        batch_to_images: Finds the images in a batch; one function, or one for each set.
        **settings: See :class:`~jepa_monitor.callbacks.settings.CallbackSettings`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of range.
    """

    usual_steps: int | None = (
        None  # between looks, if no cadence is given; ``None`` for one an epoch
    )
    every_n_steps: int | None = None
    own_tags = "monitor/"  # what the tags about the looks themselves begin with
    alarm_text = "monitor/alarm"  # where it is written why an alarm began
    looks_at = "embeddings"  # callbacks that look at something else have other tags

    def __init__(
        self,
        encoder: EncoderSpec = None,
        probe: Any = None,
        *,
        pool: Pool = "auto",
        batch_to_images: BatchToImages = None,
        **settings: Unpack[CallbackArguments],
    ) -> None:
        if encoder is not None and not (isinstance(encoder, str) or callable(encoder)):
            raise TypeError(
                "`encoder` must be a dotted path, a module, a function of the LightningModule or "
                f"None, got {type(encoder).__name__}."
            )
        given = CallbackSettings(**settings)
        self.encoder = encoder
        self.probe = probe
        self.on_collapse = given.on_collapse
        self.patience_steps = given.patience_steps
        self.max_overhead = check_overhead(given.max_overhead)
        self.name = given.name
        self.strict = given.strict
        self.pool = check_pool(pool)
        self.batch_to_images = check_batch_to_images(batch_to_images)
        self._partners: list[EncoderCallback] = []  # with the same tags, which they share out
        super().__init__()
        self._story = self._fitted = self._new_story(together=False)

    @abstractmethod
    def measure(self, trainer: pl.Trainer, encoder: Any) -> Evaluation:
        """Take a look.

        Args:
            trainer: The Trainer.
            encoder: What to look at.

        Returns:
            What was found.
        """

    @property
    def prefix(self) -> str:
        """What all tags begin with."""
        return f"{self.name}/" if self.name else ""

    @property
    def history(self) -> list[dict[str, float]]:
        """The scalars of all looks of the run at hand, or the last one, each with its ``step``."""
        return self._story.history

    @property
    def failures(self) -> int:
        """How many of its looks have failed."""
        return self._story.failures

    @property
    def skipped(self) -> int:
        """How many of its looks were put off for want of time."""
        return self._story.skipped

    @property
    def alarm(self) -> CollapseAlarm:
        """Its alarm."""
        return self._story.alarm

    def write(
        self, trainer: pl.Trainer, scalars: dict[str, float], found: Evaluation | None, x: int
    ) -> None:
        """Write what a look has found; called in the first process only.

        Args:
            trainer: The Trainer.
            scalars: Finite numbers by tag, prefix included.
            found: From :meth:`measure`; ``None`` if it failed.
            x: The x-coordinate.
        """
        log_scalars(trainer.loggers, scalars, x)

    def react(self, trainer: pl.Trainer, pl_module: pl.LightningModule, reading: Reading) -> None:
        """Warn, stop or call, when an alarm begins; called in every process.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
            reading: With which it begins, in one process at least.
        """
        reactions = [callback.on_collapse for callback in (self, *self._partners)]
        functions: list[Callable[..., Any]] = [each for each in reactions if callable(each)]
        for function in functions:
            function(trainer, pl_module, reading)
        stops = "stop" in reactions and is_fitting(trainer)
        trainer.should_stop = trainer.should_stop or stops
        if stops or not functions:
            ending = " Training stops." if stops else ""
            self._story.say(
                f"{type(self).__name__} at step {trainer.global_step}: {reading.reason}{ending}"
            )

    def see_training(self, batch: Any) -> None:
        """Keep in mind whether the images of a training batch differ.

        Args:
            batch: Of the first loader, if there are several.
        """
        self._story.see(batch)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin a new story, and refuse to write under the tags of another callback.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
            stage: What it is about to do.

        Raises:
            ValueError: If another callback has the same name, and is of the same class or looks at
                something else.
        """
        self._partners = []
        for other in trainer.callbacks:  # type: ignore[attr-defined]
            if other is not self and self._has_tags_of(other):
                if not self._sees_what_it_sees(other):
                    raise ValueError(
                        f"`name` must be different for each callback: {type(self).__name__} and "
                        f"{type(other).__name__} both have {self.name!r} and would write to the "
                        "same tags. Give one of them a name; it becomes the prefix of its tags."
                    )
                self._partners.append(other)
        follow_averaging(trainer, self)
        # A Trainer that has made steps goes on with its run when `fit` is called again.
        if stage != "fit" or trainer.global_step == 0:
            self._story = self._new_story(together=trainer.world_size > 1)
        if stage == "fit":
            self._fitted = self._story
        self.forget_images()

    @property
    def state_key(self) -> str:
        """Key of the state in checkpoints, one for each name."""
        return self._generate_state_key(name=self.name)

    def state_dict(self) -> dict[str, Any]:
        """Give what a resumed run needs.

        Returns:
            The story of the latest ``fit``: its looks, what was said, the alarm.
        """
        return self._fitted.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where a checkpoint left off.

        Args:
            state_dict: From :meth:`state_dict`.
        """
        self._fitted.load_state_dict(state_dict)

    def _has_tags_of(self, other: pl.Callback) -> bool:
        """Say whether another callback writes to the tags of this one."""
        return (
            isinstance(other, EncoderCallback)
            and other.name == self.name
            and other.looks_at == self.looks_at
        )

    def _sees_what_it_sees(self, other: EncoderCallback) -> bool:
        """Say whether another kind of callback looks at the same embeddings."""
        mine, its = (
            (callback.encoder, callback.probe, callback.pool, callback.batch_to_images)
            for callback in (self, other)
        )
        same = (a is b or (isinstance(a, str) and a == b) for a, b in zip(mine, its, strict=True))
        return type(self) is not type(other) and all(same)

    def _new_story(self, together: bool) -> Watch:
        return Watch(
            type(self).__name__,
            every_n_steps=self.every_n_steps,
            max_overhead=self.max_overhead,
            patience_steps=self.patience_steps,
            strict=self.strict,
            prefix=self.prefix,
            own_tags=self.own_tags,
            processes=Processes(together),
            batch_to_images=self.batch_to_images,
        )

    def _look(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, x: int | None = None
    ) -> None:
        if self.is_waiting():  # for images that training has not drawn yet
            return
        story = self._story

        def evaluate() -> Evaluation:
            self._prepare(trainer)
            _, encoder = story.processes.agree(
                lambda: averaged_encoder(trainer, pl_module, self.encoder)
            )
            return self.measure(trainer, encoder)

        look = story.look(trainer.global_step, evaluate)
        scalars = look.scalars
        if trainer.is_global_zero:
            try:
                x = current_step(trainer) if x is None else x
                self.write(trainer, scalars, look.evaluation, x)
            except Exception as error:  # a full disk or a logger's server
                if self.strict:
                    raise
                story.fail(trainer.global_step, error)
                scalars |= story.counts()
        self._publish(trainer, pl_module, scalars)
        if look.began is not None:
            self._tell_alarm(trainer, look.began, x)
            self.react(trainer, pl_module, look.began)

    def _tell_alarm(self, trainer: pl.Trainer, reading: Reading, x: int | None) -> None:
        """Write why an alarm began where there is room for words."""
        if not trainer.is_global_zero:
            return
        try:
            x = current_step(trainer) if x is None else x
            log_text(trainer.loggers, self.prefix + self.alarm_text, reading.reason, x)
        except Exception as error:
            if self.strict:
                raise
            self._story.fail(trainer.global_step, error)

    def _publish(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, scalars: dict[str, float]
    ) -> None:
        """Show values to EarlyStopping, ModelCheckpoint and their like."""
        # LightningModule.log would make them visible only when the loop at hand ends; here they are
        # from now on, in every hook.
        trainer.callback_metrics.update(
            {tag: torch.tensor(value, device=pl_module.device) for tag, value in scalars.items()}
        )
