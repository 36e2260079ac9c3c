"""What tests of Jacobians share: an encoder whose Jacobians differ, textbook Jacobians, and a sine without much of autograd."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

WIDTH = 40


def jacobians(encoder: nn.Module, data: Tensor) -> Tensor:
    """Textbook Jacobians in float64, (B, K, D)."""
    double = copy.deepcopy(encoder).double().eval()
    return torch.stack([
        torch.autograd.functional.jacobian(lambda x: double(x[None])[0], one).flatten(1)
        for one in data.double()
    ])  # fmt: skip


def rough(width: int = WIDTH, inputs: int = 192) -> nn.Module:
    """An encoder whose Jacobians differ from image to image."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, 64), nn.GELU(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, width)
    )  # fmt: skip


class NoForwardMode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient * ctx.saved_tensors[0].cos()


class OnceOnly(NoForwardMode):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient * ctx.saved_tensors[0].cos()
