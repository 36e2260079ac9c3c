"""What the methods share: optimiser groups, schedules that follow the step, and DDP batches."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather

from jepa_monitor.recipes.attention import set_attention
from jepa_monitor.recipes.datasets import mixed_seed
from jepa_monitor.recipes.networks import build_vit, projector
from jepa_monitor.recipes.schedules import warmup_cosine

if TYPE_CHECKING:
    from lightning.pytorch.core.optimizer import LightningOptimizer
    from torch.optim import Optimizer


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Say whether a parameter is a matrix: biases, norms, tokens and positions have no decay.

    Args:
        name: Its name in the module.
        parameter: The parameter.

    Returns:
        Whether weight decay is meant for it.
    """
    return parameter.ndim > 1 and "token" not in name and "pos_embed" not in name


def check_shares(**shares: float | tuple[float, ...]) -> None:
    """Check hyperparameters that are shares of a whole.

    Args:
        **shares: Each a number, or several, in [0, 1].

    Raises:
        ValueError: If one is not.
    """
    for name, share in shares.items():
        word, numbers = ("be", [share]) if isinstance(share, float | int) else ("lie", [*share])
        if not all(0 <= number <= 1 for number in numbers):
            raise ValueError(f"{name}={share} must {word} in [0, 1].")


def check_warmup(warmup: float) -> None:
    """Check the share of the steps in which the learning rate rises.

    Args:
        warmup: In [0, 1): after it, something must be left.

    Raises:
        ValueError: If it is not.
    """
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup={warmup} must be in [0, 1).")


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move a teacher's parameters towards its student's: θ̄ ← m θ̄ + (1 − m) θ.

    Args:
        teacher: Has the student's parameters, in the same order; changed in place.
        student: The network that is trained.
        momentum: m in [0, 1].
    """
    for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
        slow.lerp_(fast, 1.0 - momentum)


def gathered(embeddings: Tensor) -> Tensor:
    """Join the embeddings of all processes, so that a loss sees the whole batch.

    Gradients flow back to the process that made an embedding. Every process then has the same loss,
    and DDP's average of their gradients is the gradient of that loss.

    Args:
        embeddings: V views of B images, shape (V, B, K).

    Returns:
        Shape (V, B · processes, K); ``embeddings`` itself if there is only one process.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return embeddings
    return torch.cat(all_gather(embeddings), dim=1)  # type: ignore[no-untyped-call]


class ScheduledModule(LightningModule):
    """A LightningModule whose learning rate, weight decay and more follow the optimiser step.

    Nothing but the step decides on those, and nothing but ``(seed, epoch, batch)`` on what the
    network draws, so a run resumed from the end of an epoch equals the uninterrupted one. A subclass
    saves the hyperparameters ``seed``, ``learning_rate``, ``final_learning_rate``, ``warmup`` and
    ``weight_decay``, or overrides :meth:`scheduled`.

    Logs every scheduled value under ``train/``.
    """

    total_steps = 0

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Part the trained parameters in those with weight decay and those without.

        Returns:
            Groups for AdamW; ``decays`` says which is which. Where there are such, ``rate`` names the
            scheduled value that is the learning rate, and ``lr_scale`` is what it is multiplied
            with; a learning rate of 0 freezes.
        """
        trained = [(n, p) for n, p in self.named_parameters() if p.requires_grad]
        return [
            {"params": [p for n, p in trained if is_decayed(n, p) == decays], "decays": decays}
            for decays in (True, False)
        ]

    def configure_optimizers(self) -> Optimizer:
        """AdamW; ``optimizer_step`` sets its values.

        Returns:
            The optimiser.
        """
        return torch.optim.AdamW(self.parameter_groups(), lr=self.hparams["learning_rate"])

    def on_train_start(self) -> None:
        """Find the length of the schedules.

        Raises:
            ValueError: If the run has no end.
        """
        total = self.trainer.estimated_stepping_batches
        if total == float("inf"):
            raise ValueError("The schedules need an end: set trainer.max_epochs or max_steps.")
        self.total_steps = int(total)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed what a network draws, such as stochastic depth: a checkpoint has no random state.

        Args:
            batch: The batch.
            batch_idx: Its number in the epoch.
        """
        counters = (self.hparams["seed"], self.global_rank, self.current_epoch, batch_idx)
        torch.manual_seed(mixed_seed(*counters))

    def scheduled(self, step: int) -> dict[str, float]:
        """Values of one optimiser step: a warm-up and a cosine, and a constant weight decay.

        Args:
            step: Optimiser steps done before.

        Returns:
            Values by name, among them ``lr`` and ``weight_decay``.
        """
        h, total = self.hparams, self.total_steps
        warmup = round(h["warmup"] * total)
        return {
            "lr": warmup_cosine(step, total, warmup, h["learning_rate"], h["final_learning_rate"]),
            "weight_decay": h["weight_decay"],
        }

    def set_group(self, group: dict[str, Any], values: dict[str, float]) -> None:
        """Give a group of parameters its values.

        Args:
            group: One of the optimiser's.
            values: What :meth:`scheduled` says.
        """
        group["lr"] = values[group.get("rate", "lr")] * group.get("lr_scale", 1.0)
        group["weight_decay"] = values["weight_decay"] if group["decays"] else 0.0

    def after_step(self, values: dict[str, float]) -> None:
        """Do what follows a step, such as moving an EMA teacher.

        Args:
            values: What :meth:`scheduled` said.
        """

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Any = None,
    ) -> None:
        """Set the scheduled values and step. Called once per step, not per accumulated batch.

        Args:
            epoch: Number of the epoch.
            batch_idx: Number of the batch.
            optimizer: AdamW.
            optimizer_closure: Forward and backward pass.
        """
        values = self.scheduled(self.global_step)
        for group in optimizer.param_groups:
            self.set_group(group, values)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.after_step(values)
        self.log_dict({f"train/{name}": value for name, value in values.items()})

    def log_terms(self, values: dict[str, Tensor]) -> Tensor:
        """Log a loss, on the progress bar too, and what it is made of.

        Args:
            values: Scalars by name, among them ``loss``.

        Returns:
            The loss.
        """
        self.log("train/loss", values["loss"], prog_bar=True)
        terms = {f"train/{name}": value for name, value in values.items() if name != "loss"}
        self.log_dict(terms)
        return values["loss"]


class JointEmbedding(ScheduledModule):
    """One network for all views of an image: an encoder, which is kept, and a head, which is not."""

    network: nn.Sequential

    def build(self, name: str, hidden: int, width: int) -> None:
        """Make the network by the saved hyperparameters.

        Args:
            name: What the head is called.
            hidden: Numbers in each of its two hidden layers.
            width: K, numbers in an embedding.

        Raises:
            ValueError: If the warm-up is no share of the run.
        """
        h = self.hparams
        check_warmup(h["warmup"])
        shape = [
            h[key] for key in ("image_size", "patch_size", "in_channels", "width", "depth", "heads")
        ]
        encoder = build_vit(*shape, drop_path=h["drop_path"], stem=h["stem"])
        set_attention(encoder, h["attention"], h["attention_published"])
        head = projector([h["width"], hidden, hidden, width])
        self.network = nn.Sequential(OrderedDict([("encoder", encoder), (name, head)]))

    def forward(self, images: Tensor) -> Tensor:
        """Embed images with the encoder, without the head, for other tasks.

        Args:
            images: Shape (B, C, H, W).

        Returns:
            Embeddings, shape (B, width).
        """
        embeddings: Tensor = self.network.encoder(images)  # type: ignore[operator]
        return embeddings
