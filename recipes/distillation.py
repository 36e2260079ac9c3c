"""What DINO and DINOv2 distil: heads of prototypes, a teacher's balanced answers, and the losses."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from jepa_monitor.recipes.module import is_decayed


class Head(nn.Module):
    """Three linear layers, then cosines with the prototypes: a weight-normalised last layer.

    Args:
        width: Numbers in.
        hidden: Numbers in each of the two hidden layers.
        bottleneck: Numbers in a prototype.
        prototypes: Numbers out, P.
        batchnorm: Whether batch normalisation follows the two hidden layers.
    """

    def __init__(
        self, width: int, hidden: int, bottleneck: int, prototypes: int, batchnorm: bool = False
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in (width, hidden):
            layers.append(nn.Linear(inputs, hidden))
            layers += [nn.BatchNorm1d(hidden)] if batchnorm else []
            layers.append(nn.GELU())
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden, bottleneck))
        self.last_layer = nn.Linear(bottleneck, prototypes, bias=False)
        for layer in (*self.mlp, self.last_layer):
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=layer.in_features**-0.5)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Compare tokens with the prototypes.

        Args:
            tokens: Shape (n, K).

        Returns:
            Cosines, float32, shape (n, P).
        """
        found = F.normalize(self.mlp(tokens), dim=1)
        return F.linear(found, F.normalize(self.last_layer.weight, dim=1)).float()


# --------------------------------------------------------------------------- the teacher's answers
def summed(value: Tensor) -> Tensor:
    """Add a tensor up over all processes.

    Args:
        value: This process's part; changed in place.

    Returns:
        The sum.
    """
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(value)
    return value


def sinkhorn_knopp(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Assign samples to prototypes so that all prototypes are used equally (arXiv 2006.09882).

    Alternately scales the prototypes to equal mass and the samples to mass 1, over all processes.
    No prototype can win every sample, so the teacher cannot collapse to one answer.

    Args:
        logits: Shape (N, P), float32, of a size for which exp(logits / temperature) is finite.
        temperature: Positive; small values sharpen.
        iterations: How often.

    Returns:
        Probabilities, shape (N, P); rows sum to 1.
    """
    mass = torch.exp(logits / temperature)
    count = summed(torch.tensor(float(len(logits)), device=logits.device))
    for _ in range(iterations):
        mass = mass / summed(mass.sum(0)) * (count / logits.shape[1])
        mass = mass / mass.sum(1, keepdim=True)
    return mass


class Centre(nn.Module):
    """DINO's alternative to Sinkhorn-Knopp: subtract the running mean of the logits, then sharpen.

    Args:
        prototypes: P.
        momentum: Share of the old mean that stays.
    """

    value: Tensor

    def __init__(self, prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(prototypes))

    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """Answer with the mean so far, then learn from these logits.

        Args:
            logits: Shape (N, P).
            temperature: Positive.

        Returns:
            Probabilities, shape (N, P).
        """
        answers = ((logits - self.value) / temperature).softmax(1)
        total = summed(logits.sum(0))
        count = summed(torch.tensor(float(len(logits)), device=logits.device))
        if count > 0:
            self.value.lerp_(total / count, 1 - self.momentum)
        return answers


# ------------------------------------------------------------------------------------------ losses
def dino_loss(students: list[Tensor], teachers: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of every crop against the teacher's answer to every *other* global crop.

    Args:
        students: Logits of the crops, (B, P) each, the global crops first.
        teachers: Probabilities of the G global crops, shape (G, B, P).
        temperature: Of the student.

    Returns:
        Scalar, the mean over images and pairs of crops.
    """
    pairs = [
        -(teacher * (student / temperature).log_softmax(1)).sum(1).mean()
        for crop, student in enumerate(students)
        for place, teacher in enumerate(teachers)
        if crop != place
    ]
    return torch.stack(pairs).mean()


def ibot_loss(student: Tensor, teacher: Tensor, masks: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of hidden patches against what the teacher says of them, seeing all.

    Args:
        student: Logits of the hidden patches of all images, image by image, shape (n, P).
        teacher: Probabilities of the same patches, shape (n, P).
        masks: Where they are, shape (B, N).
        temperature: Of the student.

    Returns:
        Scalar: the mean of each image over its hidden patches, averaged over all images; an image
        without hidden patches counts as 0.
    """
    entropies = -(teacher * (student / temperature).log_softmax(1)).sum(1)
    hidden = masks.sum(1, keepdim=True).clamp_min(1)
    return (entropies / hidden.expand_as(masks)[masks]).sum() / len(masks)


def koleo(embeddings: Tensor) -> Tensor:
    """Kozachenko-Leonenko regulariser: keep nearest neighbours on the sphere apart.

    Args:
        embeddings: Shape (B, K), B ≥ 2.

    Returns:
        Scalar: minus the mean logarithm of the distance to the nearest neighbour in the batch.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        points = F.normalize(embeddings.float(), dim=1)
        with torch.no_grad():
            nearest = (points @ points.T).fill_diagonal_(-1).argmax(1)
        return -(F.pairwise_distance(points, points[nearest]) + 1e-8).log().mean()


def layer_of(name: str, depth: int) -> int:
    """Say how far up a parameter of a ViT stands, for learning rates that fall towards the input.

    Args:
        name: Its name in the module.
        depth: Transformer blocks.

    Returns:
        0 for patches, tokens and positions, 1 … depth for the blocks, depth + 1 for all behind them.
    """
    if ".blocks." in name:
        return int(name.partition(".blocks.")[2].partition(".")[0]) + 1
    return 0 if "token" in name or "pos_embed" in name or "patch_embed" in name else depth + 1


def student_groups(
    student: nn.Module, depth: int, layer_decay: float, patch_embed_lr: float
) -> list[dict[str, Any]]:
    """Part trained parameters by weight decay, by layer and by being a last layer.

    Args:
        student: Whose parameters; those of its teacher are frozen.
        depth: Transformer blocks of its backbone.
        layer_decay: Factor of the learning rate from each layer to the one below.
        patch_embed_lr: A further factor of the learning rate of what makes tokens of patches.

    Returns:
        Groups for AdamW, each with ``decays``, ``lr_scale``, ``last_layer`` and ``rate``.
    """
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            scale = layer_decay ** (depth + 1 - layer_of(name, depth))
            scale *= patch_embed_lr if "patch_embed" in name else 1.0
            key = (scale, is_decayed(name, parameter), "last_layer" in name)
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "lr_scale": scale,
            "decays": decays,
            "last_layer": last,
            "rate": "last_layer_lr" if last else "lr",
        }
        for (scale, decays, last), parameters in groups.items()
    ]
