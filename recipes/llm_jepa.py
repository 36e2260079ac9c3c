"""LLM-JEPA (arXiv 2509.14252) and Semantic Tube Prediction (2602.22617): a decoder that predicts one view of a pair from the other.

Run ``python -m jepa_monitor.recipes.llm_jepa --arm jepa`` to train a small decoder to turn English descriptions into regular
expressions in two minutes; see ``docs/recipes/llm_jepa.md``. To change the method, edit one function: ``view_distance`` for how
far two views are apart, ``LlmJepa.terms`` for what a step minimises, ``expressions.py`` for the language.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser
from torch import Tensor
from torch.nn import functional as F

from jepa_monitor._checks import check_choice
from jepa_monitor.encoders import TokenEncoder
from jepa_monitor.functional import draw_spans, tube_loss
from jepa_monitor.recipes.cli import ClosingTable, MonitoredCLI, parse, train
from jepa_monitor.recipes.decoders import PREDICTORS, WordDecoder, load_decoder
from jepa_monitor.recipes.exact_match import ExactMatch
from jepa_monitor.recipes.module import ScheduledModule, check_warmup
from jepa_monitor.recipes.text_pairs import PairDataModule, build_codec

DISTANCES = ("cosine", "l2", "mse", "infonce")
_TEMPERATURE = 0.07  # of InfoNCE
_GRADIENTS_EVERY = 50  # steps: how much each term pulls


class Arm(NamedTuple):
    """What is added to the loss of the language model.

    Args:
        term: ``"views"``: the distance of the two views; ``"tube"``: how far the states' path is from straight; or
            nothing.
        distance: Of the views, one of ``DISTANCES``.
        weight: λ.
    """

    term: str
    distance: str
    weight: float


ARMS = {
    "lm": Arm("", "cosine", 0.0),
    "jepa": Arm("views", "cosine", 1.0),
    "stp": Arm("tube", "cosine", 0.02),
    "collapse": Arm("views", "l2", 100.0),  # on purpose
}
DEFAULTS: dict[str, Any] = {
    "monitor.max_probe_samples": 16,
    "monitor.max_embedding_samples": 256,
    "monitor.every_n_steps": 75,
}


def answer_loss(logits: Tensor, ids: Tensor, answer: Tensor) -> Tensor:
    """Cross-entropy of the tokens of the answers, each told by what stands before it.

    Args:
        logits: (B, T, V).
        ids: (B, T).
        answer: Which tokens are the answer's, (B, T), bool; never the first.

    Returns:
        Mean over all of them, in nats, 0-dimensional.
    """
    told = answer[:, 1:]
    return F.cross_entropy(logits[:, :-1][told], ids[:, 1:][told])


def view_distance(first: Tensor, second: Tensor, kind: str) -> Tensor:
    """How far predicted embeddings of one view are from those of the other; gradients go to both.

    Args:
        first: Predicted, (B, K).
        second: Of the other view, (B, K).
        kind: ``"cosine"``: 1 − cos; ``"l2"``: length of the difference; ``"mse"``: mean square of its numbers; ``"infonce"``:
            cross-entropy of the own other view among those of the batch, at temperature 0.07.

    Returns:
        Mean over the batch, 0-dimensional.
    """
    if kind == "l2":
        lengths: Tensor = (first - second).norm(dim=1)
        return lengths.mean()
    if kind == "mse":
        return F.mse_loss(first, second)
    if kind == "infonce":
        similarity = F.normalize(first, dim=1) @ F.normalize(second, dim=1).T
        own = torch.arange(len(first), device=first.device)
        return F.cross_entropy(similarity / _TEMPERATURE, own)
    return 1 - F.cosine_similarity(first, second, dim=1).mean()


class LlmJepa(ScheduledModule):
    """A decoder that answers descriptions with expressions, and a term that wants something of its embeddings.

    The loss is that of the language model plus λ times the term of the arm. The embedding of a text is the last layer's
    state of its last token; views are encoded apart from one another. Descriptions are followed by predictor tokens, of which the
    decoder itself makes the prediction. Neither view is detached, and there is no target network.

    Every random choice depends on ``(seed, epoch, batch)`` and every schedule on the global step, so a run resumed from
    the end of an epoch equals the uninterrupted one.

    Logs ``train/loss``, ``train/lm``, ``train/jepa`` or ``train/stp``, ``train/gradient_ratio`` (of the length of the term's gradient,
    weighted, to the language model's), ``train/lr``, ``train/weight_decay``, and of held-out pairs ``val/lm``, ``val/jepa`` (1 − cos) and
    ``val/stp``.

    Args:
        arm: One of ``ARMS``.
        decoder: ``hf/NAME`` or ``hf/FOLDER`` of a decoder of transformers; by default a small one, described by the next four.
        width: Numbers of a state.
        depth: Transformer blocks.
        heads: Attention heads.
        context: Tokens of a text at most.
        predictors: Tokens k behind a description; 0: its own last state is the prediction.
        distance: Of the views, one of ``DISTANCES``; the arm's by default.
        weight: λ; the arm's by default.
        learning_rate: Highest learning rate of AdamW.
        final_learning_rate: Learning rate of the last step.
        warmup: Share of the steps in which the learning rate rises, in [0, 1).
        weight_decay: Weight decay; none on biases, norms and positions.
        seed: Of weights and spans.

    Raises:
        ValueError: If a number is out of its range or a name is unknown.
    """

    def __init__(
        self,
        arm: str = "jepa",
        decoder: str | None = None,
        width: int = 128,
        depth: int = 2,
        heads: int = 4,
        context: int = 64,
        predictors: int = 0,
        distance: str | None = None,
        weight: float | None = None,
        learning_rate: float = 2e-3,
        final_learning_rate: float = 1e-6,
        warmup: float = 0.1,
        weight_decay: float = 0.01,
        seed: int = 0,
    ) -> None:
        super().__init__()
        known = ARMS[check_choice(arm, "arm", tuple(ARMS))]
        self.term = known.term
        self.distance = check_choice(distance or known.distance, "distance", DISTANCES)
        self.weight = known.weight if weight is None else weight
        check_warmup(warmup)
        if not 0 <= predictors <= PREDICTORS:
            raise ValueError(f"predictors={predictors} must be in 0 … {PREDICTORS}.")
        if self.weight < 0:
            raise ValueError(f"weight={weight} must be at least 0.")
        self.save_hyperparameters()
        self.codec = build_codec(decoder)
        self.decoder: Any
        if decoder is None:
            self.decoder = WordDecoder(self.codec.size, width, depth, heads, context)
        else:
            self.decoder = load_decoder(decoder.removeprefix("hf/"), self.codec.size)

    @property
    def encoder(self) -> TokenEncoder:
        """The decoder as an encoder of texts: the last state of the last token."""
        return TokenEncoder(self.decoder, pool="last")

    def states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Compute the last layer's states.

        Args:
            ids: (B, T).
            mask: Which tokens are real, (B, T); padding is behind the text.

        Returns:
            (B, T, K).
        """
        body: Any = getattr(self.decoder, "base_model", self.decoder)
        found = body(input_ids=ids, attention_mask=mask)
        states: Tensor = found if isinstance(found, Tensor) else found.last_hidden_state
        return states

    def embeddings(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Take the state of the last token.

        Args:
            ids: (B, T).
            mask: Which tokens are real.

        Returns:
            (B, K).
        """
        rows = torch.arange(len(ids), device=ids.device)
        return self.states(ids, mask)[rows, mask.sum(1) - 1]

    def terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compute what a step minimises.

        Args:
            batch: Of ``collate``.

        Returns:
            ``lm``, and ``jepa`` or ``stp`` where the arm has one; 0-dimensional.
        """
        states = self.states(batch["pair_ids"], batch["pair_mask"])
        logits = self.decoder.get_output_embeddings()(states)
        terms = {"lm": answer_loss(logits, batch["pair_ids"], batch["pair_answer"])}
        if self.term == "views":
            views = self.views(batch)
            terms["jepa"] = view_distance(*views, self.distance)
        elif self.term == "tube":
            spans = draw_spans(batch["pair_mask"].sum(1))
            terms["stp"] = tube_loss(states, spans).mean()
        return terms

    def views(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Embed both views, each by itself.

        Args:
            batch: Of ``collate``.

        Returns:
            The predictions from descriptions and the embeddings of expressions, (B, K) each.
        """
        return (
            self.embeddings(batch["input_ids"], batch["attention_mask"]),
            self.embeddings(batch["expression_ids"], batch["expression_mask"]),
        )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Compute the loss of a batch.

        Args:
            batch: Of ``collate``.
            batch_idx: Its number in the epoch.

        Returns:
            The loss.
        """
        terms = self.terms(batch)
        extra = [value for name, value in terms.items() if name != "lm"]
        if extra and self.global_step % _GRADIENTS_EVERY == 0:
            sizes = [self._gradient(term) for term in (terms["lm"], self.weight * extra[0])]
            self.log("train/gradient_ratio", sizes[1] / sizes[0])
        loss = terms["lm"] + self.weight * sum(extra)
        return self.log_terms({"loss": loss, **terms})

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the terms of held-out pairs, those of other arms too.

        Args:
            batch: Of ``collate``.
            batch_idx: Its number.
        """
        states = self.states(batch["pair_ids"], batch["pair_mask"])
        logits = self.decoder.get_output_embeddings()(states)
        draw = torch.Generator().manual_seed(batch_idx)
        spans = draw_spans(batch["pair_mask"].sum(1).cpu(), draw).to(states.device)
        values = {
            "val/lm": answer_loss(logits, batch["pair_ids"], batch["pair_answer"]),
            "val/jepa": view_distance(*self.views(batch), "cosine"),
            "val/stp": tube_loss(states, spans).mean(),
        }
        self.log_dict(values, sync_dist=True, batch_size=len(batch["pair_ids"]))

    def _gradient(self, value: Tensor) -> Tensor:
        trained = [p for p in self.parameters() if p.requires_grad]
        found = torch.autograd.grad(value, trained, retain_graph=True, allow_unused=True)
        return torch.stack([g.square().sum() for g in found if g is not None]).sum().sqrt()


# ------------------------------------------------------------------------------------ command line
class PairTable(ClosingTable):
    """What training changed, of pairs."""

    rows = (
        ("RankMe", "collapse/rankme", "{:.1f}"),
        ("cosine of pairs", "text/aligned", "{:.3f}"),
        ("that of shuffled pairs", "text/shuffled", "{:.3f}"),
        ("common share", "text/common_share", "{:.3f}"),
        ("retrieval of expressions", "text/retrieval", "{:.1%}"),
    )


class PairCLI(MonitoredCLI):
    """The command line of methods for pairs: ``--arm NAME`` and ``--model hf/NAME``."""

    short: ClassVar[Mapping[str, str]] = {"--arm": "--model.arm", "--model": "--model.decoder"}

    def add_method_arguments(self, parser: LightningArgumentParser) -> None:
        """Add the test of answers, and show the monitor the held-out pairs.

        Args:
            parser: The parser to extend.
        """
        parser.add_lightning_class_args(ExactMatch, "exact")
        parser.link_arguments("model.decoder", "data.decoder")
        parser.link_arguments("model.predictors", "data.predictors")
        parser.link_arguments("data.text_pairs", "monitor.text_pairs", apply_on="instantiate")


def main(args: list[str] | None = None) -> Trainer:
    """Train from the command line.

    Args:
        args: Arguments, or None for those of the process.

    Returns:
        The trainer after ``fit``.
    """
    run = parse(LlmJepa, "llm_jepa", 3, args, DEFAULTS, PairCLI, PairDataModule, PairTable())
    return train(run)


if __name__ == "__main__":
    main()
