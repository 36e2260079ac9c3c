"""Does the mean of Task Priors order the checkpoints of a run as linear probes do?

    python benchmarks/task_priors.py                   # trains 3 LeJEPAs, prints the tables
    python benchmarks/task_priors.py --show [FILE]     # the tables of stored results
    python benchmarks/task_priors.py --figure FILE     # and draws the figure

At each checkpoint: `task_prior_performance` in closed form, for a prior from the labels, from the
pixels and from the last checkpoint; and the mean accuracy of linear probes over 30 labelings that are
sampled from the same prior (`sample_tasks`), fitted on one half of the images and scored on the other.
And do independent runs grow alike? `mutual_knn` at each checkpoint with the same run's first and last
checkpoint, with the other runs, and with the pixels.
"""

from __future__ import annotations

import json
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from _results import circumstances, parser, store
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Subset

from jepa_monitor.functional import mutual_knn, sample_tasks, task_prior_performance
from jepa_monitor.recipes.data import ImageDataModule
from jepa_monitor.recipes.lejepa import DEFAULTS, LeJepa

RESULTS = Path(__file__).with_suffix(".json")
TASKS, IMAGES = 30, 240  # images of each half
TEMPERATURE = 0.1
SAMPLER_TEMPERATURE = 0.01  # low enough that the sampled labelings follow the prior
TEMPERATURES = np.geomspace(0.02, 20, 16).tolist()
RIDGE = 1e-3  # of the mean variance of the embeddings


class Snapshots(pl.Callback):
    """Keep the embeddings of fixed images, before training and at epochs evenly spread in log."""

    def __init__(self, images: Tensor, epochs: int, count: int = 8) -> None:
        self.images = images
        self.when = set(np.geomspace(1, epochs, count).round().astype(int).tolist())
        self.epochs: list[int] = []
        self.embeddings: list[Tensor] = []

    def _keep(self, module: Any, epoch: int) -> None:
        module.eval()
        with torch.no_grad():
            self.embeddings.append(module(self.images).double())
        module.train()
        self.epochs.append(epoch)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look before training."""
        self._keep(pl_module, 0)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look where it is time."""
        if trainer.current_epoch + 1 in self.when:
            self._keep(pl_module, trainer.current_epoch + 1)


def probe_accuracy(embeddings: Tensor, tasks: Tensor) -> Tensor:
    """Accuracy on the second half of linear probes (ridge on one-hot labels) of the first, (T,)."""
    z = (embeddings - embeddings[:IMAGES].mean(0)) / embeddings[:IMAGES].var(0).mean().sqrt()
    z = torch.cat([z, torch.ones(len(z), 1, dtype=z.dtype)], 1)
    first, second = z[:IMAGES], z[IMAGES:]
    targets = F.one_hot(tasks).double()  # (T, N, C)
    gram = first.T @ first + RIDGE * IMAGES * torch.eye(z.shape[1], dtype=z.dtype)
    weights = torch.linalg.solve(gram, first.T @ targets[:, :IMAGES])
    return ((second @ weights).argmax(2) == tasks[:, IMAGES:]).double().mean(1)


def measure(seed: int, epochs: int) -> tuple[dict[str, Any], list[Tensor]]:
    """Train once, and compare at each checkpoint; also the embeddings, with the pixels last."""
    started = time.process_time()
    pl.seed_everything(seed, verbose=False)
    options = {k.removeprefix("data."): v for k, v in DEFAULTS.items() if k.startswith("data.")}
    data = ImageDataModule("digits", seed=seed, **options)
    data.setup()
    assert data.plain_train_set is not None
    assert data.val_set is not None
    halves = [Subset(data.plain_train_set, range(IMAGES)), Subset(data.val_set, range(IMAGES))]
    pairs = [pair for half in halves for pair in half]
    images = torch.stack([pair[0] for pair in pairs])
    labels = torch.tensor([pair[1] for pair in pairs])
    snapshots = Snapshots(images, epochs)
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        callbacks=[snapshots],
    )  # fmt: skip
    trainer.fit(LeJepa(data.image_size, data.channels, seed=seed), datamodule=data)
    priors = {
        "labels": labels,
        "pixels": images.double(),
        "last checkpoint": snapshots.embeddings[-1],
    }
    generator = torch.Generator().manual_seed(seed)
    run: dict[str, Any] = {"seed": seed, "epochs": snapshots.epochs, "priors": {}}
    for name, prior in priors.items():
        tasks = sample_tasks(prior, TASKS, 2, SAMPLER_TEMPERATURE, generator)
        found = [task_prior_performance(z, prior, TEMPERATURE) for z in snapshots.embeddings]
        accuracies = torch.stack([probe_accuracy(z, tasks) for z in snapshots.embeddings])
        run["priors"][name] = {
            "mean": [f.mean.item() for f in found],
            "sd": [f.variance.sqrt().item() for f in found],
            "best": found[0].best.item(),
            "accuracy": accuracies.mean(1).tolist(),
        }
    run["classes"] = [probe_accuracy(z, labels[None]).item() for z in snapshots.embeddings]
    run["temperature"] = {
        key: [
            [f.mean.item(), f.variance.sqrt().item(), f.best.item()]
            for f in (task_prior_performance(z, labels, t) for t in TEMPERATURES)
        ]
        for key, z in (("first", snapshots.embeddings[0]), ("last", snapshots.embeddings[-1]))
    }
    run["cpu_seconds"] = round(time.process_time() - started, 1)
    return run, [*snapshots.embeddings, images.flatten(1).double()]


