"""Late generalisation and the Jacobian (GrokAlign, Walker et al., arXiv 2506.12284), on digits.

Run ``python -m jepa_monitor.recipes.grokking`` to train a classifier that starts with weights far too
large, so that it knows its training digits long before it knows others; without a regulariser, with
weight decay, and with the norm of the Jacobian as regulariser. See ``docs/recipes/grokking.md``. To
try another regulariser, edit ``loss``.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa_monitor.encoders.embedder import Embedder
from jepa_monitor.functional import (
    centroid_alignment,
    jacobian_alignment,
    jacobian_frobenius_norm,
    rank_one_share,
)
from jepa_monitor.jacobian.rows import jacobian_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

METHODS = ("none", "decay", "jacobian")
DATA = ("digits", "mnist")
LABELS = {"none": "no regulariser", "decay": "weight decay", "jacobian": "norm of the Jacobian"}
COLORS = {"none": "#000000", "decay": "#0072B2", "jacobian": "#D55E00"}
LEARNED = 0.99  # training accuracy that counts as known
ALIGNED_AT = 100  # training images whose Jacobians are looked at

Look = dict[str, float]


# ------------------------------------------------------------------------------------------- data
class Digits(NamedTuple):
    """Images as vectors and their labels, to train on and to generalise to."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load(name: str, count: int = 1000, root: Path = Path("data")) -> Digits:
    """Read handwritten digits.

    Args:
        name: ``"digits"``, scikit-learn's 1797 of 8×8 pixels, or ``"mnist"``, which is downloaded.
        count: Images to train on; all others (of MNIST, 2000) are to test on.
        root: Folder of the download.

    Returns:
        Images of mean 0 and variance 1 over all training pixels, (N, D).

    Raises:
        ValueError: If there is no such data.
    """
    if name == "digits":
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
    elif name == "mnist":
        from torchvision.datasets import MNIST

        data = MNIST(str(root), train=True, download=True)
        pixels, labels = data.data.flatten(1).numpy(), data.targets.numpy()
    else:
        raise ValueError(f"`name` must be one of {', '.join(DATA)}, got {name!r}.")
    order = np.random.default_rng(0).permutation(len(pixels))[: count + 2000]
    images, classes = torch.from_numpy(pixels[order]).float(), torch.from_numpy(labels[order])
    images = (images - images[:count].mean()) / images[:count].std()
    classes = classes.long()
    return Digits(images[:count], classes[:count], images[count:], classes[count:])


# ----------------------------------------------------------------------------------------- method
@dataclass(frozen=True)
class Settings:
    """How to train; the defaults are those of the table.

    Args:
        method: One of ``METHODS``.
        data: One of ``DATA``.
        steps: Optimiser steps.
        batch_size: Images a step.
        learning_rate: Of AdamW, constant.
        weight_decay: For ``method="decay"``.
        strength: Weight of the mean norm of the Jacobian, for ``method="jacobian"``.
        width: Of the three hidden layers.
        init_scale: What PyTorch's initial weights are multiplied by; 8 makes generalisation late.
        seed: Of the weights, the batches and the probes.
    """

    method: str = "none"
    data: str = "digits"
    steps: int = 6000
    batch_size: int = 200
    learning_rate: float = 1e-3
    weight_decay: float = 1.0
    strength: float = 0.1
    width: int = 128
    init_scale: float = 8.0
    seed: int = 0


def classifier(inputs: int, settings: Settings) -> nn.Sequential:
    """Build a multilayer perceptron with weights that are too large.

    Args:
        inputs: Pixels of an image.
        settings: Width, scale and seed.

    Returns:
        Images (N, D) → logits (N, 10).
    """
    widths = [inputs, settings.width, settings.width, settings.width, 10]
    layers: list[nn.Module] = []
    with torch.random.fork_rng([]):
        torch.manual_seed(settings.seed)
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
    network = nn.Sequential(*layers[:-1])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(settings.init_scale)
    return network


