"""When does linear joint embedding or reconstruction find the signal? The figure of arXiv 2505.12477.

    python benchmarks/objectives.py                 # scikit-learn's digits
    python benchmarks/objectives.py --data fashion  # Fashion-MNIST, of Debian's package `dataset-fashion-mnist`

Images (pixels 0 to 255) are brought to their first 50 principal components, and 50 directions of noise come
with them: a draw an image, of variances uniform from 0 to 1e3 (weak) or 1e6 (strong). The augmentation adds
noise of variances uniform from 0 to 1e4, and alpha times another draw of the nuisance. Each objective is
solved in closed form for 50 codes, and a linear map from codes to classes is fitted and judged on held-out
images that are corrupted too. The table has its squared error minus that of the same on clean images, a mean
over seeds and its standard error; 0: the noise does no harm. Guessing the classes' shares has an error of .9.
Supervised: the linear map is fitted on views themselves. Beside it are the thresholds of the paper.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable

import torch
from _encoders import fashion_images, fashion_labels
from _results import circumstances, parser
from torch import Tensor

from jepa_monitor.functional.linear_objectives import (
    alignment_thresholds,
    joint_embedding,
    reconstruction,
)

COMPONENTS = 50
NOISES = {"weak": 1e3, "strong": 1e6}
AUGMENTATION = 1e4
METHODS = ("joint embedding", "reconstruction", "supervised")


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Give pixels and labels, to learn from and held out."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = torch.randperm(len(found.data), generator=torch.Generator().manual_seed(0))
    pixels = torch.from_numpy(found.data)[order] * (255 / 16)
    labels = torch.from_numpy(found.target)[order]
    return pixels[:1300], labels[:1300], pixels[1300:], labels[1300:]


def fashion() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Give 10,000 images and 2,000 held out."""
    parts = ((10_000, "train"), (2_000, "t10k"))
    train, held_out = (fashion_images(*part).flatten(1).double() for part in parts)
    labels, held_out_labels = (fashion_labels(*part) for part in parts)
    return train, labels, held_out, held_out_labels


DATA: dict[str, Callable[[], tuple[Tensor, Tensor, Tensor, Tensor]]] = {
    "digits": digits,
    "fashion": fashion,
}


def error(codes: Tensor, labels: Tensor, other: Tensor, other_labels: Tensor) -> float:
    """Fit the linear map from codes to classes, and give its squared error on others."""
    ones = codes.new_ones(len(codes), 1)
    weights = torch.linalg.pinv(torch.cat([codes, ones], 1)) @ one_hot(labels)
    guessed = torch.cat([other, ones.new_ones(len(other), 1)], 1) @ weights
    return float((guessed - one_hot(other_labels)).square().sum(1).mean())


def one_hot(labels: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(labels, 10).double()


def learned(
    method: str, train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, within: Tensor
) -> float:
    """Give the error on held-out images of one method, with views of covariance `within`."""
    mean = train.mean(0)
    train, test = train - mean, test - mean
    between = train.T @ train / len(train)
    if method == "supervised":  # least squares on all views: Tikhonov's, of weight `within`
        target = one_hot(labels)
        shares = target.mean(0)
        weights = torch.linalg.solve(between + within, train.T @ (target - shares) / len(train))
        return float((test @ weights + shares - one_hot(test_labels)).square().sum(1).mean())
    solved = (
        joint_embedding(between, within, COMPONENTS)
        if method == "joint embedding"
        else reconstruction(between, between, within, COMPONENTS)
    )
    return error(train @ solved.encoder, labels, test @ solved.encoder, test_labels)


def measured(
    data: tuple[Tensor, Tensor, Tensor, Tensor], size: float, alpha: float, count: int, seed: int
) -> tuple[list[float], list[float]]:
    """Give what each method loses by the nuisance, and both thresholds of alpha."""
    generator = torch.Generator().manual_seed(seed)
    pixels, labels, held_out, held_out_labels = data
    chosen = torch.randperm(len(pixels), generator=generator)[:count]
    pixels, labels = pixels[chosen], labels[chosen]
    mean = pixels.mean(0)
    values, vectors = torch.linalg.eigh((pixels - mean).T @ (pixels - mean) / count)
    signal, axes = values.flip(0)[:COMPONENTS], vectors.flip(1)[:, :COMPONENTS]
    nuisance = size * torch.rand(COMPONENTS, generator=generator, dtype=torch.float64)
    views = AUGMENTATION * torch.rand(2 * COMPONENTS, generator=generator, dtype=torch.float64)

    def corrupted(images: Tensor) -> Tensor:
        shape = (len(images), COMPONENTS)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64) * nuisance.sqrt()
        return torch.cat([(images - mean) @ axes, noise], 1)

    train, test = corrupted(pixels), corrupted(held_out)
    redrawn = torch.cat([torch.zeros_like(nuisance), alpha**2 * nuisance])
    within, part = (views + redrawn).diag(), slice(COMPONENTS)
    losses = []
    for method in METHODS:
        clean = learned(
            method, train[:, part], labels, test[:, part], held_out_labels, views[part].diag()
        )
        losses.append(learned(method, train, labels, test, held_out_labels, within) - clean)
    needed = alignment_thresholds(signal, views[part], nuisance, views[COMPONENTS:])
    return losses, [math.sqrt(max(float(squared), 0.0)) for squared in needed[:2]]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--data", choices=sorted(DATA), default="digits")
    options.add_argument("--seeds", type=int, default=5, help="(default: %(default)s)")
    options.add_argument(
        "--alphas",
        type=float,
        nargs="+",
        default=[0.0, 0.5, 1.0, 3.0, 10.0],
        help="(default: 0 .5 1 3 10)",
    )
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    data = DATA[args.data]()
    counts = [n for n in (100, 300, 1_000, 3_000, 10_000) if n <= len(data[0])]
    rows = []
    print("| noise | alpha | method | " + " | ".join(f"n = {n}" for n in counts) + " | needs |")
    print("|---|---|---|" + "---|" * (len(counts) + 1))
    for noise, size in NOISES.items():
        for alpha in args.alphas:
            found = {
                n: [measured(data, size, alpha, n, seed) for seed in range(args.seeds)]
                for n in counts
            }
            for place, method in enumerate(METHODS):
                cells = []
                for n in counts:
                    losses = [seen[0][place] for seen in found[n]]
                    spread = statistics.stdev(losses) if len(losses) > 1 else math.nan
                    cells.append((statistics.mean(losses), spread / len(losses) ** 0.5))
                needs = (
                    [seen[1][place] for seen in found[counts[-1]]] if method != "supervised" else []
                )
                row = {"noise": noise, "alpha": alpha, "method": method, "needs": needs}
                rows.append(row | {"losses": dict(zip(map(str, counts), cells, strict=True))})
                words = f"{statistics.mean(needs):.1f}" if needs else "-"
                shown = " | ".join(f"{mean:.3f} ± {spread:.3f}" for mean, spread in cells)
                print(f"| {noise} | {alpha:g} | {method} | {shown} | {words} |", flush=True)
    if args.out:
        facts = circumstances(args.threads) | {"data": args.data, "seeds": args.seeds, "rows": rows}
        args.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
