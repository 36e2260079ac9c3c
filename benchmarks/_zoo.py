"""Small self-supervised runs, healthy and broken on purpose, for `collapse_zoo.py` and `collapse_long.py`.

Each method is an `nn.Module` with an `encoder` that is watched, a `loss` of a batch of images and an
`after_step`. A fault is a change of its options, of the optimiser or of the data, and of nothing
else. The images are scikit-learn's 1797 digits of 8×8 pixels.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

STEPS = 600
BATCH = 128


# ------------------------------------------------------------------------------------------ data
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (N, 1, 8, 8) in [−1, 1] and labels: 1285 to train on and 512 held out."""
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(found.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    held_out, known = order[:512], order[512:]
    return images[known], labels[known], images[held_out], labels[held_out]


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate by up to 17°, scale by up to 15 %, shift by up to a pixel, change contrast, add noise."""
    count = len(images)

    def draw(reach: float) -> Tensor:
        return reach * (2 * torch.rand(count, generator=generator) - 1)

    angle, scale = draw(0.3), 1 + draw(0.15)
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    rows = [cosine, -sine, draw(0.25), sine, cosine, draw(0.25)]
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(images.shape), False)
    moved = F.grid_sample(images + 1, grid, align_corners=False) - 1
    noise = torch.randn(moved.shape, generator=generator)
    return moved * (1 + draw(0.2))[:, None, None, None] + 0.1 * noise


# --------------------------------------------------------------------------------------- methods
def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


def backbone(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), *mlp(64, 256, 256, width))


def follow(target: nn.Module, online: nn.Module, momentum: float) -> None:
    with torch.no_grad():
        for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
            slow.lerp_(fast, 1 - momentum)


class Jepa(nn.Module):
    """I-JEPA's principle on vectors (arXiv 2301.08243): predict an EMA target's embedding.

    The context is an image from which a block of the 4×4 patches of 2×2 pixels is taken, with the
    map of what is left beside it; the predictor is told the map of the block. As in I-JEPA the
    target encoder sees the whole image, its output is layer-normalised, and the loss is smooth L1.
    An MLP instead of a ViT has one embedding for the whole image, and a run costs seconds. Watched
    is the target encoder.
    """

    def __init__(self, momentum: float = 0.99, predictor: bool = True, easy: bool = False) -> None:
        super().__init__()
        self.online = mlp(80, 256, 256, 96)
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.predictor = mlp(96 + 16, 256, 96) if predictor else None
        self.momentum, self.easy = momentum, easy

    @staticmethod
    def masked(images: Tensor, patches: Tensor) -> Tensor:
        """Blank the hidden patches and append the map: (B, 80)."""
        pixels = patches.view(-1, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
        return torch.cat([((images + 1) * pixels).flatten(1), patches], 1)

    def encoder(self, images: Tensor) -> Tensor:
        found: Tensor = self.target(self.masked(images, torch.ones(len(images), 16)))
        return found

    def loss(self, images: Tensor, generator: torch.Generator) -> Tensor:
        images = augment(images, generator)
        # A block of 2×4, 4×2 or 3×3 patches is hidden; the context is the rest.
        hidden = torch.zeros(len(images), 4, 4)
        height, width = [(2, 4), (4, 2), (3, 3)][int(torch.randint(3, (1,), generator=generator))]
        top = torch.randint(5 - height, (len(images),), generator=generator)
        left = torch.randint(5 - width, (len(images),), generator=generator)
        places = torch.arange(4)
        rows = (places >= top[:, None]) & (places < top[:, None] + height)
        columns = (places >= left[:, None]) & (places < left[:, None] + width)
        hidden[rows[:, :, None] & columns[:, None, :]] = 1.0
        hidden = hidden.flatten(1)
        seen = torch.ones_like(hidden) if self.easy else 1 - hidden
        guess = self.online(self.masked(images, seen))
        if self.predictor is not None:
            guess = self.predictor(torch.cat([guess, hidden], 1))
        with torch.no_grad():
            aim = self.encoder(images)
        return F.smooth_l1_loss(guess, F.layer_norm(aim, aim.shape[-1:]))

    def after_step(self) -> None:
        follow(self.target, self.online, self.momentum)


class Dino(nn.Module):
    """Self-distillation with a centred, sharpened EMA teacher (arXiv 2104.14294)."""

    def __init__(
        self,
        momentum: float = 0.99,
        centring: bool = True,
        teacher_temperature: float = 0.04,
    ) -> None:
        super().__init__()
        self.student = nn.ModuleDict({"encoder": backbone(192), "head": mlp(192, 128, 32)})
        self.student["prototypes"] = nn.utils.parametrizations.weight_norm(
            nn.Linear(32, 128, bias=False)
        )
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.encoder = self.teacher["encoder"]
        self.register_buffer("centre", torch.zeros(128))
        self.momentum, self.centring = momentum, centring
        self.teacher_temperature = teacher_temperature

    @staticmethod
    def logits(network: nn.ModuleDict, images: Tensor) -> Tensor:
        bottleneck = F.normalize(network["head"](network["encoder"](images)), dim=1)
        found: Tensor = network["prototypes"](bottleneck)
        return found

    def loss(self, images: Tensor, generator: torch.Generator) -> Tensor:
        views = [augment(images, generator) for _ in range(2)]
        with torch.no_grad():
            raw = [self.logits(self.teacher, view) for view in views]
            aims = [((x - self.centre) / self.teacher_temperature).softmax(1) for x in raw]
            if self.centring:
                self.centre.lerp_(torch.cat(raw).mean(0), 0.1)
        guesses = [(self.logits(self.student, view) / 0.1).log_softmax(1) for view in views]
        return -((aims[0] * guesses[1] + aims[1] * guesses[0]).sum(1).mean()) / 2

    def after_step(self) -> None:
        follow(self.teacher, self.student, self.momentum)


class VicReg(nn.Module):
    """Invariance, variance and covariance (arXiv 2105.04906)."""

    def __init__(self, variance: float = 25.0, covariance: float = 1.0) -> None:
        super().__init__()
        self.encoder = backbone(128)
        self.projector = mlp(128, 128, 64)
        self.variance, self.covariance = variance, covariance

    def loss(self, images: Tensor, generator: torch.Generator) -> Tensor:
        first, second = (self.projector(self.encoder(augment(images, generator))) for _ in range(2))
        total = 25 * F.mse_loss(first, second)
        for z in (first, second):
            centred = z - z.mean(0)
            total = total + self.variance / 2 * F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean()
            covariance = centred.T @ centred / (len(z) - 1)
            off = covariance.square().sum() - covariance.diagonal().square().sum()
            total = total + self.covariance * off / z.shape[1]
        return total

    def after_step(self) -> None:
        pass


class LeJepa(nn.Module):
    """Prediction of the views' mean, and sliced Epps-Pulley against N(0, I) (arXiv 2511.08544)."""

    def __init__(self, sigreg: float = 0.05) -> None:
        super().__init__()
        self.encoder = backbone(64)
        self.projector = mlp(64, 128, 16)
        self.sigreg = sigreg

    def loss(self, images: Tensor, generator: torch.Generator) -> Tensor:
        views = torch.stack(
            [self.projector(self.encoder(augment(images, generator))) for _ in range(2)]
        )
        invariance = (views - views.mean(0)).square().mean()
        slices = F.normalize(torch.randn(views.shape[2], 64, generator=generator), dim=0)
        knots = torch.linspace(0, 3, 17)
        weight = torch.full((17,), 2 * 3 / 16)
        weight[[0, -1]] /= 2
        normal = (-knots.square() / 2).exp()
        phases = (views @ slices)[..., None] * knots
        real, imaginary = phases.cos().mean(1) - normal, phases.sin().mean(1)
        distance = ((real.square() + imaginary.square()) * normal * weight).sum(-1).mean()
        return (1 - self.sigreg) * invariance + self.sigreg * images.shape[0] * distance

    def after_step(self) -> None:
        pass


# ------------------------------------------------------------------------------------------ runs
@dataclass(frozen=True)
class Fault:
    """What is wrong with a run: options of the method, learning rate, data.

    Attributes:
        options: Options of the method.
        lr: Learning rate of AdamW.
        one_image: Whether the loader repeats one image.
        pace: Times that learning rate for the predictor. One that learns faster than the encoder is what
            keeps a JEPA apart (arXiv 2102.06810).
        spell: What some of the method's attributes are, for how many steps of every how many;
            not of the first.
    """

    options: dict[str, Any] = field(default_factory=dict)
    lr: float = 1e-3
    one_image: bool = False
    pace: float = 5.0
    spell: tuple[dict[str, Any], int, int] = field(default_factory=lambda: ({}, 0, 1))

    def cast(self, module: nn.Module, step: int) -> None:
        """Change what the spell changes, before a step, and change it back when it is over."""
        changed, length, every = self.spell
        on = step >= every and step % every < length
        for name, value in changed.items():
            usual = f"usual_{name}"
            if not hasattr(module, usual):
                setattr(module, usual, getattr(module, name))
            setattr(module, name, value if on else getattr(module, usual))


METHODS: dict[str, Callable[..., nn.Module]] = {
    "JEPA": Jepa, "DINO": Dino, "VICReg": VicReg, "LeJEPA": LeJepa,
}  # fmt: skip
RUNS: dict[tuple[str, str], Fault] = {
    ("JEPA", "healthy"): Fault(),
    ("JEPA", "EMA momentum 0"): Fault({"momentum": 0.0}),
    ("JEPA", "no predictor"): Fault({"predictor": False}),
    ("JEPA", "nothing masked"): Fault({"easy": True}),
    ("JEPA", "learning rate × 100"): Fault(lr=0.1),
    ("JEPA", "one image"): Fault(one_image=True),
    ("DINO", "healthy"): Fault(),
    ("DINO", "EMA momentum 0"): Fault({"momentum": 0.0}),
    ("DINO", "no centring"): Fault({"centring": False}),
    ("DINO", "no sharpening"): Fault({"teacher_temperature": 0.2}),
    ("DINO", "learning rate × 100"): Fault(lr=0.1),
    ("DINO", "one image"): Fault(one_image=True),
    ("VICReg", "healthy"): Fault(),
    ("VICReg", "no variance term"): Fault({"variance": 0.0}),
    ("VICReg", "no covariance term"): Fault({"covariance": 0.0}),
    ("VICReg", "learning rate × 100"): Fault(lr=0.1),
    ("VICReg", "one image"): Fault(one_image=True),
    ("LeJEPA", "healthy"): Fault(),
    ("LeJEPA", "SIGReg weight 0"): Fault({"sigreg": 0.0}),
    ("LeJEPA", "learning rate × 100"): Fault(lr=0.1),
    ("LeJEPA", "one image"): Fault(one_image=True),
}


LONG: dict[tuple[str, str], Fault] = {
    # Healthy in the end: with a slower predictor and a target that follows faster the embeddings close in
    # on a point within a hundred steps, and recover in the next five hundred.
    ("JEPA", "collapse phase"): Fault({"momentum": 0.95}, pace=2.0),
    # Directions, or the spread, go in every spell, and come back after it.
    ("VICReg", "spells"): Fault(spell=({"covariance": 0.0}, 250, 1000)),
    ("LeJEPA", "spells"): Fault(spell=({"sigreg": 0.0}, 250, 1000)),
}


def train(
    method: str,
    fault: str,
    seed: int,
    look: Callable[[int, nn.Module, float, Tensor | None], None],
    steps: int = STEPS,
) -> None:
    """Train one run.

    Args:
        method: Key of `METHODS`.
        fault: Second part of a key of `RUNS` or `LONG`.
        seed: Of weights, batches and augmentations.
        look: Called before the first and after every step with the step, the method, the loss and the
            batch of the step.
        steps: How many.
    """
    settings = (RUNS | LONG)[method, fault]
    images = digits()[0]
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    module = METHODS[method](**settings.options)
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if name.startswith("predictor") is fast], "pace": pace}
        for fast, pace in ((False, 1.0), (True, settings.pace))
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=0.04)
    only = int(torch.randint(len(images), (1,), generator=generator))
    look(0, module, math.nan, None)
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = group["pace"] * settings.lr * min(1.0, step / 20)
        settings.cast(module, step)
        chosen = torch.randint(len(images), (BATCH,), generator=generator)
        batch = images[torch.full_like(chosen, only) if settings.one_image else chosen]
        loss = module.loss(batch, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        module.after_step()
        look(step, module, float(loss.detach()), batch)


__all__ = ["LONG", "METHODS", "RUNS", "STEPS", "Fault", "digits", "train"]
