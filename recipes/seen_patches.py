"""Networks of the methods that hide patches: a ViT that is given the others alone, and one that answers."""

from __future__ import annotations

import torch
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from jepa_monitor.recipes.masking import Masks
from jepa_monitor.recipes.networks import blanked, sees_beyond_patches, set_stem


def take(tokens: Tensor, indices: Tensor) -> Tensor:
    """Gather tokens image by image.

    Args:
        tokens: Shape (B, N, K).
        indices: Shape (B, n), each in [0, N).

    Returns:
        Shape (B, n, K).
    """
    return tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[-1]))


def sincos(grid: tuple[int, int], width: int) -> nn.Parameter:
    """Fixed sine-cosine position embeddings, as in the paper: there is nothing to learn first.

    Args:
        grid: Rows and columns of patches.
        width: Numbers per position, a multiple of 4.

    Returns:
        Frozen parameter of shape (1, rows · columns, width).
    """
    table = build_sincos2d_pos_embed(list(grid), width)[None]
    return nn.Parameter(table, requires_grad=False)


def build_encoder(
    image_size: int,
    patch_size: int,
    in_channels: int,
    width: int,
    depth: int,
    heads: int,
    stem: str = "patch",
) -> VisionTransformer:
    """Build a timm ViT without class token that maps images (B, C, H, W) to embeddings (B, width).

    The embedding is the mean of the normalised patch tokens.

    Args:
        image_size: Side of the image in pixels.
        patch_size: Side of a patch in pixels.
        in_channels: Colour channels C.
        width: Numbers per token.
        depth: Transformer blocks.
        heads: Attention heads.
        stem: How patches become tokens, one of ``STEMS`` in ``networks.py``.

    Returns:
        The encoder.

    Raises:
        ValueError: If there is no such stem.
    """
    vit = VisionTransformer(
        img_size=image_size,
        patch_size=patch_size,
        in_chans=in_channels,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        num_classes=0,
        class_token=False,
        global_pool="avg",
        weight_init="jax",  # Xavier: timm's default of std 0.02 is far too small at this width
        fc_norm=False,  # normalise tokens, then pool: the loss needs normalised tokens
    )
    set_stem(vit, stem, in_channels)
    vit.pos_embed = sincos(vit.patch_embed.grid_size, width)
    return vit


def encode_tokens(vit: VisionTransformer, images: Tensor, visible: Tensor | None = None) -> Tensor:
    """Run a timm ViT on the visible patches only; the others cost nothing and leak nothing.

    Args:
        vit: Encoder without class token.
        images: Shape (B, C, H, W).
        visible: Indices of patches, shape (B, n); all if None.

    Returns:
        Normalised tokens, shape (B, n, K).
    """
    if visible is not None and sees_beyond_patches(vit):
        hidden = torch.ones(len(images), vit.patch_embed.num_patches, dtype=torch.bool)
        hidden = hidden.to(images.device).scatter_(1, visible, False)
        images = blanked(images, hidden, vit.patch_embed.patch_size[0])
    tokens = vit.patch_embed(images) + vit.pos_embed
    if visible is not None:
        tokens = take(tokens, visible)
    tokens_out: Tensor = vit.norm(vit.blocks(vit.norm_pre(tokens)))
    return tokens_out


class Predictor(nn.Module):
    """Narrow ViT that predicts what is at the places of a target block from the context tokens.

    Args:
        grid: Rows and columns of patches.
        width: Numbers per token of the encoder.
        predictor_width: Numbers per token inside the predictor, a multiple of 4 and of ``heads``.
        depth: Transformer blocks.
        heads: Attention heads.
        outputs: Numbers K predicted for each place; by default ``width``.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        width: int,
        predictor_width: int,
        depth: int,
        heads: int,
        outputs: int | None = None,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(width, predictor_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, predictor_width))
        self.pos_embed = sincos(grid, predictor_width)
        self.blocks = nn.Sequential(
            *(Block(predictor_width, heads, qkv_bias=True) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(predictor_width)
        self.project = nn.Linear(predictor_width, width if outputs is None else outputs)
        self.apply(self._init)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    @staticmethod
    def _init(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)

    def forward(self, context: Tensor, masks: Masks) -> Tensor:
        """Predict every target block on its own, as the paper does.

        Args:
            context: Tokens of the visible patches, shape (B, N_context, width).
            masks: Where the context and the M targets are.

        Returns:
            What is predicted, shape (B, M, N_target, K).
        """
        batch, blocks, n_target = masks.targets.shape
        positions = self.pos_embed.expand(batch, -1, -1)
        seen = self.embed(context) + take(positions, masks.context)
        seen = seen.repeat_interleave(blocks, dim=0)
        asked = self.mask_token + take(positions, masks.targets.flatten(1))
        tokens = torch.cat([seen, asked.view(batch * blocks, n_target, -1)], dim=1)
        answer: Tensor = self.project(self.norm(self.blocks(tokens)[:, -n_target:]))
        return answer.view(batch, blocks, n_target, -1)
