"""I-JEPA (Assran et al., arXiv 2301.08243): predict embeddings of hidden blocks of an image.

Run ``python -m jepa_monitor.recipes.ijepa`` to train on textures in a few minutes; see
``docs/recipes/ijepa.md``. To change the method, edit one function: ``sample_masks`` in ``masking.py``
for the masking, ``IJepa.targets`` for what is predicted, ``IJepa.loss`` for the loss.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa_monitor.recipes.attention import set_attention
from jepa_monitor.recipes.masking import Masks, block_shapes, sample_masks
from jepa_monitor.recipes.module import check_shares, check_warmup, follow
from jepa_monitor.recipes.patch_prediction import PatchPrediction
from jepa_monitor.recipes.schedules import cosine, linear, warmup_cosine
from jepa_monitor.recipes.seen_patches import Predictor, build_encoder, encode_tokens, take

# Whole images: a crop that is enlarged shows textures of another scale, and what hides is mask enough.
# Views are ready when a step ends: its steps are so short that views are a sixth of the time.
DEFAULTS: dict[str, Any] = {"data.crop_scale": 1.0, "data.num_workers": 1}


class IJepa(PatchPrediction):
    """I-JEPA: context encoder, EMA target encoder and predictor.

    Every random choice depends on ``(seed, epoch, batch)`` and every schedule on the global step,
    so a run resumed from the end of an epoch equals the uninterrupted one.

    Logs ``train/loss``, ``train/lr``, ``train/weight_decay``, ``train/momentum`` and ``val/loss``.

    Args:
        image_size: Side of the image in pixels.
        in_channels: Colour channels.
        patch_size: Side of a patch in pixels; divides ``image_size``.
        stem: How patches become tokens: ``"patch"``, the papers', or ``"conv"`` or
            ``"conv_batchnorm"``, convolutions, with which this method learned nothing where it was
            tried (docs/recipes/README.md).
        attention: How tokens are weighed, one of ``ATTENTIONS`` in ``attention.py``.
        attention_published: Whether with the scales and biases of that paper's code.
        width: Numbers per token of the encoder (K), a multiple of 4 and of ``heads``.
        depth: Transformer blocks of the encoder.
        heads: Attention heads of the encoder.
        predictor_width: Numbers per token of the predictor, a multiple of 4 and of its heads.
        predictor_depth: Transformer blocks of the predictor. On small images one is best: a deeper
            predictor fills the gaps by itself and leaves the encoder nothing to learn.
        predictor_heads: Attention heads of the predictor.
        target_blocks: Target blocks per image.
        target_scale: Range of a target's area, as a share of the image.
        target_aspect: Range of a target's height over its width.
        context_scale: Range of the context's area, before the targets are removed.
        min_context: Visible patches that every image has at least.
        learning_rate: Highest learning rate of AdamW.
        final_learning_rate: Learning rate of the last step.
        warmup: Share of the steps in which the learning rate rises, in [0, 1).
        weight_decay: First and last weight decay; none on biases and norms.
        momentum: First and last momentum of the target encoder; (0.996, 1) in the paper, whose
            runs are hundreds of times longer than the default here.
        seed: Seed of the masks.

    Raises:
        ValueError: If a number is out of its range or no target block fits the patch grid.
    """

    def __init__(
        self,
        image_size: int = 24,
        in_channels: int = 1,
        patch_size: int = 4,
        stem: str = "patch",
        attention: str = "softmax",
        attention_published: bool = False,
        width: int = 64,
        depth: int = 3,
        heads: int = 2,
        predictor_width: int = 32,
        predictor_depth: int = 1,
        predictor_heads: int = 2,
        target_blocks: int = 4,
        target_scale: tuple[float, float] = (0.15, 0.2),
        target_aspect: tuple[float, float] = (0.75, 1.5),
        context_scale: tuple[float, float] = (0.85, 1.0),
        min_context: int = 4,
        learning_rate: float = 1e-3,
        final_learning_rate: float = 1e-6,
        warmup: float = 0.1,
        weight_decay: tuple[float, float] = (0.04, 0.4),
        momentum: tuple[float, float] = (0.98, 1.0),
        seed: int = 0,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"patch_size={patch_size} does not divide image_size={image_size}.")
        check_warmup(warmup)
        check_shares(momentum=momentum)
        self.save_hyperparameters()
        self.grid = (image_size // patch_size, image_size // patch_size)
        self.mask_options: dict[str, Any] = {
            "target_blocks": target_blocks,
            "target_scale": target_scale,
            "target_aspect": target_aspect,
            "context_scale": context_scale,
            "min_context": min_context,
        }
        block_shapes(self.grid, target_scale, target_aspect)
        block_shapes(self.grid, context_scale, (1.0, 1.0))
        self.encoder = build_encoder(image_size, patch_size, in_channels, width, depth, heads, stem)
        set_attention(self.encoder, attention, attention_published)
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.predictor = Predictor(
            self.grid, width, predictor_width, predictor_depth, predictor_heads
        )

    def forward(self, images: Tensor) -> Tensor:
        """Embed images with the target encoder, the one that the paper evaluates.

        Args:
            images: Shape (B, C, H, W).

        Returns:
            Embeddings, shape (B, K).
        """
        embeddings: Tensor = self.target_encoder(images)
        return embeddings

    @torch.no_grad()
    def targets(self, images: Tensor, masks: Masks) -> Tensor:
        """What the predictor must predict: layer-normalised target tokens, without gradient.

        Args:
            images: Shape (B, C, H, W).
            masks: Where the M targets are.

        Returns:
            Shape (B, M, N_target, K).
        """
        tokens = encode_tokens(self.target_encoder, images)  # the whole image, then cut
        tokens = F.layer_norm(tokens, tokens.shape[-1:])
        return take(tokens, masks.targets.flatten(1)).view(*masks.targets.shape, -1)

    def loss(self, images: Tensor, masks: Masks) -> Tensor:
        """Smooth-L1 distance between predicted and true target tokens.

        Args:
            images: Shape (B, C, H, W).
            masks: Where context and targets are.

        Returns:
            Scalar.
        """
        context = encode_tokens(self.encoder, images, masks.context)
        return F.smooth_l1_loss(self.predictor(context, masks), self.targets(images, masks))

    @torch.no_grad()
    def predictive_pairs(self, images: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        """Give what :func:`~jepa_monitor.functional.predictive_overlap` compares with classes.

        Args:
            images: Shape (B, C, H, W).
            masks: Where context and the M targets are.

        Returns:
            The mean of the context's tokens, and that of each target block's, (B·M, K) each.
        """
        context = encode_tokens(self.encoder, images, masks.context).mean(1)
        targets = self.targets(images, masks).mean(2)
        return context.repeat_interleave(targets.shape[1], 0), targets.flatten(0, 1)

    def draw(self, batch_size: int, generator: torch.Generator) -> Masks:
        """Draw masks.

        Args:
            batch_size: Images B.
            generator: Source of all randomness, on the CPU.

        Returns:
            Contexts and target blocks, on the CPU.
        """
        return sample_masks(batch_size, self.grid, generator, **self.mask_options)

    def scheduled(self, step: int) -> dict[str, float]:
        """Learning rate, weight decay and momentum of one optimiser step.

        Args:
            step: Optimiser steps done before.

        Returns:
            Values by the names ``lr``, ``weight_decay``, ``momentum``.
        """
        h, total = self.hparams, self.total_steps
        warmup = round(h["warmup"] * total)
        return {
            "lr": warmup_cosine(step, total, warmup, h["learning_rate"], h["final_learning_rate"]),
            "weight_decay": cosine(step, total, *h["weight_decay"]),
            "momentum": linear(step, total, *h["momentum"]),
        }

    def after_step(self, values: dict[str, float]) -> None:
        """Move the target encoder towards the encoder.

        Args:
            values: What :meth:`scheduled` said.
        """
        follow(self.target_encoder, self.encoder, values["momentum"])


def main() -> None:
    """Train from the command line."""
    from jepa_monitor.recipes.cli import parse, train

    train(parse(IJepa, "ijepa", max_epochs=80, defaults=DEFAULTS))


if __name__ == "__main__":
    main()
