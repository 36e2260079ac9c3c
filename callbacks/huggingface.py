"""The callback for Hugging Face's Trainer: in goes a Trainer at work, out come the same curves."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from jepa_monitor._settings import takes
from jepa_monitor._warnings import warn
from jepa_monitor.callbacks.huggingface_base import WatchingTrainerCallback
from jepa_monitor.monitor.alarm import AlarmReading, default_patience
from jepa_monitor.monitor.loop import DensityWatch
from jepa_monitor.monitor.monitor import DensityMonitor
from jepa_monitor.monitor.settings import MonitorArguments, MonitorSettings
from jepa_monitor.probes.sources import Source, may_share_images

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["HuggingFaceCallback"]


@takes(MonitorSettings)
class HuggingFaceCallback(WatchingTrainerCallback):
    """Logs JEPA-SCORE and signs of collapse during ``transformers.Trainer.train``.

    The first look is before the first step, then one when ``every_n_steps`` steps have passed, and one
    at the end. Values go where the Trainer's own go, through ``Trainer.log``. What goes wrong in a look
    is one warning and a count, ``monitor/failures``; images that cannot be read are an error before
    training. Each checkpoint of the Trainer gets a small file with the story of the run, with which a
    resumed run goes on. At the end ``run.html``, the page of the run, lies in ``output_dir``. With several
    processes, all of them share the work.

    Args:
        trainer: The Trainer, which knows the data and the loggers.
        encoder: What to watch: a dotted path in the model, a module, or a function of the model.
            ``None`` takes the model without its head (``model.base_model``). Of texts the mean of its
            states, or what a :class:`~jepa_monitor.encoders.TokenEncoder` pools.
        probe: Held-out images or tokenized texts; ``None`` takes the Trainer's ``eval_dataset`` or, where there is none,
            a fixed sample of its ``train_dataset``, with a warning.
        every_n_steps: Look when so many optimizer steps have passed.
        max_overhead: Largest share of the wall time to spend, once a first minute of looks has been
            spent; ``None`` for no limit.
        on_collapse: What an alarm does, once for each collapse: ``"warn"``; ``"stop"`` warns and ends
            the training; a function gets the Trainer and the
            :class:`~jepa_monitor.monitor.alarm.AlarmReading`.
        patience_steps: Steps that a first, early collapse may last. Default: a tenth of the planned
            steps, and at least 1000.
        strict: Raise when a look fails, instead of warning once.
        **settings: See :class:`~jepa_monitor.monitor.settings.MonitorSettings`; ``reference`` is by
            default the Trainer's ``train_dataset``, as its transforms augment it.

    Raises:
        ImportError: If transformers is not installed.
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of range.

    Example::

        from jepa_monitor.callbacks.huggingface import HuggingFaceCallback
        trainer.add_callback(HuggingFaceCallback(trainer, every_n_steps=500))
        trainer.train()
    """

    file = "jepa_monitor.pt"
    watch: DensityWatch | None = None

    def __init__(
        self,
        trainer: Any,
        encoder: str | nn.Module | Callable[[Any], Any] | None = None,
        probe: Any = None,
        *,
        every_n_steps: int = 500,
        max_overhead: float | None = 0.05,
        on_collapse: str | Callable[[Any, AlarmReading], Any] = "warn",
        patience_steps: int | None = None,
        strict: bool = False,
        **settings: Unpack[MonitorArguments],
    ) -> None:
        if encoder is not None and not (isinstance(encoder, str) or callable(encoder)):
            raise TypeError(
                "`encoder` must be a dotted path, a module, a function of the model or None, got "
                f"{type(encoder).__name__}."
            )
        super().__init__(trainer, on_collapse, "on_collapse", "hf")
        self.encoder = encoder
        self.probe = probe
        self.patience_steps = patience_steps
        self._settings = settings
        self._new_watch = functools.partial(
            DensityWatch, every_n_steps=every_n_steps, max_overhead=max_overhead, strict=strict
        )

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Read the images and look at the model as training finds it.

        Args:
            args: The Trainer's arguments.
            state: Its state.
            control: What it is to do.
            **_: What else it has.
        """
        monitor = self._monitor(args.world_size > 1)
        patience = self.patience_steps or default_patience(state.max_steps)
        self.watch = self._new_watch(monitor, patience_steps=patience)
        self.resume(args, state)
        self._look(state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look when it is time.

        Args:
            args: The Trainer's arguments.
            state: Its state.
            control: What it is to do.
            **_: What else it has.
        """
        self._look(state, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look at the final weights, and write the page of the run.

        Args:
            args: The Trainer's arguments.
            state: Its state.
            control: What it is to do.
            **_: What else it has.
        """
        self._look(state, control, last=True)
        if self.history:
            assert self.watch is not None
            self.watch.write_page(args.output_dir)

    def _look(self, state: Any, control: Any, last: bool = False) -> None:
        assert self.watch is not None
        look = self.watch.ask(self._encoder, state.global_step, last=last)
        if look:
            self.report(look, state, control)

    def _encoder(self) -> Any:
        model = self.trainer.model
        if self.encoder is None:
            return getattr(model, "base_model", model)
        if isinstance(self.encoder, str):
            return operator.attrgetter(self.encoder)(model)
        return self.encoder if isinstance(self.encoder, nn.Module) else self.encoder(model)

    def _monitor(self, distributed: bool) -> DensityMonitor:
        probe, seed, settings = self.probe, None, dict(self._settings)
        if probe is None:
            probe = self.trainer.eval_dataset
            if isinstance(probe, Mapping):
                probe = next(iter(probe.values()), None)
        training = self.trainer.train_dataset
        if probe is None:
            probe, seed = training, 0
            warn(
                f"{type(self).__name__} found no `eval_dataset`, so it watches images of the "
                "training set: they are not held out. Pass `probe`."
            )
        else:
            reference = settings.get("reference")
            if reference is None or may_share_images(reference, training):
                given = training if reference is None else reference
                settings["reference"] = Source(given, for_training=True)
        return DensityMonitor(probe, shuffle_seed=seed, distributed=distributed, **settings)  # type: ignore[arg-type]