def loss(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    settings: Settings,
    generator: torch.Generator,
) -> Tensor:
    """Cross-entropy, and the regulariser if it is on.

    Args:
        network: To train.
        images: (N, D).
        labels: (N,).
        settings: The method and its strength.
        generator: Of the regulariser's probes.

    Returns:
        0-dimensional.
    """
    value = F.cross_entropy(network(images), labels)
    if settings.method == "jacobian":
        norms = jacobian_frobenius_norm(network, images, generator=generator)
        value = value + settings.strength * norms.mean()
    return value


def train(data: Digits, settings: Settings, looks: int = 25) -> list[Look]:
    """Train a classifier and look at it at steps that are evenly spread in their logarithm.

    Args:
        data: From :func:`load`.
        settings: How.
        looks: How often, about.

    Returns:
        What was seen, with the step.

    Raises:
        ValueError: If there is no such method.
    """
    if settings.method not in METHODS:
        raise ValueError(f"`method` must be one of {', '.join(METHODS)}, got {settings.method!r}.")
    network = classifier(data.images.shape[1], settings)
    decay = settings.weight_decay if settings.method == "decay" else 0.0
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=decay)
    generator = torch.Generator().manual_seed(settings.seed)
    spread = np.geomspace(10, settings.steps, looks).round().astype(int).tolist()
    when = {0, *spread, settings.steps}
    seen: list[Look] = []
    order = torch.empty(0, dtype=torch.long)
    for step in range(settings.steps + 1):
        if step in when:
            seen.append({"step": step, **look(network, data)})
        if step == settings.steps:
            break
        if len(order) < settings.batch_size:
            order = torch.randperm(len(data.images), generator=generator)
        batch, order = order[: settings.batch_size], order[settings.batch_size :]
        value = loss(network, data.images[batch], data.labels[batch], settings, generator)
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return seen


def look(network: nn.Module, data: Digits) -> Look:
    """Measure accuracy and alignment.

    Args:
        network: To look at.
        data: Where.

    Returns:
        Accuracies, and means over training images of what the Jacobian tells.
    """
    with torch.no_grad():
        known = network(data.images).argmax(1) == data.labels
        new = network(data.test_images).argmax(1) == data.test_labels
    images = data.images[:ALIGNED_AT]
    embedder = Embedder(network)
    _, rows = embedder.run(lambda: jacobian_rows(embedder, images, None), images.device)
    rows = rows.double()
    centroid = centroid_alignment(rows.sum(1), images)
    jacobian = jacobian_alignment(rows, images)
    return {
        "train_accuracy": float(known.double().mean()),
        "test_accuracy": float(new.double().mean()),
        "centroid_alignment": float(centroid.value.mean()),
        "centroid_alignment_shuffled": float(centroid.shuffled.mean()),
        "jacobian_alignment": float(jacobian.value.mean()),
        "jacobian_alignment_shuffled": float(jacobian.shuffled.mean()),
        "rank_one_share": float(rank_one_share(torch.linalg.svdvals(rows)).mean()),
        "jacobian_norm": float(rows.flatten(1).norm(dim=1).mean()),
    }


def first_step(seen: list[Look], key: str, level: float) -> float:
    """Find the first step at which a curve reaches a level.

    Args:
        seen: From :func:`train`.
        key: Which curve.
        level: To reach.

    Returns:
        The step; infinity if it never does.
    """
    return next((look["step"] for look in seen if look[key] >= level), float("inf"))


