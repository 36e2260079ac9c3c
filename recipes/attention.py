"""Attention other than softmax, for the encoders of the recipes: in go a ViT and a name (arXiv 2507.20453)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa_monitor._checks import check_choice

ATTENTIONS = ("softmax", "sigmoid", "linear", "sinkhorn", "cosine")
# Of Sinkhorn, rows last; columns of 36 then sum to 1 within 0.002 for logits of deviation 2, 0.05 for 3.
_HALF_STEPS = 41
_PUBLISHED_HALF_STEPS = 3


def sinkhorn(logits: Tensor, half_steps: int = _HALF_STEPS) -> Tensor:
    """Scale exp(logits) until rows and columns sum to 1, by turns, in logarithms; rows first and last.

    The number of steps is fixed: with a tolerance, what an image becomes would depend on its batch.

    Args:
        logits: Shape (..., N, N).
        half_steps: How often rows or columns are scaled, odd.

    Returns:
        The same shape; rows sum to 1, columns the more nearly so the more steps.
    """
    for step in range(half_steps):
        logits = logits - logits.logsumexp(-2 if step % 2 else -1, keepdim=True)
    return logits.exp()


class OtherAttention(nn.Module):
    """timm's attention with its parameters, and other weights.

    With logits q·k/√d of h heads of d numbers, and N tokens:

    - ``sigmoid``: σ(logits − log N), so that equal tokens have a weight of 1/(N + 1) at first;
    - ``linear``: φ(q)·φ(k) over its sum in the row, φ = elu + 1;
    - ``sinkhorn``: doubly stochastic, rows and columns sum to 1;
    - ``cosine``: cos(q, k)/N^σ(m), of any sign, m learned for each head, ½ at first.

    As published, softmax and sigmoid have logits q·k/√(h d), sigmoid no −log N, and Sinkhorn three half
    steps to rows that sum to 1/N, and no biases of q, k and v.

    Args:
        known: timm's.
        kind: One of :data:`ATTENTIONS`.
        published: Whether scales and biases are those of the paper's code.
    """

    def __init__(self, known: Any, kind: str, published: bool) -> None:
        super().__init__()
        self.kind, self.published, self.num_heads = kind, published, known.num_heads
        self.qkv, self.proj = known.qkv, known.proj
        if kind == "sinkhorn" and published:
            self.qkv.bias = None
        if kind == "cosine":
            self.power = nn.Parameter(torch.full((known.num_heads,), 0.5))

    def parts(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Make queries, keys and values.

        Args:
            tokens: Shape (B, N, K).

        Returns:
            Shape (B, h, N, d) each.
        """
        made = self.qkv(tokens).unflatten(2, (3, self.num_heads, -1))
        q, k, v = made.permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def weighed(self, q: Tensor, k: Tensor) -> Tensor:
        """Make weights.

        Args:
            q: Queries, shape (B, h, N, d).
            k: Keys, likewise.

        Returns:
            Shape (B, h, N, N).
        """
        count, width = q.shape[2:]
        if self.kind == "linear":
            products = (F.elu(q) + 1) @ (F.elu(k) + 1).mT
            return products / products.sum(-1, keepdim=True)
        if self.kind == "cosine":
            scale = count ** self.power.sigmoid()[:, None, None]
            return F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT / scale
        whole = self.published and self.kind != "sinkhorn"
        logits = q @ k.mT / math.sqrt(width * self.num_heads if whole else width)
        if self.kind == "softmax":
            return logits.softmax(-1)
        if self.kind == "sigmoid":
            return (logits if self.published else logits - math.log(count)).sigmoid()
        if self.published:
            return sinkhorn(logits, _PUBLISHED_HALF_STEPS) / count
        return sinkhorn(logits)

    def attention_weights(self, tokens: Tensor) -> Tensor:
        """Say how tokens are weighed; for the monitor's ``attention/*``.

        Args:
            tokens: Shape (B, N, K).

        Returns:
            Shape (B, h, N, N).
        """
        q, k, _ = self.parts(tokens)
        return self.weighed(q, k)

    def forward(self, tokens: Tensor, *args: Any, **options: Any) -> Tensor:
        """Mix tokens.

        Args:
            tokens: Shape (B, N, K).
            *args: Of timm's own: a mask.
            **options: Likewise.

        Returns:
            The same shape.

        Raises:
            ValueError: If there is a mask.
        """
        if any(value is not None and value is not False for value in (*args, *options.values())):
            raise ValueError(f"attention={self.kind!r} takes no mask.")
        q, k, v = self.parts(tokens)
        mixed: Tensor = self.proj((self.weighed(q, k) @ v).transpose(1, 2).flatten(2))
        return mixed


def set_attention(vit: Any, kind: str, published: bool = False) -> None:
    """Choose how a ViT's blocks weigh tokens.

    Args:
        vit: A new timm ViT, whose attention may be replaced.
        kind: One of :data:`ATTENTIONS`.
        published: Whether as in the paper's code; see :class:`OtherAttention`.

    Raises:
        ValueError: If there is no such attention.
    """
    check_choice(kind, "attention", ATTENTIONS)
    if kind == "softmax" and not published:
        return
    for block in vit.blocks:
        block.attn = OtherAttention(block.attn, kind, published)
