"""Latent dynamics with an auxiliary head: what keeps a JEPA from collapsing (arXiv 2509.12249).

Run ``python -m jepa_monitor.recipes.counting`` to train a small encoder in an environment where
objects are added and removed: with latent dynamics and a head for the reward together, with either
alone, and with a random target in place of the reward. See ``docs/recipes/counting.md``. To try
another auxiliary task, edit ``Auxiliary``.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa_monitor import DensityMonitor
from jepa_monitor.functional import separation
from jepa_monitor.recipes.counting_env import CELL, SIDE, CountingEnv, Observations, observations

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

METHODS = ("joint", "dynamics", "reward", "random")
LABELS = {
    "joint": "dynamics + reward",
    "dynamics": "dynamics alone",
    "reward": "reward alone",
    "random": "dynamics + random target",
}
RANDOM_TARGETS = 256

Look = dict[str, float]


@dataclass(frozen=True)
class Settings:
    """How to train; the defaults are those of the table.

    Args:
        method: One of ``METHODS``.
        steps: Optimiser steps.
        batch_size: Environments, of each of which a step sees one transition.
        learning_rate: Highest of the one-cycle schedule of Adam.
        dynamics: Weight of the dynamics loss.
        auxiliary: Weight of the head's loss.
        width: K, dimension of the latent space.
        seed: Of weights, environments, actions and the random target.
    """

    method: str = "joint"
    steps: int = 2000
    batch_size: int = 32
    learning_rate: float = 3e-3
    dynamics: float = 2.0
    auxiliary: float = 10.0
    width: int = 32
    seed: int = 0


class Encoder(nn.Module):
    """A small convolutional network: images (B, 3, 64, 64) in, (B, K) out.

    Args:
        width: K.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patches = nn.Sequential(
            nn.Conv2d(3, 32, CELL, CELL), nn.GELU(), nn.Conv2d(32, 32, 1), nn.GELU()
        )
        self.head = nn.Sequential(
            nn.Linear(32 * (SIDE // CELL) ** 2 + 32, 128), nn.GELU(), nn.Linear(128, width)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Embed images.

        Args:
            images: (B, 3, 64, 64), in [0, 1].

        Returns:
            (B, K).
        """
        features = self.patches(images)
        # What is where, and how much of it there is.
        both = torch.cat([features.flatten(1), features.sum((2, 3))], 1)
        latents: Tensor = self.head(both)
        return latents


class Auxiliary(nn.Module):
    """A head that predicts from the latent what is to be told apart.

    Args:
        settings: The method.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.random = settings.method == "random"
        outputs = RANDOM_TARGETS if self.random else 1
        self.head = nn.Sequential(nn.Linear(settings.width, 64), nn.GELU(), nn.Linear(64, outputs))
        # Unit variance of the targets: images have about 150 non-black pixels.
        target = torch.randn(3 * SIDE * SIDE, outputs) / 8
        self.register_buffer("target", target if self.random else torch.empty(0))
        self.target: Tensor

    def forward(self, latents: Tensor, images: Tensor, rewards: Tensor) -> Tensor:
        """Measure how far off the head is.

        Args:
            latents: (B, K).
            images: (B, 3, 64, 64), of which a random linear map is the random target.
            rewards: (B,), the target otherwise.

        Returns:
            Mean squared error, 0-dimensional.
        """
        target = images.flatten(1) @ self.target if self.random else rewards[:, None]
        return F.mse_loss(self.head(latents), target)


class Agent(nn.Module):
    """Encoder, latent dynamics and head.

    Args:
        settings: How to train.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.encoder = Encoder(settings.width)
        self.dynamics = nn.Sequential(
            nn.Linear(settings.width + 1, 128), nn.GELU(), nn.Linear(128, settings.width)
        )
        self.auxiliary = Auxiliary(settings)

    def forward(
        self, images: Tensor, actions: Tensor, following: Tensor, rewards: Tensor, live: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute both losses. Nothing is detached, and there is no target network.

        Args:
            images: o_t, (B, 3, 64, 64).
            actions: a_t, (B,).
            following: o_{t+1}.
            rewards: Of o_t and of o_{t+1}, (2, B).
            live: Whether the episode had not ended at o_t, (B,).

        Returns:
            L_dyn, the mean squared error of the predicted latent, and L_p, that of the head.
        """
        both = torch.cat([images, following])
        latents = self.encoder(both)
        now, then = latents.chunk(2)
        predicted = self.dynamics(torch.cat([now, actions[:, None]], 1))
        errors = (predicted - then).square().mean(1)[live]
        head: Tensor = self.auxiliary(latents, both, rewards.flatten())
        return errors.mean(), head


class Run(NamedTuple):
    """What a training run leaves behind."""

    looks: list[Look]
    latents: list[Tensor]


def train(settings: Settings, held_out: Observations, looks: int = 8) -> Run:
    """Train an agent and look at its encoder at steps evenly spread in their logarithm.

    Args:
        settings: How.
        held_out: What to look at.
        looks: How often, about.

    Returns:
        Numbers, and the latents of the held-out observations, of each look.

    Raises:
        ValueError: If there is no such method.
    """
    if settings.method not in METHODS:
        raise ValueError(f"`method` must be one of {', '.join(METHODS)}, got {settings.method!r}.")
    with torch.random.fork_rng([]):
        torch.manual_seed(settings.seed)
        agent = Agent(settings)
    env = CountingEnv(settings.batch_size, seed=settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    optimizer = torch.optim.Adam(agent.parameters(), settings.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, settings.steps, pct_start=0.1, cycle_momentum=False
    )
    monitor = DensityMonitor(held_out.images[:128], max_probe_samples=8, polarity_samples=0)
    spread = np.geomspace(30, settings.steps, looks).round().astype(int).tolist()
    when = {0, *spread, settings.steps}
    run = Run([], [])
    history: list[tuple[float, float]] = []
    for step in range(settings.steps + 1):
        # One transition an episode: every number of objects comes up equally often.
        images, first, live = env.reset(), env.rewards(), env.numbers != env.goal
        actions = 2 * torch.rand(settings.batch_size, generator=generator) - 1
        following, second, _ = env.step(actions)
        dynamics, head = agent(images, actions, following, torch.stack([first, second]), live)
        history.append((dynamics.item(), head.item()))
        if step in when:
            mean = np.mean(history[-50:], axis=0)
            latents, seen = look(agent.encoder, held_out, monitor)
            losses = {"dynamics_loss": float(mean[0]), "head_loss": float(mean[1])}
            run.looks.append({"step": step, **losses, **seen})
            run.latents.append(latents)
        if step == settings.steps:
            break
        terms = []
        if settings.method != "reward":
            terms.append(settings.dynamics * dynamics)
        if settings.method != "dynamics":
            terms.append(settings.auxiliary * head)
        value = torch.stack(terms).sum()
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return run


def look(
    encoder: nn.Module, held_out: Observations, monitor: DensityMonitor
) -> tuple[Tensor, Look]:
    """Measure how far numbers of objects are kept apart, and what the monitor says.

    Args:
        encoder: To look at.
        held_out: Observations and their numbers of objects.
        monitor: Of some of them.

    Returns:
        The latents and the numbers.
    """
    with torch.no_grad():
        latents = encoder(held_out.images)
    apart = separation(latents, held_out.numbers)._asdict()
    seen = monitor.evaluate(encoder).scalars
    tags = ("jepa_score/mean", "collapse/rankme", "collapse/normalized_std")
    return latents, {
        **{name: float(value) for name, value in apart.items()},
        "clusters": len(set(held_out.numbers.tolist())) - float(apart["merged"]),
        "spread": float(latents.std(0).square().sum().sqrt()),
        **{tag: seen[tag] for tag in tags},
    }


# ------------------------------------------------------------------------------------ command line
COLUMNS = {
    "dynamics_loss": ("L_dyn", "{:.1e}"),
    "head_loss": ("L_p", "{:.1e}"),
    "accuracy": ("nearest centroid", "{:.0%}"),
    "gap_ratio": ("gap ratio", "{:.2f}"),
    "collapse_rate": ("collapse rate", "{:.2f}"),
    "auroc": ("AUROC", "{:.2f}"),
    "clusters": ("clusters", "{:.0f}"),
    "spread": ("spread", "{:.1e}"),
    "collapse/rankme": ("RankMe", "{:.1f}"),
}


def table(runs: dict[str, list[list[Look]]]) -> str:
    """Summarise the last looks in Markdown.

    Args:
        runs: By method, one list of looks for each seed.

    Returns:
        One row a method; seeds are separated by commas.
    """
    lines = ["| trained | " + " | ".join(head for head, _ in COLUMNS.values()) + " |"]
    lines.append("|" + "---|" * (len(COLUMNS) + 1))
    for method, found in runs.items():
        cells = [LABELS[method]]
        for key, (_, form) in COLUMNS.items():
            untrained = "dynamics_loss" if method == "reward" else "head_loss"
            if key == untrained and method in ("reward", "dynamics"):
                cells.append("–")
            else:
                cells.append(", ".join(form.format(seen[-1][key]) for seen in found))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(runs: dict[str, Run], numbers: Tensor, panels: int = 5) -> Figure:
    """Draw the latent space over training: its two widest directions, coloured by number.

    Args:
        runs: By method, one run.
        numbers: Of objects, of each latent.
        panels: Looks to show, evenly spread over those there are.

    Returns:
        The figure; each panel has its own scale, which is written beside it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.1 * panels + 1, 2.1 * len(runs)), layout="constrained")
    rows = figure.subplots(len(runs), panels, squeeze=False)
    for row, (method, run) in zip(rows, runs.items(), strict=True):
        chosen = np.linspace(0, len(run.looks) - 1, panels).round().astype(int)
        for axis, index in zip(row, chosen, strict=True):
            centred = (run.latents[index] - run.latents[index].mean(0)).double()
            plane = centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:2].T
            points = axis.scatter(*plane.T.numpy(), c=numbers, cmap="turbo", s=5, linewidths=0)
            seen = run.looks[index]
            axis.set(xticks=[], yticks=[])
            axis.set_title(
                f"step {seen['step']:.0f}: spread {seen['spread']:.0e}", fontsize=8, pad=3
            )
            axis.set_xlabel(
                f"accuracy {seen['accuracy']:.0%}, {seen['clusters']:.0f} clusters", fontsize=8
            )
        row[0].set_ylabel(LABELS[method], fontsize=9)
    figure.colorbar(points, ax=rows, label="objects", shrink=0.6, pad=0.01)
    return figure


def main(arguments: Sequence[str] | None = None) -> dict[str, list[list[Look]]]:
    """Train from the command line.

    Args:
        arguments: Or None for those of the process.

    Returns:
        By method, the looks of each seed.
    """
    defaults = Settings()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--batch_size", type=int, default=defaults.batch_size)
    parser.add_argument("--learning_rate", type=float, default=defaults.learning_rate)
    parser.add_argument("--dynamics", type=float, default=defaults.dynamics, help="weight of L_dyn")
    parser.add_argument("--auxiliary", type=float, default=defaults.auxiliary, help="weight of L_p")
    parser.add_argument("--looks", type=int, default=8, help="at the encoder, about")
    parser.add_argument("--folder", type=Path, default=Path("runs/counting"))
    parser.add_argument("--show", action="store_true", help="the stored runs of the folder only")
    chosen = parser.parse_args(arguments)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    held_out = observations()
    runs: dict[str, list[Run]] = {}
    for method in chosen.method:
        runs[method] = []
        for seed in chosen.seeds:
            path = chosen.folder / f"{method}_{seed}.pt"
            if chosen.show:
                runs[method].append(Run(*torch.load(path, weights_only=True)))
                continue
            started = time.process_time()
            settings = Settings(
                method,
                chosen.steps,
                chosen.batch_size,
                chosen.learning_rate,
                chosen.dynamics,
                chosen.auxiliary,
                seed=seed,
            )
            run = train(settings, held_out, chosen.looks)
            torch.save(tuple(run), path)
            runs[method].append(run)
            end = run.looks[-1]
            print(
                f"{LABELS[method]}, seed {seed}: nearest centroid {end['accuracy']:.0%}, "
                f"{end['clusters']:.0f} clusters, {time.process_time() - started:.0f} s",
                flush=True,
            )
    found = {method: [run.looks for run in of_method] for method, of_method in runs.items()}
    print(table(found))
    picture = chosen.folder / "latents.png"
    draw({m: of_method[0] for m, of_method in runs.items()}, held_out.numbers).savefig(
        picture, dpi=100
    )
    print(picture)
    return found


if __name__ == "__main__":
    main()
