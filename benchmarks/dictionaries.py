"""Two claims about sparse autoencoders, each with the controls that can refute it: the tables of docs/recipes/sae.md.

    python benchmarks/dictionaries.py fashion     # is an exact decoder more sample-efficient than SGD? (arXiv 2505.11836)
    python benchmarks/dictionaries.py stability   # are archetypal dictionaries the stable ones? (arXiv 2510.08638)

`fashion` takes Fashion-MNIST of Debian's package `dataset-fashion-mnist`, whitened as published by one mean and one deviation: 256
atoms, 15 of them active with their signs, Adam at 3e-3, batches of 128, ten epochs. `stability` takes the 32,000 patch tokens of 500 textures
that a LeJEPA of ten epochs gives (ViT of 4 blocks, width 64, patches of 4 pixels; `--epochs 0`: as it is drawn). `--figure` draws.
"""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from _encoders import fashion_images
from _results import circumstances, parser, store, table
from torch import Tensor

from jepa_monitor.functional import atom_use, dictionary_stability, kmeans_pca
from jepa_monitor.recipes import sae
from jepa_monitor.recipes.sparse_autoencoders import (
    Settings,
    SparseAutoencoder,
    encode,
    solve_decoder,
    train,
    unexplained,
    untied,
)

MEAN, STD = 0.2860, 0.3530  # of Fashion-MNIST
RIDGE = 1e-6
PUBLISHED = Settings(
    codes="signed", atoms=256, k=15, auxiliary=0.0, epochs=10, batch_size=128, learning_rate=3e-3,
    alpha=RIDGE, beta=RIDGE, mu=0.0, nu=0.0,
)  # fmt: skip
FEW = Settings(atoms=256, k=8, epochs=10, batch_size=256)
STARTS: dict[str, dict[str, Any]] = {
    "random": {},
    "k-means, one seed for all": {"start": "kmeans", "start_seed": 0},
    "k-means, a seed each": {"start": "kmeans"},
    "archetypal, one seed for all": {"variant": "archetypal", "start_seed": 0},
    "archetypal, a seed each": {"variant": "archetypal"},
}
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")


def solved(model: SparseAutoencoder, points: Tensor) -> SparseAutoencoder:
    """Set the decoder to least squares once, after SGD."""
    model = untied(model) if model.settings.tied else model
    solve_decoder(model, points, RIDGE)
    return model


def fashion_arms(points: Tensor, new: Tensor, settings: Settings, long: int) -> dict[str, float]:
    """Unexplained share of held-out images, by arm; `long` arms take as many steps as with all images."""

    def left(model: SparseAutoencoder) -> float:
        return unexplained(new, encode(model, points=new)[1])

    long_settings = replace(settings, epochs=long)
    tied = train(points, replace(settings, tied=True))
    free = train(points, settings)
    found = {
        "tied SGD (published baseline)": left(tied),
        "tied SGD, then one least squares": left(solved(tied, points)),
        "untied SGD": left(free),
        "untied SGD, then one least squares": left(solved(free, points)),
        "PAM, μ = ν = 0 (published)": left(train(points, replace(settings, variant="pam"))),
        "PAM, μ = ν = 0, α = N/100": left(
            train(points, replace(settings, variant="pam", alpha=len(points) / 100))
        ),
        "PAM, μ = ν = 1e-3": left(
            train(points, replace(settings, variant="pam", mu=1e-3, nu=1e-3))
        ),
    }
    if long > settings.epochs:
        more = train(points, long_settings)
        found["untied SGD, steps of the largest set"] = left(more)
        found["the same, then one least squares"] = left(solved(more, points))
        more = train(points, replace(long_settings, variant="pam"))
        found["PAM, steps of the largest set"] = left(more)
    else:
        found["untied SGD, steps of the largest set"] = found["untied SGD"]
        found["the same, then one least squares"] = found["untied SGD, then one least squares"]
        found["PAM, steps of the largest set"] = found["PAM, μ = ν = 0 (published)"]
    # As many vectors as the autoencoder has: 2 · 256 = 32 · (15 + 1).
    cells = 2 * settings.atoms // (settings.k + 1)
    for name, number in (
        (f"k-means + PCA, {cells} cells of rank 15", cells),
        ("PCA of rank 15", 1),
    ):
        baseline = kmeans_pca(points, min(number, len(points)), settings.k, settings.seed)
        found[name] = unexplained(new, baseline.reconstruct(new))
    return found


