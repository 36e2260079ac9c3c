"""Networks of the methods that compare views: a ViT for crops of any size, and projectors."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from timm.layers.drop import DropPath
from timm.models.vision_transformer import VisionTransformer
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence


def build_vit(
    image_size: int,
    patch_size: int,
    in_channels: int,
    width: int,
    depth: int,
    heads: int,
    *,
    class_token: bool = False,
    drop_path: float = 0.0,
    layer_scale: float | None = None,
) -> VisionTransformer:
    """Build a timm ViT with learned positions, which are interpolated for crops of another size.

    It maps images (B, C, H, W) to embeddings (B, width): the class token, or the mean of the patch
    tokens where there is none, of the normalised tokens.

    Args:
        image_size: Side of the image in pixels.
        patch_size: Side of a patch in pixels; divides ``image_size`` and the side of every crop.
        in_channels: Colour channels C.
        width: Numbers per token.
        depth: Transformer blocks.
        heads: Attention heads.
        class_token: Whether there is a class token.
        drop_path: Share of stochastic depth, the same in every block.
        layer_scale: First value of LayerScale, or None for none.

    Returns:
        The network.

    Raises:
        ValueError: If ``patch_size`` does not divide ``image_size``.
    """
    if image_size % patch_size:
        raise ValueError(f"patch_size={patch_size} does not divide image_size={image_size}.")
    vit = VisionTransformer(
        img_size=image_size,
        patch_size=patch_size,
        in_chans=in_channels,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        num_classes=0,
        class_token=class_token,
        global_pool="token" if class_token else "avg",
        init_values=layer_scale,
        weight_init="jax",  # Xavier: timm's default of std 0.02 is far too small for narrow ViTs
        fc_norm=False,  # normalise tokens, then pool
        dynamic_img_size=True,
    )
    # timm lets the rate rise with depth; DINOv2 does not.
    for block in vit.blocks if drop_path else ():
        block.drop_path1, block.drop_path2 = DropPath(drop_path), DropPath(drop_path)
    return vit


def projector(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers with batch normalisation and ReLU between them.

    Args:
        widths: Numbers in, after each hidden layer, and out.

    Returns:
        The network; its last layer has no bias, as VICReg's.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1], bias=False))
