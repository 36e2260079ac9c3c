"""Training runs whose checkpoints `predictors.py` looks at: the project's recipes, small, some with a fault."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from _encoders import augment
from torch import Tensor, nn

from jepa_monitor.functional.gaussianity import slice_directions
from jepa_monitor.recipes.dinov2 import DinoV2
from jepa_monitor.recipes.ijepa import IJepa
from jepa_monitor.recipes.lejepa import LeJepa
from jepa_monitor.recipes.masking import sample_patch_masks
from jepa_monitor.recipes.module import ScheduledModule
from jepa_monitor.recipes.vicreg import VicReg
from jepa_monitor.recipes.views import Views

BATCH = 64
FEW = 64  # images of an over-trained run
NARROW = 16  # images that a broken loader still gives
STEPS = (0, 4, 8, *range(15, 301, 15))
LONG = (0, 15, 30, *range(50, 901, 50))  # I-JEPA learns nothing that k-NN sees in 300 steps
_SHAPE: dict[str, Any] = {"image_size": 32, "in_channels": 3, "width": 64, "depth": 2, "heads": 2}
_CONV = _SHAPE | {"patch_size": 8, "stem": "conv", "learning_rate": 2e-3}

# By name: the recipe, and the fault. All faults but the first begin when half of the run is over.
RUNS: dict[str, tuple[str, str]] = {
    **{name: (name, "") for name in ("lejepa", "vicreg", "ijepa", "dinov2")},
    "lejepa-few-images": ("lejepa", "few images"),
    "vicreg-no-regulariser": ("vicreg", "no regulariser"),
    "dinov2-narrow-data": ("dinov2", "narrow data"),
}


class Checkpoint(NamedTuple):
    """A run at one step.

    Args:
        step: Optimiser steps done.
        encoder: The encoder that is kept, in eval mode: of an EMA the teacher.
        online: The one that is trained, where that is another.
        loss: Mean training loss of the steps since the last checkpoint; of the first, of the first batch.
        held_out_loss: Of held-out images, with the same views and masks at every checkpoint.
    """

    step: int
    encoder: nn.Module
    online: nn.Module | None
    loss: float
    held_out_loss: float


def steps_of(name: str) -> tuple[int, ...]:
    """Say where a run is looked at."""
    return LONG if RUNS[name][0] == "ijepa" else STEPS


def make(recipe: str, seed: int) -> ScheduledModule:
    """Build a recipe's module in the size of this benchmark."""
    torch.manual_seed(seed)
    if recipe == "lejepa":
        return LeJepa(**_CONV, seed=seed)
    if recipe == "vicreg":
        return VicReg(**_CONV, seed=seed)
    if recipe == "ijepa":
        return IJepa(**_SHAPE, patch_size=4, learning_rate=2e-3, momentum=(0.99, 1.0), seed=seed)
    batchnorm = {"stem": "conv_batchnorm", "head_batchnorm": True, "class_token": False}
    return DinoV2(**(_CONV | batchnorm), momentum=(0.95, 0.99), seed=seed)


def loss_of(
    module: ScheduledModule, images: Tensor, generator: torch.Generator, step: int
) -> Tensor:
    """Draw views or masks of a batch, and take the recipe's loss."""
    if isinstance(module, IJepa):
        cut = augment(images, generator, colours=False)
        return module.loss(cut, module.masks(len(images), 1, step))
    views = Views([augment(images, generator), augment(images, generator)], [])
    if isinstance(module, LeJepa):
        h = module.hparams
        return module.loss(views, slice_directions(h["projector_width"], h["slices"], step))["loss"]
    if isinstance(module, VicReg):
        return module.loss(views)["loss"]
    assert isinstance(module, DinoV2)
    h = module.hparams
    masks = sample_patch_masks(
        2 * len(images), (4, 4), generator, h["mask_probability"], h["mask_ratio"]
    )
    return module.loss(views, masks, module.scheduled(step)["teacher_temperature"])["loss"]


def kept_encoder(module: ScheduledModule) -> tuple[nn.Module, nn.Module | None]:
    """Give the encoder that is evaluated, and the one that it averages."""
    if isinstance(module, IJepa):
        return module.target_encoder, module.encoder
    if isinstance(module, DinoV2):
        return module.teacher["backbone"], module.student["backbone"]
    assert isinstance(module, LeJepa | VicReg)
    return module.network.encoder, None


def strip_regulariser(module: ScheduledModule) -> None:
    """Leave nothing but the term that makes views alike."""
    for name in ("sigreg_weight", "variance_weight", "covariance_weight"):
        if name in module.hparams:
            module.hparams[name] = 0.0


def checkpoints(
    name: str, seed: int, images: Tensor, held_out: Tensor, steps: tuple[int, ...]
) -> Iterator[Checkpoint]:
    """Train, and stop at steps.

    Args:
        name: One of :data:`RUNS`.
        seed: Of weights, batches, views and masks.
        images: Normalised training images, (N, 3, 32, 32).
        held_out: Others, for the held-out loss.
        steps: Ascending from 0; the last ends the run.

    Yields:
        The run at each of them; its networks are copies.
    """
    recipe, fault = RUNS[name]
    module = make(recipe, seed).train()
    module.total_steps = total = steps[-1]
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(module.parameter_groups(), lr=1e-3)
    if fault == "few images":
        images = images[torch.randperm(len(images), generator=generator)[:FEW]]
    losses: list[float] = []
    for step in range(total + 1):
        if 2 * step == total and fault == "no regulariser":
            strip_regulariser(module)
        if 2 * step == total and fault == "narrow data":
            images = images[torch.randperm(len(images), generator=generator)[:NARROW]]
        batch = images[torch.randint(len(images), (BATCH,), generator=generator)]
        loss = loss_of(module, batch, generator, step)
        if step in steps:
            encoder, online = (
                None if found is None else copy.deepcopy(found).eval().requires_grad_(False)
                for found in kept_encoder(module)
            )
            assert encoder is not None
            fixed = torch.Generator().manual_seed(0)
            with torch.no_grad():
                other = float(loss_of(copy.deepcopy(module).eval(), held_out, fixed, 0))
            mean = sum(losses or [float(loss.detach())]) / max(len(losses), 1)
            yield Checkpoint(step, encoder, online, mean, other)
            losses = []
        if step == total:
            return
        values = module.scheduled(step)
        for group in optimiser.param_groups:
            module.set_group(group, values)
        optimiser.zero_grad()
        loss.backward()
        if recipe == "dinov2":
            nn.utils.clip_grad_norm_(module.parameters(), 3.0)
        optimiser.step()
        module.after_step(values)
        losses.append(float(loss.detach()))
