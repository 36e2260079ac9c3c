"""Does a ViT-MAE look as far as the closed form of the linear one says? The table of docs/recipes/mae.md.

    JEPA_MONITOR_DATA=… python benchmarks/influence.py --picture influence.png

Images: the CIFAR-10 subset in grey at 16 pixels, 10,000 to learn from. Closed form: the influence length of the
linear masked autoencoder of 16 codes, and of the linear map that foretells hidden patches from all others. ViT-MAE:
the recipe's network (4 blocks, 64 wide; a decoder of one block, 32 wide), pixels not normalised, `--steps` steps of
64 images, for each patch size, mask and seed. `mae/*` of 32 held-out images before and after, reconstructions under
masks of 75 % whatever the run was trained with; 'own mask': under masks of the share that the run was trained with.
Mean and standard deviation over seeds. Last: how many of the steps from one mask to the next larger go up, a seed
at a time.
"""

from __future__ import annotations

import json
import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from _encoders import data_folder, load_pixels
from _results import circumstances, parser, spread
from torch import Tensor
from torch.nn import functional as F

from jepa_monitor import DensityMonitor, ScoreOptions
from jepa_monitor.functional.linear_mae import influence, linear_mae, masked_patch_map, patch_grid
from jepa_monitor.insights.mae import Influence
from jepa_monitor.recipes.mae import Mae
from jepa_monitor.recipes.masking import sample_random_masks
from jepa_monitor.recipes.schedules import warmup_cosine

SIDE, CODES, BATCH, PROBE = 16, 16, 64, 32
READ = ("influence_length", "in_patch_share", "reconstruction_length", "own_mask")


def grey(images: Tensor) -> Tensor:
    """Bring images (N, 3, 32, 32) to grey ones of 16 pixels."""
    return F.avg_pool2d(images.mean(1, keepdim=True), 2)


def closed_form(images: Tensor, size: int, mask: float) -> dict[str, float]:
    """Give the lengths of both linear maps."""
    x = images.flatten(1).double()
    moment, patches = x.T @ x / len(x), patch_grid(SIDE, size)
    solved = linear_mae(moment, patches, mask, CODES)
    whole = influence(solved.encoder @ solved.decoder, SIDE, patches)
    hidden = influence(masked_patch_map(moment, patches, mask), SIDE, patches)
    return {
        "length": float(whole.distance),
        "in_patch": float(whole.in_patch),
        "hidden_only": float(hidden.distance),
    }


def read(model: Mae, probe: Tensor, masks: set[float]) -> dict[str, float]:
    """Look at a network, with reconstructions under masks of each share."""
    found = {}
    for share in sorted(masks):
        monitor = DensityMonitor(
            probe,
            insights=[Influence(PROBE, mask=share)],
            max_probe_samples=1,
            polarity_samples=0,
            options=ScoreOptions("sketch", rows=1),
        )
        scalars = monitor.evaluate(model.network).scalars
        if share == 0.75:
            found |= {name: scalars[f"mae/{name}"] for name in READ[:3]}
        found[f"reconstruction_{share}"] = scalars["mae/reconstruction_length"]
    return found


