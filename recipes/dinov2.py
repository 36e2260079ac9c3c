"""DINOv2 (Oquab et al., arXiv 2304.07193): distil an EMA teacher across crops and masked patches.

Run ``python -m jepa_monitor.recipes.dinov2`` to train on textures in a few minutes; see
``docs/recipes/dinov2.md``. To change the method, edit one function: ``sample_patch_masks`` in
``masking.py`` for the masking; in ``distillation.py`` ``sinkhorn_knopp`` for how the teacher's answers
are balanced, ``dino_loss``, ``ibot_loss`` and ``koleo`` for the terms of the loss;
``DinoV2.scheduled`` for the schedules, ``DinoV2.restart`` for what a curriculum does between its two
stages.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from jepa_monitor._checks import check_choice
from jepa_monitor.recipes.attention import set_attention
from jepa_monitor.recipes.datasets import mixed_seed
from jepa_monitor.recipes.distillation import (
    Centre,
    Head,
    dino_loss,
    ibot_loss,
    koleo,
    sinkhorn_knopp,
    student_groups,
)
from jepa_monitor.recipes.masking import patch_grid, sample_patch_masks
from jepa_monitor.recipes.module import check_shares, check_warmup, follow
from jepa_monitor.recipes.networks import build_vit, encode_masked
from jepa_monitor.recipes.schedules import cosine, linear, warmup_cosine
from jepa_monitor.recipes.stages import TwoStageModule

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from jepa_monitor.recipes.views import Views

# What this method asks of the data and of the callbacks, unless told otherwise.
DEFAULTS: dict[str, Any] = {
    "data.image_size": 16,
    "data.global_views": 2,
    "data.local_views": 2,
    "data.crop_scale": 0.6,
    "data.local_crop_scale": (0.2, 0.6),
    "trainer.gradient_clip_val": 3.0,
    "monitor.encoder": "teacher.backbone",
    "knn.encoder": "teacher.backbone",
}
CENTERINGS = ("sinkhorn_knopp", "centering")


# ------------------------------------------------------------------------------------------ method
class DinoV2(TwoStageModule):
    """DINOv2: a student that sees crops and masked images, and an EMA teacher that sees all.

    Masks depend on ``(seed, epoch, batch)`` and every schedule on the step, so a run resumed from
    the end of an epoch equals the uninterrupted one.

    With ``first_epochs`` it follows a curriculum of two stages, whose images the data module changes
    at the same epoch: FastDINOv2 (arXiv 2507.03779), or denoised images and then noisy ones
    (arXiv 2505.12191). The second stage begins with the weights of the first and nothing else: all
    schedules and the optimiser start again, as in both papers' code.

    The defaults are for small images; ``recipes/configs/dinov2_224.yaml`` has the settings of the paper.

    Logs ``train/loss``, ``/dino``, ``/ibot``, ``/koleo``, ``/lr``, ``/last_layer_lr``, ``/weight_decay``,
    ``/momentum`` and ``/teacher_temperature``; ``/anchor`` where there is one.

    Args:
        image_size: Side of the global crops in pixels.
        in_channels: Colour channels.
        patch_size: Side of a patch in pixels; divides ``image_size`` and the size of local crops.
        stem: How patches become tokens: ``"patch"``, the papers', or ``"conv"`` or
            ``"conv_batchnorm"``, convolutions, which learn more from few images.
        attention: How tokens are weighed, one of ``ATTENTIONS`` in ``attention.py``.
        attention_published: Whether with the scales and biases of that paper's code.
        width: Numbers per token of the backbone, a multiple of ``heads``.
        depth: Transformer blocks of the backbone.
        heads: Attention heads of the backbone.
        class_token: Whether the embedding is a class token, as in the paper; otherwise the mean of the
            patch tokens. In a few blocks a class token gathers little.
        drop_path: Share of stochastic depth in the student, the same in every block.
        layer_scale: First value of LayerScale, or None for none; 1e-5 in the paper's long runs.
        head_hidden: Numbers in each of the two hidden layers of a head.
        bottleneck: Numbers in a prototype.
        prototypes: Prototypes of each head, P.
        head_batchnorm: Whether the heads normalise over the batch, as DINO may: short runs need it.
        dino_weight: Weight of the loss of whole images.
        ibot_weight: Weight of the loss of the hidden patches.
        koleo_weight: Weight of KoLeo, summed over the global crops.
        centering: ``"sinkhorn_knopp"`` or ``"centering"``: what keeps the teacher from collapsing.
        mask_probability: Share of the global crops that are masked.
        mask_ratio: Lowest and highest share of hidden patches in them.
        student_temperature: Of the student.
        teacher_temperature: First and last of the teacher.
        teacher_warmup: Share of the steps in which the teacher's temperature changes.
        learning_rate: Highest learning rate of AdamW.
        final_learning_rate: Learning rate of the last step.
        warmup: Share of the steps in which the learning rate rises, in [0, 1).
        layer_decay: Factor of the learning rate from one block to the one before it.
        patch_embed_lr: Factor of the learning rate of the patch embedding, beside that.
        freeze_last_layer: Share of the steps in which the prototypes stay as they are.
        weight_decay: First and last weight decay; none on biases, norms, tokens and positions.
        momentum: First and last momentum of the teacher.
        first_epochs: Epochs of the first stage of a curriculum, or 0 for none. Its schedules are those
            of the whole run, broken off.
        anchor_weight: Weight in the second stage of DINO's and iBOT's losses against a teacher that
            sees the denoised copies of the global crops, its backbone frozen as the first stage left
            it; 0 for none.
        seed: Seed of the masks.

    Raises:
        ValueError: If a number is out of its range.
    """

    first_steps = 0

    def __init__(
        self,
        image_size: int = 16,
        in_channels: int = 1,
        patch_size: int = 4,
        stem: str = "patch",
        attention: str = "softmax",
        attention_published: bool = False,
        width: int = 64,
        depth: int = 4,
        heads: int = 2,
        class_token: bool = True,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        head_hidden: int = 256,
        bottleneck: int = 64,
        prototypes: int = 64,
        head_batchnorm: bool = False,
        dino_weight: float = 1.0,
        ibot_weight: float = 1.0,
        koleo_weight: float = 0.1,
        centering: str = "sinkhorn_knopp",
        mask_probability: float = 0.5,
        mask_ratio: tuple[float, float] = (0.1, 0.5),
        student_temperature: float = 0.1,
        teacher_temperature: tuple[float, float] = (0.04, 0.04),
        teacher_warmup: float = 0.3,
        learning_rate: float = 2e-3,
        final_learning_rate: float = 1e-6,
        warmup: float = 0.1,
        layer_decay: float = 1.0,
        patch_embed_lr: float = 1.0,
        freeze_last_layer: float = 0.01,
        weight_decay: tuple[float, float] = (0.04, 0.4),
        momentum: tuple[float, float] = (0.95, 1.0),
        first_epochs: int = 0,
        anchor_weight: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_choice(centering, "centering", CENTERINGS)
        check_shares(mask_probability=mask_probability, teacher_warmup=teacher_warmup)
        check_shares(freeze_last_layer=freeze_last_layer, momentum=momentum)
        check_warmup(warmup)
        if not 0 < mask_ratio[0] <= mask_ratio[1] <= 1:
            raise ValueError(f"mask_ratio={mask_ratio} must rise within (0, 1].")
        if min(student_temperature, *teacher_temperature) <= 0:
            raise ValueError(
                f"student_temperature={student_temperature} and "
                f"teacher_temperature={teacher_temperature} must be positive."
            )
        if first_epochs < 0:
            raise ValueError(f"first_epochs={first_epochs} must be at least 0.")
        if anchor_weight < 0 or (anchor_weight and not first_epochs):
            raise ValueError(
                f"anchor_weight={anchor_weight} must be at least 0, and 0 without first_epochs."
            )
        self.save_hyperparameters()
        shape = (image_size, patch_size, in_channels, width, depth, heads)
        networks: dict[str, nn.Module] = {
            "backbone": build_vit(
                *shape,
                class_token=class_token,
                drop_path=drop_path,
                layer_scale=layer_scale,
                stem=stem,
            )
        }
        set_attention(networks["backbone"], attention, attention_published)
        for kind in ("dino", "ibot"):
            head = Head(width, head_hidden, bottleneck, prototypes, head_batchnorm)
            networks[f"{kind}_head"] = head
        self.student = nn.ModuleDict(networks)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        for module in self.teacher.modules():
            if isinstance(module, Block):  # stochastic depth is the student's only
                module.drop_path1, module.drop_path2 = nn.Identity(), nn.Identity()
        self.centres = nn.ModuleDict({"dino": Centre(prototypes), "ibot": Centre(prototypes)})
        self.anchor = copy.deepcopy(self.teacher["backbone"]) if anchor_weight else None
        for kind in ("dino", "ibot") if anchor_weight else ():
            self.centres[f"anchor_{kind}"] = Centre(prototypes)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images with the teacher's backbone, which is what is evaluated and kept.

        Args:
            images: Shape (B, C, H, W).

        Returns:
            Class tokens, or means of the patch tokens, shape (B, K).
        """
        embeddings: Tensor = self.teacher["backbone"](images)
        return embeddings

    @torch.no_grad()
    def targets(
        self, crops: Tensor, masks: Tensor, temperature: float, anchored: bool = False
    ) -> tuple[Tensor, Tensor]:
        """What the student must say: the teacher's balanced answers to unmasked global crops.

        Args:
            crops: G global crops of B images, one after the other, shape (G · B, C, H, W).
            masks: Which patches will be asked for, shape (G · B, N).
            temperature: Of the teacher.
            anchored: Whether the frozen backbone answers, through the teacher's present heads.

        Returns:
            Probabilities of the images (G · B, P) and of the asked patches (n, P).
        """
        backbone = self.anchor if anchored else self.teacher["backbone"]
        prefix = "anchor_" if anchored else ""
        classes, patches = encode_masked(backbone, crops, self.mask_token)
        tokens = {"dino": classes, "ibot": patches[masks]}

        def balanced(kind: str) -> Tensor:
            answers: Tensor = self.teacher[f"{kind}_head"](tokens[kind])
            if self.hparams["centering"] == "sinkhorn_knopp":
                return sinkhorn_knopp(answers, temperature)
            return torch.as_tensor(self.centres[f"{prefix}{kind}"](answers, temperature))

        return balanced("dino"), balanced("ibot")

    def loss(self, views: Views, masks: Tensor, temperature: float) -> dict[str, Tensor]:
        """Sum DINO's loss, iBOT's loss and KoLeo, and the first two against the anchor.

        Args:
            views: At least two global crops of B images, local crops, and for the anchor the global
                crops of the denoised copies.
            masks: Hidden patches of the global crops, shape (G · B, N).
            temperature: Of the teacher.

        Returns:
            Scalars ``loss``, ``dino``, ``ibot`` and ``koleo``; ``anchor`` if there is an anchor and
            it has crops to look at.

        Raises:
            ValueError: If there are fewer than two global crops.
        """
        large = len(views.global_crops)
        if large < 2:
            raise ValueError(f"DINOv2 needs data.global_views of at least 2, got {large}.")
        h, student = self.hparams, self.student
        crops = torch.cat(views.global_crops)
        classes, patches = encode_masked(student["backbone"], crops, self.mask_token, masks)
        logits = list(student["dino_head"](classes).chunk(large))
        if views.local_crops:
            small = student["dino_head"](student["backbone"](torch.cat(views.local_crops)))
            logits += small.chunk(len(views.local_crops))
        hidden = student["ibot_head"](patches[masks])

        def distilled(answers: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
            of_classes = torch.stack(answers[0].chunk(large))
            return {
                "dino": dino_loss(logits, of_classes, h["student_temperature"]),
                "ibot": ibot_loss(hidden, answers[1], masks, h["student_temperature"]),
            }

        def weighted(terms: dict[str, Tensor]) -> Tensor:
            return torch.as_tensor(sum(h[f"{name}_weight"] * term for name, term in terms.items()))

        terms = distilled(self.targets(crops, masks, temperature))
        # Not between crops of one image: those should be near each other.
        terms["koleo"] = torch.stack([koleo(tokens) for tokens in classes.chunk(large)]).sum()
        if self.anchor is not None and views.clean_crops:
            clean = torch.cat(views.clean_crops)
            answers = self.targets(clean, masks, temperature, anchored=True)
            terms["anchor"] = weighted(distilled(answers))
        return {"loss": weighted(terms), **terms}

    def masks(self, crops: int, grid: tuple[int, int], *counters: int) -> Tensor:
        """Draw the masks of a batch.

        Args:
            crops: Global crops in the batch.
            grid: Rows and columns of their patches.
            counters: What identifies the batch, mixed with the seed and the process's rank.

        Returns:
            Shape (crops, N), on the module's device.
        """
        h, seed = self.hparams, mixed_seed(self.hparams["seed"], self.global_rank, *counters)
        generator = torch.Generator().manual_seed(seed)
        masks = sample_patch_masks(crops, grid, generator, h["mask_probability"], h["mask_ratio"])
        return masks.to(self.device)

    def restart(self) -> None:
        """Keep the weights only; the anchor is the teacher as it is now."""
        super().restart()
        if self.anchor is not None:
            self.anchor.load_state_dict(self.teacher["backbone"].state_dict())
            for kind in ("dino", "ibot"):
                self.centres[f"anchor_{kind}"].load_state_dict(self.centres[kind].state_dict())

    def training_step(self, batch: tuple[Views, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch of (views, labels); the labels are not looked at.

        Args:
            batch: Views of B images, and labels (B,).
            batch_idx: Number of the batch in the epoch.

        Returns:
            Scalar loss.

        Raises:
            ValueError: If the anchor has nothing to look at in the second stage.
        """
        views = batch[0]
        second = self.current_epoch >= self.hparams["first_epochs"]
        if self.anchor is not None and second and not views.clean_crops:
            raise ValueError(
                "anchor_weight needs denoised copies: set data.denoised and data.paired."
            )
        grids = [patch_grid(c[0], self.hparams["patch_size"]) for c in views[:2] if c]
        crops = len(views.global_crops) * views.batch_size
        masks = self.masks(crops, grids[0], self.current_epoch, batch_idx)
        values = self.loss(views, masks, self.scheduled(self.global_step)["teacher_temperature"])
        return self.log_terms(values)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Part the student's parameters by weight decay, by layer and by being a last layer.

        Returns:
            Groups for AdamW, each with ``decays``, ``lr_scale`` and ``last_layer``.
        """
        h = self.hparams
        return student_groups(self, h["depth"], h["layer_decay"], h["patch_embed_lr"])

    def scheduled(self, step: int) -> dict[str, float]:
        """All that changes from step to step.

        Args:
            step: Optimiser steps done before.

        Returns:
            Values by the names ``lr``, ``last_layer_lr``, ``weight_decay``, ``momentum`` and
            ``teacher_temperature``.
        """
        h = self.hparams
        step, total = self.within_stage(step)
        warmup = round(h["warmup"] * total)
        lr = warmup_cosine(step, total, warmup, h["learning_rate"], h["final_learning_rate"])
        frozen = step < math.ceil(h["freeze_last_layer"] * total)
        warm = round(h["teacher_warmup"] * total)
        return {
            "lr": lr,
            "last_layer_lr": 0.0 if frozen else lr,
            "weight_decay": cosine(step, total, *h["weight_decay"]),
            "momentum": cosine(step, total, *h["momentum"]),
            "teacher_temperature": linear(step, warm, *h["teacher_temperature"]),
        }

    def after_step(self, values: dict[str, float]) -> None:
        """Move the teacher towards the student.

        Args:
            values: What :meth:`scheduled` said.
        """
        follow(self.teacher, self.student, values["momentum"])


def main(args: list[str] | None = None) -> Trainer:
    """Train from the command line.

    Args:
        args: Arguments, or None for those of the process.

    Returns:
        The trainer after ``fit``.
    """
    from jepa_monitor.recipes.cli import parse, train

    return train(parse(DinoV2, "dinov2", max_epochs=30, args=args, defaults=DEFAULTS))


if __name__ == "__main__":
    main()