def fashion(seeds: int, sizes: list[int]) -> dict[str, Any]:
    """Train all arms on sets of several sizes; each seed draws its own images."""
    images = (fashion_images(60_000, "train").flatten(1).float() / 255 - MEAN) / STD
    new = (fashion_images(5000).flatten(1).float() / 255 - MEAN) / STD
    runs: dict[int, list[dict[str, float]]] = {size: [] for size in sizes}
    steps = -(-max(sizes) // PUBLISHED.batch_size) * PUBLISHED.epochs
    for seed in range(seeds):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        for size in sizes:
            began = time.process_time()
            long = steps // -(-size // PUBLISHED.batch_size)
            arms = fashion_arms(images[order[:size]], new, replace(PUBLISHED, seed=seed), long)
            runs[size].append(arms)
            print(f"# seed {seed}, {size} images: {time.process_time() - began:.0f} s", flush=True)
    print("\n".join(table("share of held-out variance left", *(f"{size:,}" for size in sizes))))
    for arm in runs[sizes[0]][0]:
        cells = (sae.several([run[arm] for run in runs[size]]) for size in sizes)
        print(f"| {arm} | " + " | ".join(cells) + " |")
    return {str(size): found for size, found in runs.items()}


def stability(seeds: int, epochs: int, images: int) -> dict[str, Any]:
    """Train dictionaries of several seeds from several starts, of centred and uncentred tokens."""
    words = [f"--encoder_epochs={epochs}", f"--images={images}", "--folder=runs/sae"]
    chosen = sae.parser().parse_args(words)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    tokens = sae.read_tokens(chosen)
    known, new = (part.flatten(0, 1) for part in (tokens.train, tokens.held_out))
    size = (known - known.mean(0)).square().mean().sqrt()
    found: dict[str, Any] = {}
    rows = table("tokens", "start", "agreement at the start", "at the end", "unexplained", "dead")
    for kind, shift in (("centred", known.mean(0)), ("uncentred", torch.zeros_like(known[0]))):
        points, others = (known - shift) / size, (new - shift) / size
        for start, changes in STARTS.items():
            began = time.process_time()
            settings = [replace(FEW, seed=seed, **changes) for seed in range(seeds)]
            begun = [SparseAutoencoder(points, each).dictionary().detach() for each in settings]
            models = [train(points, each) for each in settings]
            ends = [model.dictionary().detach() for model in models]
            at = {
                name: [dictionary_stability(a, b) for a, b in combinations(atoms, 2)]
                for name, atoms in (("start", begun), ("end", ends))
            }
            passed = [encode(model, others) for model in models]
            row: dict[str, Any] = {
                name: [float(pair.cosine) for pair in pairs] for name, pairs in at.items()
            }
            row["random"] = float(at["end"][0].random)
            row["unexplained"] = [unexplained(others, again) for _, again in passed]
            row["dead"] = [
                float(atom_use(codes, atoms).dead)
                for (codes, _), atoms in zip(passed, ends, strict=True)
            ]
            found[f"{kind}: {start}"] = row
            numbers = ("start", "end", "unexplained", "dead")
            cells = (sae.several(row[name]) for name in numbers)
            rows.append(f"| {kind} | {start} | " + " | ".join(cells) + " |")
            print(f"# {kind}, {start}: {time.process_time() - began:.0f} s", flush=True)
    print("\n".join(rows))
    print(f"random directions: {found['centred: random']['random']:.3f}")
    return found


def draw_fashion(found: dict[str, Any], file: Path) -> None:
    """Draw what is left unexplained against the number of images."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.4, 3.6), layout="constrained")
    axis = figure.subplots()
    sizes = [int(size) for size in found]
    for number, arm in enumerate(found[str(sizes[0])][0]):
        values = [[run[arm] for run in found[str(size)]] for size in sizes]
        color = COLORS[number % len(COLORS)]
        style = "--" if "least squares" in arm else ":" if "PCA" in arm else "-"
        marker = "os^DvPX*<>hd"[number]
        means = [sum(each) / len(each) for each in values]
        axis.plot(sizes, means, style, color=color, marker=marker, ms=4, lw=1.2, label=arm)
        axis.vlines(sizes, [min(v) for v in values], [max(v) for v in values], color=color, lw=1)
    axis.set(xscale="log", yscale="log", xlabel="training images", xticks=sizes)
    axis.set_xticklabels([f"{size:,}" for size in sizes])
    axis.set_ylabel("share of held-out variance left")
    axis.minorticks_off()
    axis.set_yticks([0.1, 0.15, 0.2, 0.3, 0.5], labels=["0.1", "0.15", "0.2", "0.3", "0.5"])
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", fontsize=7, frameon=False)
    figure.savefig(file, dpi=120)


def draw_stability(found: dict[str, Any], file: Path) -> None:
    """Draw the agreement of dictionaries at the start and at the end of training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.4, 3.0), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, kind in zip(panels, ("centred", "uncentred"), strict=True):
        rows = {key.split(": ")[1]: row for key, row in found.items() if key.startswith(kind)}
        for place, row in enumerate(reversed(rows.values())):
            for name, face in (("start", "white"), ("end", "#0072B2")):
                panel.scatter(row[name], [place] * len(row[name]), s=30, color=face, ec="#0072B2",
                              zorder=3, label=name if place == 0 else None)  # fmt: skip
            panel.axvline(row["random"], color="#999999", lw=1, ls="--", zorder=1)
        panel.set(title=f"{kind} tokens", xlabel="mean cosine of matched atoms", xlim=(0, 1.04))
        panel.set_yticks(range(len(rows)), labels=list(reversed(rows)))
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="x", lw=0.4)
    panels[0].legend(fontsize=8, loc="lower left", framealpha=1)
    figure.savefig(file, dpi=120)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("claim", choices=("fashion", "stability"))
    options.add_argument("--seeds", type=int, default=3, help="(default: %(default)s)")
    options.add_argument("--sizes", type=int, nargs="+", default=[600, 3000, 15_000], help="images")
    options.add_argument("--epochs", type=int, default=10, help="of the LeJEPA")
    options.add_argument("--images", type=int, default=500, help="whose tokens are taken")
    options.add_argument("--figure", type=Path, help="picture to draw")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    began = time.process_time()
    if args.claim == "fashion":
        found = fashion(args.seeds, sorted(args.sizes))
    else:
        found = stability(args.seeds, args.epochs, args.images)
    seconds = round(time.process_time() - began)
    print(f"{seconds} s of the processor")
    settings = {**circumstances(args.threads), "claim": args.claim, "cpu_seconds": seconds}
    store(args.out, {"settings": settings, "found": found})
    if args.figure is not None:
        (draw_fashion if args.claim == "fashion" else draw_stability)(found, args.figure)


if __name__ == "__main__":
    main()