# ------------------------------------------------------------------------------------ command line
def table(runs: dict[str, list[list[Look]]], level: float) -> str:
    """Summarise runs in Markdown.

    Args:
        runs: By method, one list of looks for each seed.
        level: Test accuracy that counts as generalisation.

    Returns:
        One row a method; seeds are separated by commas.
    """
    head = [
        "regulariser",
        f"training accuracy ≥ {LEARNED:.0%} at step",
        f"test accuracy ≥ {level:.0%} at step",
        "test accuracy at the end",
        "centroid alignment (other inputs), start → end",
        "Jacobian alignment (other inputs), start → end",
        "rank-one share, start → end",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]

    def steps(found: list[list[Look]], key: str, reach: float) -> str:
        values = [first_step(seen, key, reach) for seen in found]
        return ", ".join("never" if np.isinf(v) else f"{v:.0f}" for v in values)

    def mean(found: list[list[Look]], key: str, index: int) -> float:
        return float(np.mean([seen[index][key] for seen in found]))

    for method, found in runs.items():
        cells = [
            LABELS[method],
            steps(found, "train_accuracy", LEARNED),
            steps(found, "test_accuracy", level),
            ", ".join(f"{seen[-1]['test_accuracy']:.1%}" for seen in found),
        ]
        for key in ("centroid_alignment", "jacobian_alignment"):
            ends = [
                f"{mean(found, key, i):.2f} ({mean(found, key + '_shuffled', i):.2f})"
                for i in (0, -1)
            ]
            cells.append(" → ".join(ends))
        cells.append(" → ".join(f"{mean(found, 'rank_one_share', i):.2f}" for i in (0, -1)))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(runs: dict[str, list[list[Look]]]) -> Figure:
    """Draw the curves, one line a seed.

    Args:
        runs: As for :func:`table`.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    panels = figure.subplots(1, 4)
    titles = {
        "test_accuracy": "accuracy",
        "centroid_alignment": "centroid alignment",
        "jacobian_alignment": "Jacobian alignment",
        "rank_one_share": "rank-one share",
    }
    for panel, (key, title) in zip(panels, titles.items(), strict=True):
        for method, found in runs.items():
            for number, seen in enumerate(found):
                steps = [max(look["step"], 5) for look in seen]
                label = LABELS[method] if number == 0 else None
                panel.plot(steps, [s[key] for s in seen], color=COLORS[method], lw=1.4, label=label)
                dotted = "train_accuracy" if key == "test_accuracy" else f"{key}_shuffled"
                if dotted in seen[0]:
                    panel.plot(
                        steps, [s[dotted] for s in seen], color=COLORS[method], lw=0.8, ls=":"
                    )
        panel.set(xscale="log", xlabel="step", title=title)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].text(0.97, 0.03, "solid: test, dotted: training", transform=panels[0].transAxes,
                   ha="right", fontsize=8)  # fmt: skip
    panels[1].text(0.97, 0.03, "dotted: with other inputs", transform=panels[1].transAxes,
                   ha="right", fontsize=8)  # fmt: skip
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=len(runs), loc="outside lower center", frameon=False)
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
    parser.add_argument("--data", choices=DATA, default="digits")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--strength", type=float, default=defaults.strength)
    parser.add_argument("--weight_decay", type=float, default=defaults.weight_decay)
    parser.add_argument("--init_scale", type=float, default=defaults.init_scale)
    parser.add_argument("--level", type=float, default=0.9, help="test accuracy to reach")
    parser.add_argument("--looks", type=int, default=25, help="at the network, about")
    parser.add_argument("--folder", type=Path, default=Path("runs/grokking"))
    parser.add_argument("--show", action="store_true", help="the stored runs of the folder only")
    chosen = parser.parse_args(arguments)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    runs: dict[str, list[list[Look]]] = {}
    data = None
    for method in chosen.method:
        path = chosen.folder / f"{chosen.data}_{method}.json"
        if chosen.show:
            runs[method] = json.loads(path.read_text())
            continue
        data = data or load(chosen.data)
        runs[method] = []
        for seed in range(chosen.seeds):
            settings = Settings(
                method,
                chosen.data,
                chosen.steps,
                weight_decay=chosen.weight_decay,
                strength=chosen.strength,
                init_scale=chosen.init_scale,
                seed=seed,
            )
            seen = train(data, settings, chosen.looks)
            runs[method].append(seen)
            end = seen[-1]
            print(
                f"{LABELS[method]}, seed {seed}: test accuracy {end['test_accuracy']:.1%}, centroid "
                f"alignment {seen[0]['centroid_alignment']:.2f} to {end['centroid_alignment']:.2f}",
                flush=True,
            )
        path.write_text(json.dumps(runs[method]) + "\n")
    print(table(runs, chosen.level))
    picture = chosen.folder / f"{chosen.data}.png"
    draw(runs).savefig(picture, dpi=110)
    print(picture)
    return runs


if __name__ == "__main__":
    main()
