"""Which number, without labels, tells the good checkpoints of a run from the others?

    python benchmarks/predictors.py lejepa --seed 0 --out runs    # one file a run and seed, three minutes
    python benchmarks/predictors.py --judge runs/*.json           # the tables of docs/advice.md

The first trains one of the project's recipes, small, on 8000 images of the CIFAR-10 subset: `lejepa`, `vicreg`,
`ijepa` or `dinov2`, or one of three runs with a fault (`_predictor_runs.py`). At 21 to 23 steps a `DensityMonitor` looks
at the encoder, with unlabelled held-out images, and four accuracies are measured on other images: k-NN, a linear
map, k-NN of a single patch token, and k-NN of Fashion-MNIST. Needs JEPA_MONITOR_DATA and Fashion-MNIST (Debian's
`dataset-fashion-mnist`).

The second compares the predictors, and the checkpoints that they choose, with the accuracies; without files
those that are committed. The signs were fixed in `_predictor_judging.py` before any predictor was held against an accuracy. The rule
of `advice/quality` was chosen on seed 0, so that the other seeds are its test.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from _encoders import (
    data_folder,
    fashion_images,
    fashion_labels,
    in_colour,
    load_images,
    normalise,
)
from _predictor_judging import Run
from _predictor_runs import RUNS, checkpoints, steps_of
from _predictor_tables import report
from _results import circumstances
from torch import Tensor, nn

from jepa_monitor import DensityMonitor, ScoreOptions
from jepa_monitor.encoders.tokens import encoder_tokens
from jepa_monitor.functional import knn_predict, ridge_predict

RESULTS = Path(__file__).with_suffix(".json")
PATIENCE = 60  # steps
PROBE, SCORED, HELD_OUT = 512, 8, 128  # images
CLOTHES = 1400


class Labelled:
    """What the targets are measured on; no predictor sees it."""

    def __init__(self, folder: Path) -> None:
        data = load_images(folder)
        self.training = data.train[:8000]
        self.probe = data.test[:PROBE]
        known, asked = data.train[8000:], data.test[PROBE:]
        self.known, self.known_labels = known, data.train_labels[8000:]
        self.asked, self.asked_labels = asked, data.test_labels[PROBE:]
        self.clothes = normalise(in_colour(fashion_images(CLOTHES)))
        self.clothes_labels = fashion_labels(CLOTHES)

    def accuracies(self, encoder: nn.Module) -> dict[str, float]:
        """Measure the four targets, each on both halves of its test set."""
        (known, patches), (asked, asked_patches), (clothes, _) = (
            embed(encoder, images) for images in (self.known, self.asked, self.clothes)
        )
        shared = (known, self.known_labels, asked)
        names, n = self.clothes_labels, len(clothes) // 2
        # A patch's class is its image's: can a single token, of any place, tell it?
        told = [
            knn_predict(patches[:, 0], self.known_labels, asked_patches[:, i]) == self.asked_labels
            for i in range(2)
        ]
        right = {
            "knn": knn_predict(*shared) == self.asked_labels,
            "linear": ridge_predict(*shared) == self.asked_labels,
            "patches": torch.stack(told, 1).double().mean(1),
            "transfer": knn_predict(clothes[:n], names[:n], clothes[n:]) == names[n:],
        }
        return {
            f"{name}_{half}": float(f"{hits[half::2].double().mean():.4f}")
            for name, hits in right.items()
            for half in (0, 1)
        }


def embed(encoder: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Embed images: the mean of the patch tokens, as all encoders here pool, and two tokens each."""
    tokens = torch.cat([encoder_tokens(encoder, [encoder], x).patches for x in images.split(256)])
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(tokens.shape[1], (len(tokens), 2), generator=generator)
    return tokens.mean(1), tokens[torch.arange(len(tokens))[:, None], places]


def spectrum_shape(singular_values: Tensor) -> float:
    """Mean of log σ less half the log of the mean σ²: JEPA-SCORE a row of a Jacobian of unit scale."""
    values = singular_values.double().clamp_min(1e-6)
    return float((values.log().mean(1) - values.square().mean(1).log() / 2).mean())


def run(name: str, seed: int, steps: tuple[int, ...]) -> Run:
    """Train one run, look at its checkpoints, and give predictors and accuracies."""
    began = time.process_time()
    data = Labelled(data_folder())
    monitor = DensityMonitor(
        data.probe,
        reference=data.training[:PROBE],
        max_probe_samples=SCORED,
        max_embedding_samples=PROBE,
        labels=None,
        detectors=(),
        insights=["dimension", "tokens"],
        options=ScoreOptions(method="exact"),
    )
    watch = monitor.watch(max_overhead=None, patience_steps=PATIENCE, strict=True)
    looks: list[dict[str, float]] = []
    targets: list[dict[str, float]] = []
    for at in checkpoints(name, seed, data.training, data.asked[-HELD_OUT:], steps):
        monitor.online = at.online
        look = watch(at.encoder, at.step)
        assert look.evaluation is not None
        values = look.evaluation.report.look.probe.singular_values
        found = {
            **look.scalars, "step": float(at.step), "loss": at.loss, "loss/held_out": at.held_out_loss,
            "jacobian/level_free": spectrum_shape(values),
        }  # fmt: skip
        looks.append({tag: float(f"{value:.5g}") for tag, value in found.items() if is_kept(tag)})
        targets.append(data.accuracies(at.encoder))
    tags = list(dict.fromkeys(tag for look in looks for tag in look))
    return {
        "run": name,
        "seed": seed,
        "cpu_seconds": round(time.process_time() - began),
        "settings": circumstances(threads=1),
        "targets": {each: [found[each] for found in targets] for each in targets[0]},
        "looks": {tag: [look.get(tag) for look in looks] for tag in tags},
    }


def is_kept(tag: str) -> bool:
    """Say whether a tag is worth its place in the file."""
    group = tag.partition("/")[0]
    return group not in ("monitor", "data", "outliers") and not tag.endswith(("_low", "_high"))


def read(files: list[Path]) -> list[Run]:
    """Read runs, of files that hold one or many."""
    found = [json.loads(path.read_text()) for path in files]
    return [run for each in found for run in (each if isinstance(each, list) else [each])]


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", choices=RUNS, help="which run to train")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches, views, masks")
    parser.add_argument("--out", type=Path, help="folder for the file")
    parser.add_argument("--steps", type=int, help="break off the schedule after so many, for a try")
    parser.add_argument(
        "--judge", type=Path, nargs="*", metavar="FILE", help="print the tables (default: of all that "
        "are committed)",
    )  # fmt: skip
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.judge is not None:
        print(report(read(args.judge or [RESULTS])))
    elif args.name and args.out:
        steps = tuple(s for s in steps_of(args.name) if args.steps is None or s <= args.steps)
        args.out.mkdir(parents=True, exist_ok=True)
        found = run(args.name, args.seed, steps)
        (args.out / f"{args.name}-{args.seed}.json").write_text(json.dumps(found) + "\n")
    else:
        parser.error("give a run and --out, or --judge")


if __name__ == "__main__":
    main()