def trained(
    images: Tensor, probe: Tensor, size: int, mask: float, seed: int, steps: int
) -> dict[str, Any]:
    """Train a ViT-MAE, and look at it before and after."""
    torch.manual_seed(seed)
    model = Mae(SIDE, patch_size=size, depth=4, mask=mask, normalise_pixels=False)
    generator = torch.Generator().manual_seed(seed)
    h = model.hparams
    before = read(model, probe, {0.75})
    optimiser = torch.optim.AdamW(model.parameter_groups(), betas=(0.9, 0.95))
    losses = []
    for step in range(steps):
        rate = warmup_cosine(step, steps, round(0.1 * steps), h["learning_rate"], 1e-6)
        for group in optimiser.param_groups:
            group["lr"], group["weight_decay"] = rate, h["weight_decay"] * group["decays"]
        batch = images[torch.randint(len(images), (BATCH,), generator=generator)]
        mirrored = torch.rand(BATCH, 1, 1, 1, generator=generator) < 0.5
        batch = torch.where(mirrored, batch.flip(3), batch)
        loss = model.loss(batch, sample_random_masks(BATCH, model.patches, generator, mask))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    last = statistics.mean(losses[-max(steps // 10, 1) :])
    after = read(model, probe, {0.75, mask})
    after["own_mask"] = after[f"reconstruction_{mask}"]
    return {"before": before, "after": after, "loss": last}


def rises(values: list[list[float]]) -> str:
    """Count the steps from one mask to the next that go up, of all seeds."""
    steps = [after > before for seed in values for before, after in pairwise(seed)]
    return f"{sum(steps)} of {len(steps)}"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the lengths by mask: of the closed form, and of each seed."""
    from matplotlib.figure import Figure

    sizes = sorted({row["patch"] for row in rows})
    figure = Figure(figsize=(9.5, 3.2), layout="constrained")
    panels = figure.subplots(1, 3, sharex=True)
    titles = ("linear, closed form", "ViT: tokens", "ViT: hidden pixels, masks of 75 %")
    for size, colour in zip(sizes, ("#0072B2", "#D55E00", "#009E73"), strict=False):
        own = [row for row in rows if row["patch"] == size]
        masks = [row["mask"] for row in own]
        for name, style, label in (
            ("length", "-", "all pixels"),
            ("hidden_only", "--", "hidden only"),
        ):
            values = [row["closed"][name] for row in own]
            panels[0].plot(masks, values, style, color=colour, label=f"patch {size}, {label}")
        for axes, name in zip(
            panels[1:], ("influence_length", "reconstruction_length"), strict=True
        ):
            seeds = zip(*[[run["after"][name] for run in row["runs"]] for row in own], strict=True)
            for values in seeds:
                axes.plot(masks, values, "o-", color=colour, alpha=0.7, markersize=3)
            start = [statistics.mean(run["before"][name] for run in row["runs"]) for row in own]
            axes.plot(masks, start, ":", color=colour)
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("share hidden in training")
        axes.set_xticks(sorted({row["mask"] for row in rows}))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("influence length (px)")
    panels[0].legend(fontsize=7)
    panels[1].plot([], [], ":", color="#777777", label="before training")
    panels[1].legend(fontsize=7)
    figure.savefig(path, dpi=110)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=600, help="(default: %(default)s)")
    options.add_argument("--seeds", type=int, default=3, help="(default: %(default)s)")
    options.add_argument("--sizes", type=int, nargs="+", default=[4], help="(default: 4)")
    options.add_argument(
        "--masks", type=float, nargs="+", default=[0.5, 0.75, 0.9], help="(default: .5 .75 .9)"
    )
    options.add_argument("--picture", type=Path, help="PNG of the lengths (default: none)")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    found = load_pixels(data_folder())
    images, probe = grey(found.train), grey(found.test)[:PROBE]
    mean = images.mean(0)
    scale = (images - mean).std()
    images, probe = (images - mean) / scale, (probe - mean) / scale
    print(
        "| patch | hidden | closed form: length | in patch | hidden only | loss | tokens: before | after "
        "| in patch: before | after | reconstruction: before | after | own mask |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    rows = []
    for size in args.sizes:
        for mask in args.masks:
            closed = closed_form(images, size, mask)
            runs = [
                trained(images, probe, size, mask, seed, args.steps) for seed in range(args.seeds)
            ]
            rows.append({"patch": size, "mask": mask, "closed": closed, "runs": runs})
            cells = [f"{closed[name]:.2f}" for name in ("length", "in_patch", "hidden_only")]
            cells.append(spread([run["loss"] for run in runs]))
            for name in READ[:3]:
                cells += [spread([run[when][name] for run in runs]) for when in ("before", "after")]
            cells.append(spread([run["after"]["own_mask"] for run in runs]))
            print(f"| {size} | {mask:g} | {' | '.join(cells)} |", flush=True)
    for size in args.sizes:
        own = [row for row in rows if row["patch"] == size]
        counted = [
            f"{name.replace('_', ' ')} {rises([[row['runs'][s]['after'][name] for row in own] for s in range(args.seeds)])}"
            for name in READ
        ]
        print(f"patch {size}, steps up: {', '.join(counted)}")
    if args.picture:
        draw(rows, args.picture)
    if args.out:
        facts = circumstances(args.threads) | {"steps": args.steps, "rows": rows}
        args.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
