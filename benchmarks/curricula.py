"""Do easy images first help DINOv2? Noise curricula and FastDINOv2 against the plain recipe: docs/recipes/dinov2.md.

    JEPA_MONITOR_DATA=… python benchmarks/curricula.py --out curricula.json    # goes on where it was stopped
    python benchmarks/curricula.py --cases noisy --seeds 0    # a part of it
    python benchmarks/curricula.py --show [FILE]    # the tables of stored results

Trains the recipe with the same epochs and steps in every arm, of which a curriculum gives the first three quarters to
its first stage. `noisy`: digits with noise of 100/255, judged on held-out noisy digits. `fast` and `cifar` (10,000 images of the
folder JEPA_MONITOR_DATA, 100 batches of 64 an epoch): FastDINOv2, judged on held-out images as they are and corrupted as
CIFAR-10-C does, at severity 5, the same draw for all arms and seeds, by classifiers that know the sound training images.
Mean ± standard deviation over seeds; differences from the plain recipe are paired by seed, with 95 % intervals of their
mean by Student's t, in which nothing but the seeds varies. Time is the processor's, of making views and of the steps.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from _results import circumstances, kept, parser, points, quiet_training, spread, store, table
from lightning.pytorch import Callback
from scipy import stats
from torch import Tensor, nn
from tqdm import tqdm

from jepa_monitor import JepaScoreCallback
from jepa_monitor.probes.common_corruptions import CORRUPTIONS, corrupt
from jepa_monitor.recipes.cli import parse, train
from jepa_monitor.recipes.data import ImageDataModule
from jepa_monitor.recipes.dinov2 import DEFAULTS, DinoV2
from jepa_monitor.recipes.evaluation import knn_hits, linear_hits, undisturbed

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "curricula.json"
SEVERITY, BESIDE, LINEAR_AT_MOST = 5, 20, 1024

NOISY = ("--data=digits", "--data.noise=gaussian:100")
BLUR, IDEAL = "--data.denoised=blur:0.6", "--data.denoised=digits"
FAST = ("--data.first_scale=0.5", "--data.noise_patch=0.5")
# Options of a case, its epochs, and the options of its arms; all but the plain one have a first stage.
CASES: dict[str, tuple[tuple[str, ...], int, dict[str, tuple[str, ...]]]] = {
    "noisy": (
        NOISY,
        12,
        {
            "plain": (),
            "NC, blur": (BLUR,),
            "NCT, blur": (BLUR, "--model.anchor_weight=2"),
            "NC, ideal denoiser": (IDEAL,),
        },
    ),
    "fast": (("--data=digits",), 12, {"plain": (), "FastDINOv2": FAST}),
    "cifar": (
        (
            f"--config={ROOT}/recipes/configs/dinov2_cifar10_cpu.yaml",
            f"--data=npz:{os.environ.get('JEPA_MONITOR_DATA', '.')}/cifar10_subset.npz",
            "--data.num_workers=0",
            "--trainer.limit_train_batches=100",
        ),
        4,
        {"plain": (), "FastDINOv2": FAST},
    ),
}
AS_THEY_ARE = ("pixels", "untrained")
TITLES = {"noisy": "noisy digits", "fast": "digits", "cifar": "CIFAR-10"}
QUIET = (
    "--trainer.accelerator=cpu", "--trainer.logger=false", "--checkpoint.save_last=false", "--checkpoint.save_top_k=0",
    "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--knn.linear=false",
    "--knn.every_n_epochs=1000", "--monitor.max_probe_samples=32", "--monitor.max_overhead=null",
)  # fmt: skip
TINY = (
    "--trainer.max_epochs=2", "--trainer.limit_train_batches=1", "--data.batch_size=16",
    "--monitor.every_n_epochs=1", "--monitor.max_embedding_samples=32", "--monitor.max_probe_samples=4",
)  # fmt: skip
LOOK = ("step", "collapse/state", "collapse/rankme", "density/polarity", "density/calibration_error")  # fmt: skip


class Watch(Callback):
    """Times views and steps apart, and keeps DINO's term of every step."""

    def __init__(self) -> None:
        self.views, self.steps, self.last = 0.0, 0.0, 0.0
        self.dino: list[float] = []

    def elapsed(self) -> float:
        """The processor's seconds since it was asked before."""
        before, self.last = self.last, time.process_time()
        return self.last - before

    def on_train_epoch_start(self, *_: Any) -> None:
        """The clock starts."""
        self.elapsed()

    def on_train_batch_start(self, *_: Any) -> None:
        """Views were made."""
        self.views += self.elapsed()

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """A step was made."""
        self.steps += self.elapsed()
        self.dino.append(float(trainer.callback_metrics["train/dino"]))


