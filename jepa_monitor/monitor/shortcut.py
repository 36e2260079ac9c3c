"""Shortcuts of a text classifier: in go held-out texts and words, out comes what the words do to predictions.

A word that gives a class away in the training texts is learned in the place of the task (arXiv 2506.11402). Whether a
model has learned it shows where the word is put into texts of other classes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jepa_monitor._checks import check_positive_int
from jepa_monitor.encoders.embedder import Embedder
from jepa_monitor.encoders.processes import Processes
from jepa_monitor.encoders.text_classifier import TextClassifier, lora_factors
from jepa_monitor.encoders.texts import text_lengths
from jepa_monitor.functional.flip_rate import FlipRate, flip_rate
from jepa_monitor.functional.lora import lora_top_share, random_lora_top_share
from jepa_monitor.monitor.candidates import (
    LEAST_TEXTS,
    Candidate,
    ShortcutSettings,
    screened_candidates,
)
from jepa_monitor.monitor.outcome import Evaluation
from jepa_monitor.probes.insertion import Words, insert_words

__all__ = ["FLIP_EXCESS", "ShortcutProbe", "ShortcutReading", "evaluate_shortcuts"]

FLIP_EXCESS = 0.2  # of texts that a word turns, beyond a control word: what is an alarm
_BATCH = 32
_WATCHED = 16  # texts of which attention is measured


class ShortcutReading(NamedTuple):
    """What one look has found.

    Args:
        alarm: Whether a candidate that may ring turns more texts than control words do, by more than
            :data:`FLIP_EXCESS` with 97.5 % confidence.
        reason: What the worst candidate does, in a sentence or two.
        flips: Of each candidate, itself with its class, and its flip rate; without those of which too few
            texts could turn.
        scalars: Numbers by tag.
    """

    alarm: bool
    reason: str
    flips: tuple[tuple[Candidate, FlipRate], ...]
    scalars: dict[str, float]

    def quiet(self) -> ShortcutReading:
        """Say the same of a classifier that has not been trained yet: no alarm.

        Returns:
            A new reading.
        """
        return self._replace(alarm=False, scalars={**self.scalars, "shortcut/alarm": 0.0})


class ShortcutProbe:
    """Held-out texts with and without candidates, which classifiers are then shown.

    Args:
        words: The tokenizer.
        texts: Held-out texts, (N, T, 2), as of :func:`~jepa_monitor.encoders.texts.as_texts`.
        candidates: Words to put into them.
        vocabulary: Texts with the words that controls are drawn from; the held-out ones if there are none.
        seed: Of places and controls.

    Raises:
        ValueError: If fewer than 16 texts have words.

    Attributes:
        candidates: As given.
        passes: How many texts a look passes through the model.
    """

    def __init__(
        self,
        words: Words,
        texts: Tensor,
        candidates: Sequence[Candidate],
        vocabulary: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        check_positive_int(len(candidates), "candidates")
        self.candidates = tuple(candidates)
        sets = [each.words for each in candidates]
        room = 1 + max(max(words.lengths(each)) for each in sets)
        said = [text for text in words.texts(texts, room) if text]
        if len(said) < LEAST_TEXTS:
            raise ValueError(
                f"`probe` must hold at least {LEAST_TEXTS} texts with words, got {len(said)}: of fewer "
                "no share can be told."
            )
        made = insert_words(words, said, sets, vocabulary or said, seed)
        rows: dict[str, int] = {}  # each text is looked at once
        versions = [made.plain, *made.with_word, *made.with_control]
        places = [[rows.setdefault(text, len(rows)) for text in each] for each in versions]
        tokens = words.tokens(list(rows))
        order = torch.argsort(text_lengths(tokens), stable=True)  # batches of like length
        self._tokens = tokens[order]
        self._places = torch.argsort(order)[torch.tensor(places)]
        self.passes = len(rows)

    @classmethod
    def of_screen(
        cls,
        words: Words,
        texts: Tensor,
        training: tuple[Tensor, ...],
        given: Sequence[Candidate] | None,
        settings: ShortcutSettings,
    ) -> ShortcutProbe | None:
        """Put words that were given into held-out texts, or else those that a screen of training texts finds.

        Args:
            words: The tokenizer.
            texts: Held-out texts, (N, T, 2).
            training: Training texts and, where there are, their classes; controls are drawn from them. Nothing
                where there are none.
            given: Words to take; ``None`` screens the training texts.
            settings: How many.

        Returns:
            A probe; ``None`` if the screen finds no word.

        Raises:
            ValueError: If there is nothing to screen, or fewer than 16 held-out texts have words.
        """
        vocabulary = words.texts(training[0]) if training else []
        if given is None:
            labels = training[1] if len(training) > 1 else None
            given = screened_candidates(vocabulary, labels, settings.max_candidates)
        return cls(words, texts, given, vocabulary) if given else None

    def check(self, classifier: Any) -> None:
        """Refuse what is no classifier of these texts.

        Args:
            classifier: As for :meth:`measure`.

        Raises:
            TypeError: If it takes no texts, or returns no logits.
            ValueError: If it has no such ids, or a candidate's class is not among its classes.
        """
        embedder = Embedder(TextClassifier(classifier))
        device = embedder.device or torch.device("cpu")
        few = self._tokens[:2].to(device)
        classes = embedder.run(lambda: embedder(few), device).shape[1]
        for candidate in self.candidates:
            if candidate.label is not None and candidate.label >= classes:
                raise ValueError(
                    f"`candidates` name the class {candidate.label} of {candidate.name!r}, the classifier "
                    f"has {classes}, from 0."
                )

    def measure(self, classifier: Any, processes: Processes | None = None) -> ShortcutReading:
        """Look at a classifier, which is left as it was.

        Args:
            classifier: See :class:`~jepa_monitor.encoders.text_classifier.TextClassifier`.
            processes: Those that share the work.

        Returns:
            What the words do.

        Raises:
            ValueError: If logits are not finite.
        """
        processes = processes or Processes(False)
        model = TextClassifier(classifier)
        embedder = Embedder(model, processes=processes)
        device = embedder.device or torch.device("cpu")

        def classify(part: Tensor) -> tuple[Tensor]:
            with torch.no_grad():
                return (torch.cat([embedder(batch).cpu() for batch in torch.split(part, _BATCH)]),)

        (logits,) = processes.map(
            lambda part: embedder.run(lambda: classify(part.to(device)), device), self._tokens
        )
        if not bool(torch.isfinite(logits).all()):
            raise ValueError("`classifier` returns logits that are not finite.")
        before, *others = logits.argmax(1)[self._places]
        count, classes = len(self.candidates), logits.shape[1]
        flips = []
        for place, (candidate, after, control) in enumerate(
            zip(self.candidates, others[:count], others[count:], strict=True)
        ):
            found = _worst(candidate, before, after, control, classes)
            if found is not None:
                flips.append((place, *found))
        scalars = embedder.run(lambda: self._lora(model), device)
        if not flips:
            return ShortcutReading(False, "", (), scalars | {"shortcut/alarm": 0.0})
        place, candidate, worst = max(flips, key=lambda each: (each[1].rings, each[2].excess_low))
        alarm = candidate.rings and worst.excess_low > FLIP_EXCESS
        scalars |= {
            "shortcut/flip_rate": worst.rate,
            "shortcut/flip_rate_low": worst.low,
            "shortcut/flip_rate_high": worst.high,
            "shortcut/control": worst.control,
            "shortcut/control_low": worst.control_low,
            "shortcut/control_high": worst.control_high,
            "shortcut/excess": worst.excess,
            "shortcut/excess_low": worst.excess_low,
            "shortcut/excess_high": worst.excess_high,
            "shortcut/texts": float(worst.texts),
            "shortcut/alarm": float(alarm),
        }
        if candidate.finding is not None:
            scalars["shortcut/screen_z"] = candidate.finding.z
        scalars |= embedder.run(lambda: self._entropy(model, place, device), device)
        return ShortcutReading(
            alarm,
            _sentence(candidate, worst, alarm),
            tuple((each, rate) for _, each, rate in flips),
            scalars,
        )

    def _entropy(self, model: TextClassifier, place: int, device: torch.device) -> dict[str, float]:
        """Measure attention on the first texts: as they are, with a word, with its control."""
        found = {}
        count = len(self.candidates)  # a longer text has another entropy: hence the control
        names = {"": 0, "_with_word": 1 + place, "_with_control": 1 + count + place}
        for name, version in names.items():
            tokens = self._tokens[self._places[version][:_WATCHED]].to(device)
            entropy = model.attention_entropy(tokens)
            if entropy is None or not bool(torch.isfinite(entropy).all()):
                return {}
            found[f"shortcut/attention_entropy{name}"] = float(entropy.mean())
        return found

    @staticmethod
    def _lora(model: TextClassifier) -> dict[str, float]:
        shares, random = [], []
        for down, up in lora_factors([model]):
            share = float(lora_top_share(down, up))
            if not math.isnan(share):  # as an update of zero has
                shares.append(share)
                rank = min(len(down), down.shape[1], len(up))
                random.append(_random_share(rank, down.shape[1], len(up)))
        if not shares:
            return {}
        return {
            "shortcut/lora_top_share": sum(shares) / len(shares),
            "shortcut/lora_top_share_random": sum(random) / len(random),
        }


def evaluate_shortcuts(
    probe: ShortcutProbe | None, classifier: Any, processes: Processes, trained: bool
) -> Evaluation:
    """Look at a classifier, as a watch asks for it.

    Args:
        probe: What to show it; ``None`` where there is no word to put into texts.
        classifier: As for :meth:`ShortcutProbe.measure`.
        processes: Those that share the work.
        trained: Whether it has learned yet: a head that is drawn at random turns where it turns.

    Returns:
        The numbers, and what the alarm says.
    """
    nothing = torch.empty(0, 1)
    if probe is None:
        return Evaluation({}, nothing)
    began = time.perf_counter()
    reading = probe.measure(classifier, processes)
    if not trained:
        reading = reading.quiet()
    scalars = {"monitor/shortcut_seconds": time.perf_counter() - began}
    return Evaluation(scalars, nothing, None, reading)


_random_share = cache(
    lambda rank, inputs, outputs: float(random_lora_top_share(rank, inputs, outputs))
)


def _worst(
    candidate: Candidate, before: Tensor, after: Tensor, control: Tensor, classes: int
) -> tuple[Candidate, FlipRate] | None:
    """Count for the candidate's class, or for the one to which it turns most."""
    labels = range(classes) if candidate.label is None else [candidate.label]
    found = [
        (label, flip_rate(before, after, control, label))
        for label in labels
        if int((before != label).sum()) >= LEAST_TEXTS
    ]
    if not found:
        return None
    label, rate = max(found, key=lambda each: each[1].excess_low)
    return candidate._replace(label=label), rate


def _sentence(candidate: Candidate, found: FlipRate, alarm: bool) -> str:
    shown = f" (such as {candidate.words[0]})" if candidate.words[0] != candidate.name else ""
    said = (
        f"The word {candidate.name!r}{shown} turned {found.flips} of {found.texts} held-out predictions to class "
        f"{candidate.label}, control words {found.controls} (excess {found.excess:.2f}, 95 % interval "
        f"{found.excess_low:.2f} to {found.excess_high:.2f})."
    )
    if candidate.finding is not None:
        with_it = round(candidate.finding.share * candidate.finding.texts)
        said += (
            f" Of the {candidate.finding.texts} training texts with it {with_it} are of this class."
        )
    if alarm:
        said += (
            " It is a shortcut: how well texts with the word are classified says nothing of texts without it. Look at "
            "the training texts with it, and take it out of them."
        )
    return said
