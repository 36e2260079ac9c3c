"""The shortcut callback: in goes a fine-tuning of a text classifier, out comes which words it has learned instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from jepa_monitor._checks import check_choice
from jepa_monitor._settings import takes
from jepa_monitor.callbacks.averaging import averaged_encoder
from jepa_monitor.callbacks.discovery import (
    EncoderSpec,
    find_classifier,
    find_tokenizer,
    is_fitting,
)
from jepa_monitor.callbacks.paced import PacedCallback
from jepa_monitor.callbacks.settings import OnCollapse
from jepa_monitor.encoders.processes import Processes
from jepa_monitor.monitor.candidates import (
    NO_WORD,
    Candidate,
    ShortcutArguments,
    ShortcutSettings,
    given_candidates,
    held_out_texts,
    training_texts,
)
from jepa_monitor.monitor.shortcut import ShortcutProbe, evaluate_shortcuts
from jepa_monitor.monitor.watch import Evaluation
from jepa_monitor.probes.apart import Unread
from jepa_monitor.probes.insertion import Words

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["ShortcutCallback"]


@takes(ShortcutSettings)
class ShortcutCallback(PacedCallback):
    """Watches the fine-tuning of a text classifier for words that it learns in the place of the task.

    Before training the training texts are screened for words that give their class away
    (:func:`~jepa_monitor.functional.screen_tokens`). At each look such a word is put into held-out texts, at a random
    place, and it is counted how many predictions turn to its class; the same for control words, drawn at random
    for each text, of as many tokens. An alarm begins where a word turns more texts than control words do, by more
    than 0.2 with 97.5 % confidence; of the screen's words only one that it calls spurious is an alarm. The first look is before
    the first step and never an alarm, then there is one after every epoch. Training itself is left exactly as it would be. A look that fails
    is counted in ``monitor/shortcut_failures`` and reported in one warning; training goes on.

    Logged, to all loggers and for ``EarlyStopping`` and ``ModelCheckpoint`` to monitor, of the candidate that is worst (the
    reading that a function of ``on_shortcut`` gets, and ``latest``, have all):

    - ``shortcut/flip_rate``, ``/control``, ``/excess``, each with ``_low`` and ``_high``, the ends of its 95 % interval,
      and ``shortcut/texts``, of how many: absent where fewer than 16 texts could turn;
    - ``shortcut/alarm``; ``shortcut/screen_z``: how much the word tells of the class in the training texts;
    - ``shortcut/attention_entropy`` and ``/attention_entropy_with_word``, where layers return their weights;
    - ``shortcut/lora_top_share`` and ``/lora_top_share_random``, where there are LoRA updates;
    - ``monitor/shortcut_seconds``, ``/shortcut_overhead``, ``/shortcut_failures``, ``/shortcut_skipped``.

    Args:
        candidates: ``"auto"`` screens the training texts, which must have labels; a list of words takes these; a dict
            says which class, by its number, each may stand for.
        classifier: What predicts: a dotted path in the LightningModule, a module, or a function of the LightningModule that returns
            one. It takes ``input_ids`` and ``attention_mask``, or a dict with both, and returns logits. ``None`` takes the
            LightningModule itself if it has a ``forward``, else its only submodule with ``get_input_embeddings()``.
        probe: Held-out texts as token ids: a Dataset, a DataLoader, what a tokenizer returns. ``None`` takes the Trainer's
            validation data.
        reference: Training texts with labels, for the screen and for control words; ``None`` takes the Trainer's.
        tokenizer: As transformers' are; ``None`` takes the attribute ``tokenizer`` of the LightningModule, of the
            data module, or of the data's collate function or data set.
        every_n_epochs: Look after every so many epochs; default 1, unless ``every_n_steps`` is given.
        every_n_steps: Look when so many optimizer steps have passed instead.
        on_shortcut: What an alarm does, once for each: ``"warn"``; ``"stop"`` warns and ends the training; a function gets the Trainer,
            the LightningModule and the :class:`~jepa_monitor.monitor.shortcut.ShortcutReading`.
        max_overhead: Largest share of the wall time to spend, once a first minute of looks has been spent;
            ``None`` for no limit.
        name: Prefix of all tags, which makes room for more than one such callback in a Trainer.
        strict: Raise when a look fails, instead of warning once.
        **settings: See :class:`~jepa_monitor.monitor.candidates.ShortcutSettings`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of range, or both cadences are given.

    Example::

        from jepa_monitor import ShortcutCallback
        trainer = L.Trainer(callbacks=[ShortcutCallback(on_shortcut="stop")])
    """

    own_tags = "monitor/shortcut_"
    alarm_text = "monitor/shortcut_alarm"
    looks_at = "predictions"

    def __init__(
        self,
        candidates: str | Sequence[str] | Mapping[str, int] = "auto",
        classifier: EncoderSpec = None,
        probe: Any = None,
        *,
        reference: Any = None,
        tokenizer: Any = None,
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        on_shortcut: OnCollapse = "warn",
        max_overhead: float | None = 0.05,
        name: str = "",
        strict: bool = False,
        **settings: Unpack[ShortcutArguments],
    ) -> None:
        if not callable(on_shortcut):
            check_choice(on_shortcut, "on_shortcut", ("warn", "stop"))
        if classifier is not None and not (isinstance(classifier, str) or callable(classifier)):
            raise TypeError(
                "`classifier` must be a dotted path, a module, a function of the LightningModule or "
                f"None, got {type(classifier).__name__}."
            )
        self.given = None if candidates == "auto" else given_candidates(candidates)
        self.tokenizer = None if tokenizer is None else Words(tokenizer)
        self.settings = ShortcutSettings(**settings)
        self.reference = reference
        self.shortcuts: ShortcutProbe | None = None
        self.latest: Any = None  # the reading of the latest look
        super().__init__(
            find_classifier if classifier is None else classifier,
            probe,
            every_n_epochs=every_n_epochs,
            every_n_steps=every_n_steps,
            on_collapse=on_shortcut,
            max_overhead=max_overhead,
            name=name,
            strict=strict,
        )

    @property
    def wanted_images(self) -> int:
        """How many texts to keep."""
        return self.settings.max_samples

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """The words that are watched, once the texts have been read."""
        return () if self.shortcuts is None else self.shortcuts.candidates

    def see_training(self, batch: Any) -> None:
        """Take note of a training batch that passes; here of none.

        Args:
            batch: Of the first loader, if there are several.
        """

    def prepare(self, trainer: pl.Trainer, probe: Any, shuffle_seed: int | None) -> None:
        """Read the texts, and screen those of training.

        Args:
            trainer: The Trainer.
            probe: The source of held-out texts.
            shuffle_seed: How to draw them, if not the first ones.

        Raises:
            TypeError: If the data are no texts, or the classifier returns no logits.
            ValueError: If there is nothing to screen, or too few texts.
        """
        processes = Processes(trainer.world_size > 1)
        words = self.tokenizer or Words(find_tokenizer(trainer))
        seed = 0 if shuffle_seed is None else shuffle_seed
        (texts,) = processes.same(
            lambda: (held_out_texts(probe, self.settings.max_samples, "probe", seed),)
        )
        training = self._training(trainer, processes)
        if not training and self.given is None:
            self.shortcuts = None
            rank_zero_warn(
                f"{type(self).__name__} has no training texts to screen here, so it says nothing. Pass "
                "`reference`, or `candidates`."
            )
            return
        self.shortcuts = ShortcutProbe.of_screen(words, texts, training, self.given, self.settings)
        if self.shortcuts is None:
            rank_zero_warn(f"{type(self).__name__} {NO_WORD}")
            return
        _, classifier = averaged_encoder(trainer, trainer.lightning_module, self.encoder)
        self.shortcuts.check(classifier)
        rank_zero_info(
            f"{type(self).__name__} watches {', '.join(repr(each.name) for each in self.candidates)}; a look classifies "
            f"{self.shortcuts.passes} texts."
        )

    def _training(self, trainer: pl.Trainer, processes: Processes) -> tuple[Tensor, ...]:
        """Read training texts and, where they have them, their classes; nothing where there are none."""
        if self.reference is not None:
            source = self.given_source(trainer, self.reference)
        else:
            source = self.training_source(trainer) if is_fitting(trainer) else None
        if source is None:
            return ()

        try:
            return processes.same(lambda: training_texts(source, self.settings.max_screened))
        except Unread as error:
            if self.given is not None:
                return ()  # controls are drawn from the held-out texts
            raise ValueError(
                f"`candidates='auto'` cannot read the training texts beside training ({error}). Pass "
                "`reference`, or `candidates`."
            ) from error

    def measure(self, trainer: pl.Trainer, encoder: Any) -> Evaluation:
        """Put the words into held-out texts.

        Args:
            trainer: The Trainer.
            encoder: The classifier.

        Returns:
            What they do to its predictions.
        """
        processes = Processes(trainer.world_size > 1)
        trained = not is_fitting(trainer) or trainer.global_step > 0
        found = evaluate_shortcuts(self.shortcuts, encoder, processes, trained)
        if found.reading is not None:
            self.latest = found.reading
        return found