def hits_of(
    encoder: nn.Module, data: ImageDataModule, corrupted: bool
) -> dict[str, dict[str, float]]:
    """Accuracies on held-out images, sound and corrupted, of classifiers that know the training images.

    Args:
        encoder: Maps normalised images to embeddings.
        data: After ``setup``.
        corrupted: Whether to judge on corrupted images, too.

    Returns:
        ``knn`` and, of no more than 1024 numbers, ``linear``, by kind of image.
    """
    assert data.plain_train_set is not None
    assert data.val_set is not None
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in data.state_dict().values())
    bank, known = everything(data.plain_train_set)
    sound, truth = everything(data.val_set)
    sets = {"sound": sound}
    for kind in CORRUPTIONS if corrupted else ():
        pixels = (sound * std + mean).clamp(0, 1)
        changed = corrupt(pixels, kind, SEVERITY, torch.Generator().manual_seed(0))
        sets[kind] = (changed - mean) / std

    def embedded(images: Tensor) -> Tensor:
        return torch.cat([encoder(part).float() for part in images.split(256)])

    with undisturbed(encoder, torch.device("cpu")):
        learned = embedded(bank), known
        asked = torch.cat([embedded(images) for images in sets.values()])
    queries = asked, truth.repeat(len(sets))
    hits = {"knn": knn_hits(*(learned, queries), k=20, temperature=0.07)}
    if asked.shape[1] <= LINEAR_AT_MOST:
        hits["linear"] = linear_hits(learned, queries)
    parts = {name: found.view(len(sets), -1).double().mean(1) for name, found in hits.items()}
    return {
        kind: {name: float(found[row]) for name, found in parts.items()}
        for row, kind in enumerate(sets)
    }


def everything(images: Any) -> tuple[Tensor, Tensor]:
    """Images and labels of a data set."""
    pixels, labels = zip(*(images[i] for i in range(len(images))), strict=True)
    return torch.stack(pixels), torch.tensor(labels)


def run(case: str, arm: str, seed: int, tiny: bool) -> dict[str, Any]:
    """Train once, and keep what is told of it; ``pixels`` and ``untrained`` are judged as they are."""
    options, epochs, arms = CASES[case]
    first = 1 if tiny else epochs * 3 // 4
    words = [*options, *QUIET, f"--seed_everything={seed}", f"--trainer.max_epochs={epochs}"]
    words += [f"--monitor.every_n_epochs={epochs // 4 if case == 'noisy' else epochs}"]
    words += [*arms.get(arm, ()), *(TINY if tiny else ())]
    words += [f"--data.first_epochs={first}"] if arm not in ("plain", *AS_THEY_ARE) else []
    began = time.process_time()
    with quiet_training() as folder:
        made = parse(DinoV2, "dinov2", epochs, [*words, f"--trainer.default_root_dir={folder}"], DEFAULTS)  # fmt: skip
        if arm in AS_THEY_ARE:
            made.datamodule.setup()
            encoder = nn.Flatten() if arm == "pixels" else made.model.teacher["backbone"]
            return {"hits": hits_of(encoder, made.datamodule, case != "noisy")}
        made.trainer.callbacks.append(watch := Watch())
        trainer = train(made)
    monitor = next(c for c in trainer.callbacks if isinstance(c, JepaScoreCallback))
    turn = first * trainer.global_step // trainer.max_epochs
    dino = [watch.dino[max(turn - BESIDE, 0) : turn], watch.dino[turn : turn + BESIDE]]
    return {
        "hits": hits_of(made.model.teacher["backbone"], made.datamodule, case != "noisy"),
        "steps": trainer.global_step,
        "views_minutes": watch.views / 60,
        "steps_minutes": watch.steps / 60,
        "dino": [statistics.mean(part) for part in dino],
        "looks": [{t: look[t] for t in LOOK if t in look} for look in monitor.history]
        if case == "noisy"
        else [],
        "all_minutes": (time.process_time() - began) / 60,
    }


def paired(values: dict[int, float], base: dict[int, float]) -> str:
    """Mean difference of two arms over the seeds that both have, in points, with its interval."""
    steps = [value - base[seed] for seed, value in values.items() if seed in base]
    if len(steps) < 2:
        return "–"
    if len(set(steps)) == 1:  # by chance: no interval
        return f"{100 * steps[0]:+.1f}"
    half = stats.t.ppf(0.975, len(steps) - 1) * statistics.stdev(steps) / len(steps) ** 0.5
    return points(statistics.mean(steps), half)


def percent(values: dict[int, float]) -> str:
    return spread([100 * value for value in values.values()], 1)


def tell(runs: dict[str, Any]) -> None:
    """Print the tables of the cases that were run."""
    for case, (_, epochs, arms) in CASES.items():
        of = {
            arm: {s: runs[key] for s in range(99) if (key := f"{case}, {arm}, {s}") in runs}
            for arm in ("untrained", *arms)
        }
        if of["plain"]:
            pixels = runs[f"{case}, pixels, 0"]["hits"]
            print(f"\n{TITLES[case]}, {epochs} epochs\n")
            (tell_noisy if case == "noisy" else tell_fast)(of, pixels, TITLES[case])


