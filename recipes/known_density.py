"""The theory put to the test: is the score of an encoder the log-density that it was trained on?

Run `python -m jepa_monitor.recipes.known_density` to train small encoders on points of the plane
whose log-density is known, and to compare it with what each encoder claims; see `docs/theory.md`.
To try a distribution of your own, give `densities.py` a class with `sample` and `log_prob`. To try
another method, edit `loss`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa_monitor import DensityMonitor, log_density
from jepa_monitor.functional import density_agreement, knn_distance
from jepa_monitor.functional.gaussian import Gaussian, Shrinkage
from jepa_monitor.recipes.densities import NAMES, Density, make_density
from jepa_monitor.recipes.lejepa import sigreg
from jepa_monitor.recipes.vicreg import vicreg_loss

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

    from jepa_monitor.functional.calibration import DensityAgreement

METHODS = ("sigreg", "vicreg")
SCORES = ("jepa_score", "log_prior", "knn", "log_density")
NEIGHBOURS = 10
HELD_OUT, REFERENCE = 1000, 4096  # points to score, points behind μ, Σ and the neighbours


# ----------------------------------------------------------------------------------------- method
@dataclass(frozen=True)
class Settings:
    """How to train; the defaults are those of the benchmark.

    Args:
        method: ``"sigreg"`` or ``"vicreg"``.
        steps: Optimiser steps.
        batch_size: Fresh points a step; there is no training set to memorise.
        noise: Standard deviation of the Gaussian noise that makes two views of a point. What is
            learned is the law of the views, so it must be small beside the law's finest detail.
        strength: λ, weight of SIGReg beside the invariance term.
        slices: Random directions of SIGReg, new at each step.
        hidden: Width of the hidden layers.
        learning_rate: Highest of the one-cycle schedule.
        seed: Of the weights, the points and the directions.
    """

    method: str = "sigreg"
    steps: int = 1000
    batch_size: int = 512
    noise: float = 0.1
    strength: float = 0.1
    slices: int = 32
    hidden: int = 64
    learning_rate: float = 5e-3
    seed: int = 0


class Encoder(nn.Module):
    """A linear map plus a multilayer perceptron: D numbers in, K out.

    It starts as an isometry. A change of variables needs a map that never sends two points to one;
    an encoder that starts at random may be folded already, and a loss on the law of the embeddings
    need not unfold it: they can be Gaussian all the same.

    Args:
        dim: D.
        width: K.
        hidden: Width of the three hidden layers.
    """

    def __init__(self, dim: int, width: int, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, width)
        layers: list[nn.Module] = [nn.Linear(dim, hidden), nn.SiLU()]
        for _ in range(2):
            layers += [nn.Linear(hidden, hidden), nn.SiLU()]
        last = nn.Linear(hidden, width)
        self.mlp = nn.Sequential(*layers, last)
        nn.init.orthogonal_(self.linear.weight)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, points: Tensor) -> Tensor:
        """Embed points.

        Args:
            points: (B, D).

        Returns:
            (B, K).
        """
        embeddings: Tensor = self.linear(points) + self.mlp(points)
        return embeddings


def sigreg_loss(first: Tensor, second: Tensor, strength: float, directions: Tensor) -> Tensor:
    """Views of a point embed alike, and each set of views embeds as N(0, I).

    Args:
        first: Embeddings of one view of each point, (N, K).
        second: Of the other.
        strength: λ.
        directions: Of SIGReg, (K, M).

    Returns:
        0-dimensional.
    """
    normality = (sigreg(first, directions) + sigreg(second, directions)) / 2
    return F.mse_loss(first, second) + strength * normality


def train(
    density: Density, width: int, settings: Settings, monitor: DensityMonitor | None = None
) -> Encoder:
    """Train an encoder on points of a distribution.

    Args:
        density: The distribution.
        width: K.
        settings: How.
        monitor: If given, looks at the encoder before, half-way and after, and the mean score is
            printed. It changes nothing about the training.

    Returns:
        The encoder.

    Raises:
        ValueError: If there is no such method.
    """
    if settings.method not in METHODS:
        raise ValueError(f"`method` must be one of {', '.join(METHODS)}, got {settings.method!r}.")
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.random.fork_rng([]):
        torch.manual_seed(settings.seed)
        encoder = Encoder(density.dim, width, settings.hidden)
    optimizer = torch.optim.Adam(encoder.parameters(), settings.learning_rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, settings.steps, pct_start=0.1, cycle_momentum=False
    )
    for step in range(settings.steps):
        if monitor is not None and step in (0, settings.steps // 2):
            print_look(monitor, encoder, step)
        points = density.sample(settings.batch_size, generator).repeat(2, 1)
        views = points + settings.noise * torch.randn(points.shape, generator=generator)
        first, second = encoder(views).chunk(2)
        if settings.method == "sigreg":
            directions = torch.randn(width, settings.slices, generator=generator)
            loss = sigreg_loss(first, second, settings.strength, F.normalize(directions, dim=0))
        else:
            loss = vicreg_loss(first, second)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    if monitor is not None:
        print_look(monitor, encoder, settings.steps)
    return encoder


def print_look(monitor: DensityMonitor, encoder: Encoder, step: int) -> None:
    """Print what a monitor sees.

    Args:
        monitor: It.
        encoder: To look at.
        step: Of the training.
    """
    seen = monitor.evaluate(encoder).scalars
    score, rank = seen["jepa_score/mean"], seen["collapse/rankme"]
    print(f"  step {step:5d}   mean JEPA-SCORE {score:7.2f} nats   RankMe {rank:5.2f}", flush=True)


# -------------------------------------------------------------------------------------- comparison
class Comparison(NamedTuple):
    """Scores of held-out points beside the truth.

    Args:
        points: (N, D).
        truth: Their log-density, (N,), float64.
        scores: By the names in ``SCORES``, each (N,), float64; higher is denser.
    """

    points: Tensor
    truth: Tensor
    scores: dict[str, Tensor]

    def agreement(self) -> dict[str, DensityAgreement]:
        """Spearman's and Pearson's correlation and the slope of each score against the truth.

        Returns:
            By name of the score.
        """
        return {name: density_agreement(s, self.truth) for name, s in self.scores.items()}


def compare(
    encoder: Encoder, density: Density, seed: int = 0, shrinkage: Shrinkage = "leave_one_out"
) -> Comparison:
    """Score points that were not used for training.

    Args:
        encoder: Trained.
        density: What it was trained on.
        seed: Of the points; their stream is another one than that of the training.
        shrinkage: Of the law of the embeddings; see :class:`~jepa_monitor.functional.gaussian.Gaussian`.

    Returns:
        The scores and the truth.
    """
    generator = torch.Generator().manual_seed(10_000 + seed)
    points = density.sample(HELD_OUT, generator)
    reference = density.sample(REFERENCE, generator)
    with torch.no_grad():
        known, embeddings = encoder(reference), encoder(points)
        distance = knn_distance(embeddings, known, NEIGHBOURS)
    found = log_density(encoder, points, Gaussian.fit(known, shrinkage))
    scores = {
        "jepa_score": found.jepa_score,
        "log_prior": found.log_prior,
        # The volume of a ball that holds k neighbours, of the D-dimensional set of embeddings.
        "knn": -density.dim * distance.clamp_min(1e-12).log(),
        "log_density": found.log_density,
    }
    return Comparison(points, density.log_prob(points), scores)


def draw(
    encoder: Encoder, density: Density, comparison: Comparison, title: str, size: int = 120
) -> Figure:
    """Draw the true and the estimated density of the plane, and the scores against the truth.

    Args:
        encoder: Trained on points of the plane.
        density: The truth.
        comparison: Of held-out points.
        title: Of the figure.
        size: Pixels a side of the maps.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure

    low, high = comparison.points.amin(0) - 0.2, comparison.points.amax(0) + 0.2
    axes_values = [torch.linspace(float(a), float(b), size) for a, b in zip(low, high, strict=True)]
    grid = torch.cartesian_prod(*axes_values)
    reference = density.sample(REFERENCE, torch.Generator().manual_seed(1))
    estimate = log_density(encoder, grid, reference).log_density
    truth = density.log_prob(grid)
    top = float(truth.max())
    figure = Figure(figsize=(11.5, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    extent = (float(low[0]), float(high[0]), float(low[1]), float(high[1]))
    for axis, values, name in ((left, truth, "true"), (middle, estimate, "estimated")):
        image = axis.imshow(
            values.view(size, size).T.numpy(), extent=extent, origin="lower", cmap="cividis",
            vmin=top - 7, vmax=top, aspect="equal",
        )  # fmt: skip
        axis.set(title=f"{name} log-density", xticks=[], yticks=[])
    figure.colorbar(image, ax=[left, middle], label="nats", extend="both", shrink=0.85)
    agreement = comparison.agreement()
    for name, label, color, marker in (
        ("jepa_score", "JEPA-SCORE", "#D55E00", "x"),
        ("log_density", "log_density", "#0072B2", "o"),
    ):
        # Scores are log-densities up to a constant: give each the mean of the truth.
        score = comparison.scores[name]
        shifted = score - score.mean() + comparison.truth.mean()
        right.scatter(
            comparison.truth, shifted, s=9, alpha=0.6, linewidths=0.8 if marker == "x" else 0,
            color=color, marker=marker, label=f"{label}, Spearman {agreement[name].spearman:.2f}",
        )  # fmt: skip
    span = [float(comparison.truth.min()), float(comparison.truth.max())]
    right.plot(span, span, color="black", linewidth=1, linestyle="--", label="equal")
    pad = 0.5 * (span[1] - span[0])
    right.set(xlabel="true log-density (nats)", ylabel="score, shifted to its mean (nats)")
    right.set(title="held-out points", ylim=(span[0] - pad, span[1] + pad))
    right.legend(fontsize=8, loc="upper left", framealpha=0.9)
    right.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    return figure


# ------------------------------------------------------------------------------------ command line
def run(name: str, dim: int, width: int, settings: Settings, folder: Path) -> Comparison:
    """Train and compare once, print the result, and save the picture if D = 2.

    Args:
        name: Of the distribution.
        dim: D.
        width: K.
        settings: How to train.
        folder: For the picture.

    Returns:
        The comparison.
    """
    density = make_density(name, dim)
    print(f"{name}, {dim} -> {width}, {settings.method}, seed {settings.seed}")
    probe = density.sample(256, torch.Generator().manual_seed(20_000))
    encoder = train(density, width, settings, DensityMonitor(probe))
    comparison = compare(encoder, density, settings.seed)
    for score, found in comparison.agreement().items():
        print(
            f"    {score:12s} Spearman {found.spearman:6.3f}   Pearson {found.pearson:6.3f}"
            f"   slope {found.slope:6.2f}"
        )
    if dim == 2:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}_{dim}to{width}_{settings.method}_seed{settings.seed}.png"
        draw(encoder, density, comparison, f"{name}, {settings.method}, K = {width}").savefig(
            path, dpi=100
        )
        print(f"    {path}")
    return comparison


def main(arguments: Sequence[str] | None = None) -> list[Comparison]:
    """Train from the command line.

    Args:
        arguments: Or None for those of the process.

    Returns:
        One comparison for each distribution, method and seed.
    """
    defaults = Settings()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--density", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--dim", type=int, default=2, help="D")
    parser.add_argument("--width", type=int, help="K; default: D, where the theory is exact")
    parser.add_argument("--method", nargs="+", choices=METHODS, default=["sigreg"])
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds, from 0")
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--batch_size", type=int, default=defaults.batch_size)
    parser.add_argument("--noise", type=float, default=defaults.noise)
    parser.add_argument("--strength", type=float, default=defaults.strength, help="λ of SIGReg")
    parser.add_argument("--hidden", type=int, default=defaults.hidden)
    parser.add_argument("--folder", type=Path, default=Path("runs/known_density"))
    chosen = parser.parse_args(arguments)
    return [
        run(
            name,
            chosen.dim,
            chosen.width or chosen.dim,
            Settings(
                method,
                chosen.steps,
                chosen.batch_size,
                chosen.noise,
                chosen.strength,
                hidden=chosen.hidden,
                seed=seed,
            ),
            chosen.folder,
        )
        for name in chosen.density
        for method in chosen.method
        for seed in range(chosen.seeds)
    ]


if __name__ == "__main__":
    main()
