"""Networks of the methods that compare views: a ViT for crops of any size, and projectors."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch
from timm.layers.drop import DropPath
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from jepa_monitor._checks import check_choice

if TYPE_CHECKING:
    from collections.abc import Sequence

STEMS = ("patch", "conv", "conv_batchnorm")


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
    stem: str = "patch",
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
        stem: How patches become tokens, one of :data:`STEMS`; see :func:`conv_stem`.

    Returns:
        The network.

    Raises:
        ValueError: If ``patch_size`` does not divide ``image_size``, or there is no such stem.
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
    set_stem(vit, stem, in_channels)
    # timm lets the rate rise with depth; DINOv2 does not.
    for block in vit.blocks if drop_path else ():
        block.drop_path1, block.drop_path2 = DropPath(drop_path), DropPath(drop_path)
    return vit


def conv_stem(stem: str, in_channels: int, patch_size: int, width: int) -> nn.Sequential:
    """Convolutions that halve the image until a patch is one token (arXiv 2106.14881).

    They know that neighbouring pixels belong together, which a linear map of a patch has to learn:
    on few images and in few epochs that decides. The channels double up to ``width``.

    Args:
        stem: ``"conv"``, with GroupNorm and GELU: no image depends on its batch; or
            ``"conv_batchnorm"``, with BatchNorm and ReLU as in the paper, which takes away what all
            images share: class tokens then differ from the start, and a teacher has more to say.
        in_channels: Colour channels C.
        patch_size: Side of a patch in pixels, a power of 2 above 1.
        width: Numbers per token, a multiple of 4 · ``patch_size``.

    Returns:
        A network that maps images (B, C, H, W) to (B, width, H / patch_size, W / patch_size).

    Raises:
        ValueError: If a number is no such power or multiple.
    """
    halvings = patch_size.bit_length() - 1
    if patch_size < 2 or patch_size != 2**halvings:
        raise ValueError(f"patch_size={patch_size} must be a power of 2 above 1 for stem={stem!r}.")
    if width % (4 * patch_size):
        raise ValueError(f"width={width} must be a multiple of {4 * patch_size} for stem={stem!r}.")
    layers: list[nn.Module] = []
    inputs = in_channels
    for outputs in (width >> i for i in reversed(range(halvings))):
        layers.append(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False))
        if stem == "conv":
            layers += [nn.GroupNorm(outputs // 8, outputs), nn.GELU()]
        else:
            layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*layers, nn.Conv2d(width, width, 1))


def set_stem(vit: VisionTransformer, stem: str, in_channels: int) -> None:
    """Choose how a ViT's patches become tokens.

    Args:
        vit: A new timm ViT, whose linear map of a patch may be replaced.
        stem: One of :data:`STEMS`; see :func:`conv_stem`.
        in_channels: Colour channels C.

    Raises:
        ValueError: If there is no such stem, or it does not fit the ViT.
    """
    check_choice(stem, "stem", STEMS)
    if stem != "patch":
        patch_size = vit.patch_embed.patch_size[0]
        vit.patch_embed.proj = conv_stem(stem, in_channels, patch_size, vit.embed_dim)


def sees_beyond_patches(vit: VisionTransformer) -> bool:
    """Say whether a token depends on more pixels than its patch has.

    Args:
        vit: A timm ViT.

    Returns:
        Whether :func:`blanked` must hide what a mask hides; a linear map of a patch needs no such care.
    """
    return not isinstance(vit.patch_embed.proj, nn.Conv2d)


def blanked(images: Tensor, hidden: Tensor, patch_size: int) -> Tensor:
    """Set the pixels of hidden patches to 0, for stems that look beyond a patch.

    Args:
        images: Shape (B, C, H, W).
        hidden: True where a patch is hidden, row by row, shape (B, H · W / patch_size²).
        patch_size: Side of a patch in pixels.

    Returns:
        Shape (B, C, H, W).
    """
    grid = hidden.view(len(images), 1, images.shape[2] // patch_size, -1)
    pixels = grid.repeat_interleave(patch_size, 2).repeat_interleave(patch_size, 3)
    return images.masked_fill(pixels, 0.0)


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


def encode_masked(
    vit: Any, images: Tensor, mask_token: Tensor, masks: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run a timm ViT, hidden patches replaced by a learned token.

    Args:
        vit: A timm ``VisionTransformer``.
        images: Shape (B, C, H, W).
        mask_token: Shape (1, 1, K).
        masks: True where a patch is hidden, shape (B, N); none if None.

    Returns:
        Embeddings of the images (B, K), which are the class tokens or, of a ViT that has none, the
        means of the patch tokens; and the patch tokens (B, N, K). All tokens are normalised.
    """
    if masks is not None and sees_beyond_patches(vit):
        images = blanked(images, masks, vit.patch_embed.patch_size[0])
    patches = vit.patch_embed(images)  # (B, rows, columns, K)
    if masks is not None:
        hidden = masks.view(*patches.shape[:3], 1)
        patches = torch.where(hidden, mask_token[0, 0].to(patches.dtype), patches)
    tokens = vit.norm(vit.blocks(vit.norm_pre(vit._pos_embed(patches))))
    if vit.num_prefix_tokens == 0:
        return tokens.mean(1), tokens
    return tokens[:, 0], tokens[:, 1:]