def tell_noisy(of: dict[str, Any], pixels: dict[str, Any], title: str) -> None:
    """Accuracy and time, then what the monitor and the loss saw."""
    print("\n".join(table(title, "seeds", "k-NN, %", "against plain", "linear, %", "against plain", "minutes")))  # fmt: skip
    raw = [f"{100 * pixels['sound'][name]:.1f}" for name in ("knn", "linear")]
    print(f"| raw noisy pixels |  | {raw[0]} |  | {raw[1]} |  |  |")
    values = {
        name: {
            arm: {seed: row["hits"]["sound"][name] for seed, row in rows.items()}
            for arm, rows in of.items()
        }
        for name in ("knn", "linear")
    }
    for arm, rows in ((arm, rows) for arm, rows in of.items() if rows):
        cells = [arm, str(len(rows))]
        for found in values.values():
            against = "" if arm in ("untrained", "plain") else paired(found[arm], found["plain"])
            cells += [percent(found[arm]), against]
        minutes = [
            sum(row.get(f"{part}_minutes", 0) for part in ("views", "steps"))
            for row in rows.values()
        ]
        print(f"| {' | '.join([*cells, spread(minutes) if any(minutes) else ''])} |")
    print()
    heads = ["at three quarters and at the end", "states", "RankMe", "polarity", "coverage off by", "DINO's term before and after the turn"]  # fmt: skip
    print("\n".join(table(*heads)))
    for arm, rows in of.items():
        if rows and arm != "untrained":
            looks = [[row["looks"][place] for row in rows.values()] for place in (-2, -1)]
            states = ["/".join(f"{look['collapse/state']:.0f}" for look in part) for part in looks]
            cells = [arm, ", ".join(states)]
            for tag, digits in (("collapse/rankme", 1), ("density/polarity", 2), ("density/calibration_error", 2)):  # fmt: skip
                told = [[look[tag] for look in part if tag in look] for part in looks]
                cells.append(", ".join(spread(part, digits) if part else "–" for part in told))
            print(f"| {' | '.join([*cells, turn(rows)])} |")


def turn(rows: dict[int, Any]) -> str:
    """DINO's term in the 20 steps before the second stage, and in its first 20."""
    return ", ".join(spread(ends) for ends in zip(*(r["dino"] for r in rows.values()), strict=True))


def tell_fast(of: dict[str, Any], pixels: dict[str, Any], title: str) -> None:
    """Accuracy by kind of image, their mean over corruptions, and time."""
    print("\n".join(table(f"{title}, %", "raw pixels", *of, "difference")))

    def row(label: str, name: str, kinds: list[str]) -> None:
        def of_hits(hits: dict[str, Any]) -> float:
            return statistics.mean(hits[kind][name] for kind in kinds)

        found = {arm: {s: of_hits(r["hits"]) for s, r in rows.items()} for arm, rows in of.items()}
        raw = f"{100 * of_hits(pixels):.1f}" if name in pixels["sound"] else "–"
        cells = [f"{label}, {name.replace('knn', 'k-NN')}", raw]
        cells += [percent(values) if values else "–" for values in found.values()]
        print(f"| {' | '.join([*cells, paired(found['FastDINOv2'], found['plain'])])} |")

    for name in ("knn", "linear"):
        for kind in pixels:
            row(kind.replace("_", " "), name, [kind])
        row("mean of the corrupted", name, [kind for kind in pixels if kind != "sound"])
    print()
    print("\n".join(table(f"{title}, minutes", "seeds", "views", "steps", "both", "DINO's term before and after the turn")))  # fmt: skip
    for arm, rows in of.items():
        if rows and arm != "untrained":
            parts = [[r[f"{part}_minutes"] for r in rows.values()] for part in ("views", "steps")]
            parts.append([sum(pair) for pair in zip(*parts, strict=True)])
            cells = [arm, str(len(rows)), *(spread(part) for part in parts), turn(rows)]
            print(f"| {' | '.join(cells)} |")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--arms", nargs="+", help="of the cases (default: all)")
    options.add_argument("--tiny", action="store_true", help="two steps a run, to try it")
    options.add_argument("--show", nargs="?", type=Path, const=RESULTS, help="train nothing")
    args = options.parse_args()
    if args.show:
        tell(json.loads(args.show.read_text())["runs"])
        return
    torch.set_num_threads(args.threads)
    results = kept(args.out, {**circumstances(args.threads), "tiny": args.tiny})
    runs = results.setdefault("runs", {})
    wanted = []
    for case in args.cases:
        wanted += [(case, "pixels", 0), *((case, "untrained", seed) for seed in args.seeds)]
        arms = [arm for arm in CASES[case][2] if args.arms is None or arm in args.arms]
        wanted += [(case, arm, seed) for seed in args.seeds for arm in arms]
    missing = [each for each in wanted if f"{each[0]}, {each[1]}, {each[2]}" not in runs]
    for case, arm, seed in tqdm(missing, desc="runs"):
        runs[f"{case}, {arm}, {seed}"] = run(case, arm, seed, args.tiny)
        store(args.out, results)
    tell(runs)


if __name__ == "__main__":
    main()
