"""The shortcut callback for Hugging Face's Trainer: in goes a Trainer at work, out come the same numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from jepa_monitor._checks import check_positive_int
from jepa_monitor._settings import takes
from jepa_monitor._warnings import warn
from jepa_monitor.callbacks.huggingface_base import WatchingTrainerCallback
from jepa_monitor.encoders.processes import Processes
from jepa_monitor.monitor.candidates import (
    NO_WORD,
    ShortcutArguments,
    ShortcutSettings,
    given_candidates,
    held_out_texts,
    training_texts,
)
from jepa_monitor.monitor.shortcut import ShortcutProbe, ShortcutReading, evaluate_shortcuts
from jepa_monitor.monitor.watch import Evaluation, Watch
from jepa_monitor.probes.insertion import Words

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["HuggingFaceShortcutCallback"]


@takes(ShortcutSettings)
class HuggingFaceShortcutCallback(WatchingTrainerCallback):
    """Watches ``transformers.Trainer.train`` for words that a text classifier learns in the place of the task.

    It does what :class:`~jepa_monitor.ShortcutCallback` does in Lightning, and logs the same tags through ``Trainer.log``. The first look is
    before the first step, then one when ``every_n_steps`` steps have passed, and one at the end.

    Args:
        trainer: The Trainer, which knows the model, the data and the tokenizer.
        candidates: ``"auto"`` screens the training texts; a list of words, or a dict of words and the class of each.
        tokenizer: As transformers' are; ``None`` takes the Trainer's ``processing_class``.
        every_n_steps: Look when so many optimizer steps have passed.
        on_shortcut: What an alarm does, once for each: ``"warn"``; ``"stop"`` warns and ends the training; a function gets the Trainer and
            the :class:`~jepa_monitor.monitor.shortcut.ShortcutReading`.
        max_overhead: Largest share of the wall time to spend, once a first minute of looks has been spent;
            ``None`` for no limit.
        strict: Raise when a look fails, instead of warning once.
        **settings: See :class:`~jepa_monitor.monitor.candidates.ShortcutSettings`.

    Raises:
        ImportError: If transformers is not installed.
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of range.

    Example::

        from jepa_monitor.callbacks.huggingface_shortcut import HuggingFaceShortcutCallback
        trainer.add_callback(HuggingFaceShortcutCallback(trainer))
    """

    file = "jepa_monitor_shortcut.pt"

    def __init__(
        self,
        trainer: Any,
        candidates: str | Sequence[str] | Mapping[str, int] = "auto",
        *,
        tokenizer: Any = None,
        every_n_steps: int = 500,
        on_shortcut: str | Callable[[Any, ShortcutReading], Any] = "warn",
        max_overhead: float | None = 0.05,
        strict: bool = False,
        **settings: Unpack[ShortcutArguments],
    ) -> None:
        super().__init__(trainer, on_shortcut, "on_shortcut", "text")
        self.given = None if candidates == "auto" else given_candidates(candidates)
        self.tokenizer = None if tokenizer is None else Words(tokenizer)
        self.settings = ShortcutSettings(**settings)
        self._new_watch = functools.partial(
            Watch,
            type(self).__name__,
            every_n_steps=check_positive_int(every_n_steps, "every_n_steps"),
            max_overhead=max_overhead,
            strict=strict,
            own_tags="monitor/shortcut_",
        )
        self.shortcuts: ShortcutProbe | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Read the texts, screen those of training, and look at the model as training finds it.

        Args:
            args: The Trainer's arguments.
            state: Its state.
            control: What it is to do.
            **_: What else it has.
        """
        self._processes = Processes(args.world_size > 1)
        self.watch = self._new_watch(processes=self._processes)
        self.shortcuts = self._probe()
        self.resume(args, state)
        self.watch.start()
        if self.watch.is_news(state.global_step):
            self._look(state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look when it is time.

        Args:
            args: The Trainer's arguments.
            state: Its state.
            control: What it is to do.
            **_: What else it has.
        """
        assert self.watch is not None
        if self.watch.is_due(state.global_step) and self.watch.has_time(state.global_step):
            self._look(state, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look at the final weights.

        Args:
            args: The Trainer's arguments.
            state: Its state.
            control: What it is to do.
            **_: What else it has.
        """
        assert self.watch is not None
        if self.watch.is_news(state.global_step):
            self._look(state, control)

    def _look(self, state: Any, control: Any) -> None:
        assert self.watch is not None
        look = self.watch.look(state.global_step, functools.partial(self._evaluate, state))
        self.report(look, state, control)

    def _evaluate(self, state: Any) -> Evaluation:
        return evaluate_shortcuts(
            self.shortcuts, self.trainer.model, self._processes, state.global_step > 0
        )

    def _probe(self) -> ShortcutProbe | None:
        """Read the texts and put the words into them; ``None`` where there is no word to put."""
        tokenizer = getattr(self.trainer, "processing_class", None)
        if self.tokenizer is None and tokenizer is None:
            raise ValueError(
                "`tokenizer` was not given, and the Trainer has no `processing_class`. Words are put into texts "
                "by it: pass `tokenizer`."
            )
        words = self.tokenizer or Words(tokenizer)
        held_out = self.trainer.eval_dataset
        if isinstance(held_out, Mapping):
            held_out = next(iter(held_out.values()), None)
        if held_out is None:
            raise ValueError("the Trainer must have an `eval_dataset` of texts, it has none.")

        def read() -> tuple[Tensor, ...]:
            texts = held_out_texts(held_out, self.settings.max_samples, "eval_dataset")
            known = self.trainer.train_dataset
            return (texts, *training_texts(known, self.settings.max_screened, "train_dataset"))

        texts, *training = self._processes.same(read)
        probe = ShortcutProbe.of_screen(words, texts, tuple(training), self.given, self.settings)
        if probe is None:
            warn(f"{type(self).__name__} {NO_WORD}")
            return None
        probe.check(self.trainer.model)
        return probe
