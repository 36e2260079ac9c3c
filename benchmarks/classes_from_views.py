"""Who loses if classes are learned from images as training sees them: docs/metrics.md, what labels say.

    python benchmarks/classes_from_views.py runs/vicreg/version_0    # of a recipe that compares views

Neighbours learn classes from the same training images twice, cropped and distorted as the run sees them and as they are,
and from held-out images; the encoder of the run's last checkpoint and raw pixels are asked about the same held-out
images. Accuracies with Wilson's 95 % intervals; the difference is paired, with Newcombe's.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import torch
from _results import parser, table
from torch import Tensor

from jepa_monitor.functional import paired_interval, wilson_interval
from jepa_monitor.recipes.cli import parse
from jepa_monitor.recipes.evaluation import knn_hits, undisturbed

METHODS = {"lejepa": "LeJepa", "vicreg": "VicReg", "dinov2": "DinoV2"}
K, TEMPERATURE = 20, 0.07
Labelled = tuple[Tensor, Tensor]


def stacked(pairs: list[tuple[Tensor, int]]) -> Labelled:
    """Put images and labels into tensors."""
    return torch.stack([image for image, _ in pairs]), torch.tensor([label for _, label in pairs])


def share(hits: Tensor) -> str:
    """Accuracy in percent, with its interval."""
    low, high = (100 * float(end) for end in wilson_interval(int(hits.sum()), len(hits)))
    return f"{100 * hits.double().mean():.1f} % ({low:.1f} to {high:.1f})"


def main() -> None:
    """Measure and print a table."""
    made = parser(__doc__, out=False)
    made.add_argument("run", type=Path, help="folder of a run, with config.yaml and checkpoints")
    made.add_argument("--teachers", type=int, default=512, help="images that teach (%(default)s)")
    made.add_argument("--asked", type=int, default=1024, help="held-out images (%(default)s)")
    args = made.parse_args()
    sys.argv[1:] = []  # these are read; Lightning's command line would ask what they are for
    torch.set_num_threads(args.threads)
    name = args.run.resolve().parent.name
    module = importlib.import_module(f"jepa_monitor.recipes.{name}")
    cli = parse(
        getattr(module, METHODS[name]), name, 1, ["--config", str(args.run / "config.yaml")]
    )
    weights = torch.load(args.run / "checkpoints" / "last.ckpt", weights_only=True)
    cli.model.load_state_dict(weights["state_dict"])
    data = cli.datamodule
    data.prepare_data()
    data.setup()
    encoder = cli.model.get_submodule(cli.config["knn.encoder"])

    generator = torch.Generator().manual_seed(0)

    def some(of: int, count: int) -> list[int]:
        return list(torch.randperm(of, generator=generator)[:count].tolist())

    known = some(len(data.plain_train_set), args.teachers)
    held = some(len(data.val_set), args.asked + args.teachers)
    asked = stacked([data.val_set[i] for i in held[: args.asked]])
    views = [data.train_set[0, i] for i in known]
    teachers = {
        "training images as the run sees them": stacked([(v.global_crops[0], y) for v, y in views]),
        "the same images as they are": stacked([data.plain_train_set[i] for i in known]),
        "other held-out images": stacked([data.val_set[i] for i in held[args.asked :]]),
    }

    def embedded(images: Tensor) -> Tensor:
        with undisturbed(cli.model, torch.device("cpu")):
            return torch.cat([encoder(batch).float() for batch in images.split(256)])

    spaces = (embedded, torch.nn.Flatten())
    queries = [(space(asked[0]), asked[1]) for space in spaces]
    lines = table("classes are learned from", "encoder", "raw pixels", "difference, points")
    for label, taught in teachers.items():
        ours, theirs = (
            knn_hits((space(taught[0]), taught[1]), query, K, TEMPERATURE)
            for space, query in zip(spaces, queries, strict=True)
        )
        difference, ends = paired_interval(ours, theirs)
        low, high = (100 * float(end) for end in ends)
        told = f"{100 * float(difference):+.1f} ({low:+.1f} to {high:+.1f})"
        lines.append(f"| {label} ({len(taught[1])}) | {share(ours)} | {share(theirs)} | {told} |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