def neighbours(runs: list[list[Tensor]]) -> list[dict[str, list[float]]]:
    """Mutual nearest neighbours of each checkpoint of each run."""
    found = []
    for number, (*checkpoints, pixels) in enumerate(runs):
        others = [run for i, run in enumerate(runs) if i != number]
        across = [
            float(np.mean([mutual_knn(z, other[step]) for other in others]))
            for step, z in enumerate(checkpoints)
        ]
        found.append(
            {
                "first": [mutual_knn(z, checkpoints[0]).item() for z in checkpoints],
                "last": [mutual_knn(z, checkpoints[-1]).item() for z in checkpoints],
                "other runs": across,
                "pixels": [mutual_knn(z, pixels).item() for z in checkpoints],
            }
        )
    return found


def neighbour_table(epochs: list[int], found: list[dict[str, list[float]]]) -> str:
    """One row a comparison, some epochs as columns, in Markdown; means and ranges over the seeds."""
    columns = np.linspace(0, len(epochs) - 1, 5).round().astype(int).tolist()
    head = ["mutual 10-NN with", *(f"epoch {epochs[i]}" for i in columns)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name in found[0]:
        cells = []
        for i in columns:
            values = [run[name][i] for run in found]
            cells.append(f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def table(runs: list[dict[str, Any]]) -> str:
    """One row a prior, in Markdown; seeds are separated by commas."""
    head = ["prior", "mean, first → last checkpoint", "accuracy of the tasks, first → last"]
    head += ["Spearman", "Spearman with the probe of the ten classes"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name in runs[0]["priors"]:
        of_prior = [run["priors"][name] for run in runs]
        cells = [
            ", ".join(f"{p['mean'][0]:.3f} → {p['mean'][-1]:.3f}" for p in of_prior),
            ", ".join(f"{p['accuracy'][0]:.1%} → {p['accuracy'][-1]:.1%}" for p in of_prior),
            ", ".join(f"{spearmanr(p['mean'], p['accuracy'])[0]:.2f}" for p in of_prior),
            ", ".join(
                f"{spearmanr(p['mean'], run['classes'])[0]:.2f}"
                for p, run in zip(of_prior, runs, strict=True)
            ),
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(run: dict[str, Any]) -> Figure:
    """Mean ± sd over tasks against the temperature, and mean against accuracy."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for key, color in (("first", "#7f7f7f"), ("last", "#0072B2")):
        mean, sd, best = np.array(run["temperature"][key]).T
        left.plot(TEMPERATURES, mean, color=color, label=f"{key} checkpoint")
        left.fill_between(TEMPERATURES, mean - sd, mean + sd, color=color, alpha=0.3, lw=0)
    left.plot(TEMPERATURES, best, color="black", ls="--", lw=1, label="best possible")
    left.set(xscale="log", xlabel="temperature", ylabel="performance, mean ± sd")
    left.set_title("prior from the labels")
    left.legend(frameon=False, fontsize=8)
    for (name, prior), color in zip(
        run["priors"].items(), ("#0072B2", "#D55E00", "#009E73"), strict=True
    ):
        right.plot(prior["mean"], prior["accuracy"], "o-", color=color, ms=4, lw=0.8, label=name)
    right.set(xlabel="mean of Task Priors", ylabel="mean accuracy of 30 tasks")
    right.set_title("checkpoints of a run, by prior")
    right.legend(frameon=False, fontsize=8)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0; 2 or more")
    options.add_argument("--epochs", type=int, default=10)
    options.add_argument("--show", nargs="?", type=Path, const=RESULTS, help="train nothing")
    options.add_argument("--figure", type=Path, help="picture to draw")
    chosen = options.parse_args()
    if chosen.show:
        record = json.loads(chosen.show.read_text())
    else:
        torch.set_num_threads(chosen.threads)
        warnings.filterwarnings("ignore", ".*does not have many workers")
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        measured = []
        for seed in range(chosen.seeds):
            measured.append(measure(seed, chosen.epochs))
            print(f"seed {seed}: {measured[-1][0]['cpu_seconds']} s", flush=True)
        record = circumstances(chosen.threads) | {
            "runs": [run for run, _ in measured],
            "neighbours": neighbours([embeddings for _, embeddings in measured]),
        }
        store(chosen.out, record)
    runs = record["runs"]
    print(table(runs))
    print(neighbour_table(runs[0]["epochs"], record["neighbours"]))
    if chosen.figure:
        draw(runs[0]).savefig(chosen.figure, dpi=100)


if __name__ == "__main__":
    main()
