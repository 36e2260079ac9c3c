"""Is doubly stochastic attention more robust to noise, or is its branch only smaller? docs/attention.md.

    JEPA_MONITOR_DATA=… python benchmarks/attention.py --seeds 3

Classifiers (supervised, as in arXiv 2507.20453): ViTs of two blocks, 96 numbers, patches of 4 pixels, with a class token, of the first
training images of the CIFAR-10 subset and its 2,000 held-out ones, as they are (clean) or with one draw of gaussian noise of severity 5
each in both parts, which stays. Crops and flips; Adam from 1e-3 to 1e-5 over a cosine. Arms: softmax and Sinkhorn, as they are here
(fair) and as published; and the confound, published softmax whose output is divided by the number of tokens, as the published Sinkhorn's
is. Accuracies of held-out images: mean and standard deviation over seeds; their differences from fair softmax with the 95 % interval over
seeds and images: of each image the seeds are averaged, for it is the same image, and the seeds' own spread is added.
"""

from __future__ import annotations

import pathlib
import statistics
import time
from typing import Any

import torch
from _encoders import Images, data_folder, load_pixels, normalise
from _results import parser, points, spread, store, table
from torch import Tensor, nn
from torch.nn import functional as F

from jepa_monitor.probes.common_corruptions import corrupt
from jepa_monitor.recipes.attention import OtherAttention, set_attention
from jepa_monitor.recipes.networks import build_vit

SEVERITY, BATCH, WIDTH, HEADS = 5, 128, 96, 3
ARMS = {
    "softmax": ("softmax", False),
    "softmax, published": ("softmax", True),
    "softmax, published, over N": ("softmax", True),
    "Sinkhorn": ("sinkhorn", False),
    "Sinkhorn, published": ("sinkhorn", True),
}


class Shrunk(OtherAttention):
    """Published softmax, whose branch is as small as that of the published Sinkhorn."""

    def weighed(self, q: Tensor, k: Tensor) -> Tensor:
        """Make weights of queries and keys (B, h, N, d) each, (B, h, N, N)."""
        return super().weighed(q, k) / q.shape[2]


def classifier(arm: str) -> nn.Module:
    """An untrained ViT of one arm; arms of one seed share their first weights."""
    vit = build_vit(32, 4, 3, WIDTH, 2, HEADS, class_token=True)
    set_attention(vit, *ARMS[arm])
    if arm.endswith("over N"):
        for block in vit.blocks:
            block.attn = Shrunk(block.attn, "softmax", True)
    return nn.Sequential(vit, nn.Linear(WIDTH, 10))


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Crop images (B, C, 32, 32), padded by 4 pixels, and mirror half of them."""
    count = len(images)
    rows, columns = torch.randint(9, (2, count, 1), generator=generator) + torch.arange(32)
    flipped = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(flipped, columns.flip(1), columns)
    padded = F.pad(images, (4, 4, 4, 4)).permute(0, 2, 3, 1)
    taken = padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return taken.permute(0, 3, 1, 2)


def hits(arm: str, images: Images, seed: int, epochs: int) -> Tensor:
    """Train one arm, and say which held-out images it classifies correctly, (M,)."""
    torch.manual_seed(seed)
    model = classifier(arm)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, weight_decay=5e-5)
    steps = epochs * (len(images.train) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, 1e-5)
    for _ in range(epochs):
        order = torch.randperm(len(images.train), generator=generator)
        for rows in order.split(BATCH)[: len(order) // BATCH]:
            loss = F.cross_entropy(
                model(shifted(images.train[rows], generator)), images.train_labels[rows]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        told = torch.cat([model(part).argmax(1) for part in images.test.split(500)])
    return told == images.test_labels


def prepared(count: int, noisy: bool) -> Images:
    """The images that all arms see."""
    found = load_pixels(data_folder())
    parts = [found.train[:count], found.test]
    if noisy:
        parts = [
            corrupt(part, "gaussian_noise", SEVERITY, torch.Generator().manual_seed(draw))
            for draw, part in enumerate(parts)
        ]
    train, test = map(normalise, parts)
    return Images(train, found.train_labels[:count].long(), test, found.test_labels.long())


def difference(found: Tensor, base: Tensor) -> str:
    """Say how many points more are right, of hits (seeds, M) each, and in which interval."""
    steps = found.double() - base.double()
    variance = steps.mean(0).var() / steps.shape[1]
    if len(steps) > 1:
        variance = variance + steps.mean(1).var() / len(steps)
    mean, half = steps.mean().item(), 1.96 * variance.item() ** 0.5
    return points(mean, half)


def draw(rows: list[dict[str, Any]], place: pathlib.Path) -> None:
    """Draw accuracies: the seeds, and their mean."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 2.2), layout="constrained", dpi=110)
    for axes, name in zip(figure.subplots(1, 2, sharey=True), ("clean", "noisy"), strict=True):
        for row in (row for row in rows if row["images"] == name):
            shares = [100 * share for share in row["accuracies"]]
            where = [row["attention"]] * len(shares)
            axes.plot(shares, where, "o", color="#0072B2", alpha=0.5, markersize=5)
            axes.plot(statistics.mean(shares), row["attention"], "|", color="black", markersize=14)
        axes.set_title(f"{name} images", fontsize=9)
        axes.set_xlabel("accuracy, %", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    figure.axes[0].invert_yaxis()  # the order of the table
    place.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(place)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, default=3, help="(default: %(default)s)")
    options.add_argument("--epochs", type=int, default=6, help="(default: %(default)s)")
    options.add_argument("--train", type=int, default=4_000, help="images (default: %(default)s)")
    options.add_argument("--picture", type=pathlib.Path, help="where to draw the accuracies")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    print("\n".join(table("images", "attention", "accuracy", "more than softmax", "minutes")))
    rows = []
    for name in ("clean", "noisy"):
        images = prepared(args.train, name == "noisy")
        base: Tensor | None = None
        for arm in ARMS:
            start = time.process_time()
            found = torch.stack([hits(arm, images, s, args.epochs) for s in range(args.seeds)])
            minutes = (time.process_time() - start) / 60
            shares = [float(share) for share in found.double().mean(1)]
            told = "" if base is None else difference(found, base)
            base = found if base is None else base
            mean = spread([100 * share for share in shares], 1)
            print(
                f"| {name} | {arm} | {mean} % | {told} | {minutes:.1f} |",
                flush=True,
            )
            rows.append({"images": name, "attention": arm, "accuracies": shares, "more": told})
    if args.picture is not None:
        draw(rows, args.picture)
    store(args.out, {"epochs": args.epochs, "train": args.train, "rows": rows})


if __name__ == "__main__":
    main()
