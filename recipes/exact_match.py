"""How often is a decoder right? In go held-out descriptions after training, out come shares with intervals."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from torch import Tensor

from jepa_monitor.functional import wilson_interval
from jepa_monitor.recipes.decoders import answers
from jepa_monitor.recipes.evaluation import undisturbed
from jepa_monitor.recipes.expressions import is_rare


class Answers(NamedTuple):
    """What a decoder answered.

    Args:
        right: Which answers are the expression, token by token, (N,), bool.
        rare: Which expressions end in the rarest suffix, (N,), bool.
        rare_answers: Which answers do, (N,), bool.
    """

    right: Tensor
    rare: Tensor
    rare_answers: Tensor

    @property
    def scalars(self) -> dict[str, float]:
        """``eval/exact_match`` and ``text/rare_recall`` with the ends of their 95 % intervals."""
        found: dict[str, float] = {}
        shares = {
            "eval/exact_match": self.right,
            "text/rare_recall": self.rare_answers[self.rare],
        }
        for tag, hits in shares.items():
            if len(hits):
                ends = wilson_interval(hits.sum(), len(hits))
                found[tag] = float(hits.double().mean())
                found[f"{tag}_low"], found[f"{tag}_high"] = (float(end) for end in ends)
        return found


class ExactMatch(Callback):
    """Have the decoder answer held-out descriptions after training, and say how often it is right.

    Logs ``eval/exact_match``, ``text/rare_recall`` (the share of expressions with the rarest suffix that are answered with one
    that has it), and the ends of their intervals.

    Args:
        pairs: How many held-out pairs, at most.
        tokens: Of an answer at most.

    Raises:
        ValueError: If a number is less than 1.
    """

    def __init__(self, pairs: int = 2000, tokens: int = 40) -> None:
        for name, value in {"pairs": pairs, "tokens": tokens}.items():
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        self.pairs = pairs
        self.tokens = tokens
        self.found: Answers | None = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ask and count.

        Args:
            trainer: The trainer, with a ``PairDataModule``.
            pl_module: An ``LlmJepa``.
        """
        if not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        module: Any = pl_module
        pairs, codec = data.held_out[: self.pairs], data.codec
        prompts = [codec.description(pair) for pair in pairs]
        with undisturbed(module, pl_module.device):
            found = answers(module.decoder, prompts, self.tokens, codec.end)
        patterns = [codec.pattern(answer) for answer in found]
        self.found = Answers(
            torch.tensor([a == pair.pattern for a, pair in zip(patterns, pairs, strict=True)]),
            torch.tensor([pair.rare for pair in pairs]),
            torch.tensor([is_rare(answer) for answer in patterns]),
        )
        scalars = self.found.scalars
        for logger in trainer.loggers:
            logger.log_metrics(scalars, step=trainer.global_step)
        trainer.callback_metrics.update({k: torch.tensor(v) for k, v in scalars.items()})
        rare = int(self.found.rare.sum())
        console = Console()
        console.print(_share("Exact match", scalars, "eval/exact_match", len(pairs)))
        console.print(_share("Rarest suffix answered with it", scalars, "text/rare_recall", rare))


def _share(name: str, scalars: dict[str, float], tag: str, count: int) -> str:
    if tag not in scalars:
        return f"{name}: there is none among these pairs."
    ends = " to ".join(f"{scalars[f'{tag}_{end}']:.1%}" for end in ("low", "high"))
    return f"{name}: {scalars[tag]:.1%} of {count} held-out pairs (95 % interval {ends})."
