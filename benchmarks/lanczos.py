"""How near to exact scores do a few Krylov rows come, for what share of the cost (docs/sketching.md)?

    JEPA_MONITOR_DATA=… python benchmarks/lanczos.py lejepa vicreg ema conv mlp small-inputs
    python benchmarks/lanczos.py efficientnet-lite0 --images 8 --seeds 2 --tolerance 0

Of every encoder some images are scored with all rows, by sketches and by `method="lanczos"`, its default and
what `tolerance` leads to. `lejepa`, `vicreg` and `ema`: backbones and projectors that benchmarks/_encoders.py
trains; `conv` and `mlp`: those of benchmarks/sketch_trust.py, whose small singular values differ most from
image to image; `small-inputs`: K = 384 of 192 numbers; `efficientnet-lite0` (see benchmarks/detectors.py): real
weights, K = 1280. All see CIFAR-10 (cifar10_subset.npz); half of the images are held out, half of these with
something done to them. The seeds draw the starts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from _encoders import METHODS, data_folder, load_images, load_pixels, outliers, train
from _results import circumstances, parser, store
from scipy.stats import spearmanr
from sketch_trust import _conv, _mlp, _train
from torch import Tensor, nn
from torch.nn import functional as F

from jepa_monitor.encoders import Embedder
from jepa_monitor.jacobian.engine import spectra
from jepa_monitor.jacobian.estimate import estimate_errors, spectra_within
from jepa_monitor.jacobian.options import ScoreOptions
from jepa_monitor.jacobian.prepared import fit_reference
from jepa_monitor.jacobian.spectra import Spectra


class Case(NamedTuple):
    """An encoder, images to score and images to whiten by."""

    name: str
    encoder: nn.Module
    images: Tensor
    references: Tensor


def _probe(images: Tensor, count: int) -> Tensor:
    """Held-out images, and as many that are corrupted, four ways."""
    fifth = max(1, count // 8)
    worse = outliers(images[count : count + 5 * fifth], torch.zeros(fifth, *images.shape[1:]))
    kept = [some for name, some in worse.items() if name != "fashion"]
    return torch.cat([images[: count // 2], *kept])


def _vits(method: str, count: int, steps: int, references: int) -> Iterator[Case]:
    data = load_images(data_folder())
    probe, shown = _probe(data.test, count), data.train[:references]
    for found in train(method, data.train, tuple(dict.fromkeys((-(-steps // 4), steps)))):
        yield Case(f"{method} {found.step}, backbone", found.encoder, probe, shown)
        both = nn.Sequential(found.encoder, found.projector)
        yield Case(f"{method} {found.step}, projector", both, probe, shown)


def _small(
    make: Callable[[int], nn.Module], name: str, count: int, steps: int, references: int
) -> Iterator[Case]:
    data = np.load(data_folder() / "cifar10_subset.npz")
    images, held_out = (
        (torch.from_numpy(data[part][:3000]).permute(0, 3, 1, 2).float() / 255 - 0.45) / 0.25
        for part in ("train_images", "test_images")
    )
    widths = (384,) if name == "small-inputs" else (64, 192)
    if name == "small-inputs":
        images, held_out = (F.interpolate(some, size=8, mode="area") for some in (images, held_out))
    for width in widths:
        torch.manual_seed(1)
        encoder = _train(make(width), images, steps)
        yield Case(name, encoder, _probe(held_out, count), images[:references])


def _tall(width: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 256), nn.GELU(), nn.Linear(256, width))


def _lite(count: int, references: int) -> Iterator[Case]:
    from detectors import make_encoder

    data = load_pixels(data_folder())
    encoder = make_encoder("efficientnet-lite0", 0, 0, data.train)
    probe = _probe(data.test, count).clamp(0, 1)
    yield Case("efficientnet-lite0", encoder, probe, data.train[:references])


def _timed(work: Callable[[], Spectra]) -> tuple[Spectra, float]:
    start = time.process_time()
    return work(), time.process_time() - start


def _numbers(found: Spectra, exact: Tensor, scale: float) -> tuple[float, float, float]:
    """Spearman, error in nats after an offset, and share of images whose interval holds it."""
    scores = found.scores(1e-6)
    off = exact - scale * scores
    off -= off.mean()
    covered = float("nan")
    if found.samples is not None:
        errors = estimate_errors(found.samples)
        if bool(torch.isfinite(errors).all()):
            covered = float((off.abs() <= errors).double().mean())
    return float(spearmanr(scores, exact).statistic), float(off.std()), covered


def measure(case: Case, seeds: int, tolerance: float) -> list[dict[str, object]]:
    """Score the images in every way."""
    embedder, device = Embedder(case.encoder), torch.device("cpu")
    start = time.process_time()
    law = fit_reference(embedder, case.references, device, responding=True)
    fitted = time.process_time() - start
    images = case.images
    spectra(
        embedder, images[:2], ScoreOptions("lanczos"), law
    )  # torch loads what it needs at first use
    whole, dear = _timed(lambda: spectra(embedder, images, ScoreOptions()))
    exact, width = whole.scores(1e-6), whole.embeddings.shape[1]
    inputs = images[0].numel()
    ways = {"lanczos": ScoreOptions("lanczos")}
    if width <= inputs:
        ways = {"sketch": ScoreOptions("sketch")} | ways
        ways["lanczos, 16 × 1"] = ScoreOptions("lanczos", rows=max(16, -(-width // 16)), steps=1)
    records = []
    for name, options in ways.items():
        rows = []
        for seed in range(seeds):
            how = ScoreOptions(options.method, rows=options.rows, steps=options.steps, seed=seed)
            found, seconds = _timed(lambda how=how: spectra(embedder, images, how, law))
            scale = 1.0 if found.basis is None else width / len(found.basis)
            rows.append((*_numbers(found, exact, scale), seconds / dear))
        mean, worst = np.mean(rows, axis=0), np.min(rows, axis=0)
        if found.samples is None:
            passes = f"{found.singular_values.shape[1]}"
        else:
            starts, steps = found.samples.shape[1], how.depth
            passes = f"{starts * steps} + {starts * (steps - 1)}"
        record = {
            "encoder": case.name,
            "K": width,
            "D": inputs,
            "images": len(images),
            "spread": round(float(exact.std()), 1),
            "method": name,
            "passes": passes,
            "cost": round(float(mean[3]), 3),
            "spearman": round(float(mean[0]), 3),
            "worst": round(float(worst[0]), 3),
            "error": round(float(mean[1]), 1),
            "covered": None if np.isnan(mean[2]) else round(float(mean[2]), 2),
            "products": found.products,
            "seconds_exact": round(dear, 1),
            "seconds_reference": round(fitted, 1),
        }
        records.append(record)
        _show(record)
    if not tolerance:
        return records
    how = ScoreOptions("auto", tolerance=tolerance)
    _, options, agreement = spectra_within(embedder, images, how, law)
    took = options.method if options.rows is None else f"{options.rows} rows"
    if options.steps:
        took += f" in {options.steps} steps"
    if options.method == "auto":
        took += " of a sketch"
    print(f"    tolerance of {tolerance:g} nats: {took} ({agreement})", flush=True)
    return [*records, {"encoder": case.name, "K": width, "tolerance": tolerance, "took": took}]


def _show(record: dict[str, object]) -> None:
    keys = ("encoder", "K", "spread", "method", "passes", "cost", "spearman", "worst", "error")
    cells = [str(record[key]) for key in keys]
    cells.append("" if record["covered"] is None else str(record["covered"]))
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print the table."""
    options = parser(__doc__)
    names = (*METHODS, "conv", "mlp", "small-inputs", "efficientnet-lite0")
    options.add_argument("encoders", nargs="+", choices=names)
    options.add_argument(
        "--steps", type=int, default=400, help="of training; half for small encoders"
    )
    options.add_argument("--images", type=int, default=96, help="to score")
    options.add_argument("--references", type=int, default=2000, help="to whiten by")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--tolerance", type=float, default=5.0, help="nats; 0: not tried")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    count, references, short = given.images, given.references, -(-given.steps // 2)
    cases: dict[str, Callable[[], Iterator[Case]]] = {
        method: partial(_vits, method, count, given.steps, references) for method in METHODS
    }
    cases |= {
        "conv": lambda: _small(_conv, "conv", count, short, references),
        "mlp": lambda: _small(_mlp, "mlp", count, short, references),
        "small-inputs": lambda: _small(_tall, "small-inputs", count, short, references),
        "efficientnet-lite0": lambda: _lite(count, references),
    }
    print(
        "| encoder | K | spread | method | passes | cost | Spearman | worst | error (nats) | covered |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    records = [
        record
        for name in given.encoders
        for case in cases[name]()
        for record in measure(case, given.seeds, given.tolerance)
    ]
    store(given.out, {**circumstances(given.threads), "records": records})


if __name__ == "__main__":
    main()
