"""The paper's own way to score: in go an encoder and images, out come JEPA-SCOREs."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def plain(encoder: nn.Module, images: Tensor) -> Tensor:
    """The listing of arXiv 2510.05949, app. B: all rows of all images, `svdvals` in the encoder's type."""
    leaf = images.clone().requires_grad_()
    summed = encoder(leaf).sum(0)
    rows = [
        torch.autograd.grad(summed[k], leaf, retain_graph=True)[0].flatten(1)
        for k in range(len(summed))
    ]
    scores: Tensor = torch.linalg.svdvals(torch.stack(rows, 1)).clamp_min(1e-6).log().sum(1)
    return scores
