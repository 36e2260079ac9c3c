"""How much of JEPA-SCORE is the contrast of the image, and what is left without it?

    python benchmarks/contrast.py lejepa vicreg lejepa-conv     # a table of docs/theory.md
    python benchmarks/contrast.py efficientnet-lite0 --rows 80 --images 48 --embedded 1024
    python benchmarks/contrast.py    # no encoder: what a law of the images says of them

An encoder is `efficientnet-lite0` (see benchmarks/detectors.py) or `METHOD-STEM`: `lejepa`, `vicreg` or
`ema`, trained here on the CIFAR-10 subset for `--steps` steps, as a ViT whose stem is the linear map of a
patch, or with `-conv` convolutions with GroupNorm, with `-conv_batchnorm` BatchNorm. Needs
JEPA_MONITOR_DATA.

κ is the fall of the score per unit of log contrast, from 8 held-out images with 5 % more of it; R² and
Spearman correlations are those of scores and log contrast over other held-out images, with 95 % intervals.
Without an encoder: the white energy of 200 held-out images under a law, diagonal in frequency, of 1024.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from _encoders import MEAN, METHODS, STD, data_folder, load_pixels, normalise, train
from _results import circumstances, kept, parser, store
from detectors import SIDE, Pixels, make_encoder
from torch import Tensor, nn

from jepa_monitor.functional import contrast_free, log_contrast, pearson, spearman
from jepa_monitor.functional.frequency_gaussian import FrequencyGaussian
from jepa_monitor.jacobian.contrast import contrast_free_score

SLOPE = 8  # images


def build(name: str, steps: int, seed: int, pixels: Tensor) -> nn.Module:
    """Train or load an encoder of pixels."""
    method, _, stem = name.partition("-")
    if method not in METHODS:
        return make_encoder(name, steps, seed, pixels)
    (last,) = train(method, normalise(pixels), (steps,), seed=seed, stem=stem or "patch")
    return Pixels(last.encoder, SIDE, MEAN, STD)


def measure(encoder: nn.Module, images: Tensor, reference: Tensor, rows: int) -> dict[str, Any]:
    """Slope, and what scores have to do with contrast."""
    how: dict[str, Any] = {"method": "exact"}
    if rows:
        how = {"method": "sketch", "rows": rows, "reference": reference}
    found = contrast_free_score(encoder, images, slope_samples=SLOPE, **how)
    # The slope is measured on some images, and what it does is seen on others.
    others, scores, contrast = (
        images[SLOPE:],
        found.jepa_score[SLOPE:],
        log_contrast(images[SLOPE:]),
    )
    with torch.no_grad():
        width = encoder(images[:1]).shape[1]
    return {
        "rows": rows or width,
        "width": width,
        "images": len(others),
        "kappa": found.slope.mean,
        "kappa_se": found.slope.error,
        "score_sd": float(scores.std()),
        "contrast_sd": float(contrast.std()),
        "r": pearson(scores, contrast),
        "spearman": spearman(scores, contrast),
        "spearman_free": spearman(found.score[SLOPE:], contrast),
        "spearman_full": spearman(contrast_free(scores, others, rows or width), contrast),
    }


def white_energy(images: Tensor, reference: Tensor) -> None:
    """Print how white images are under the law of others."""
    law = FrequencyGaussian.fit(reference)
    energy = law.whiten(images.flatten(1)).square().mean(1)
    variances = torch.linalg.eigvalsh(law.spectrum)
    share = variances / variances.max()
    print(f"variances over the largest: {share.min():.1e} and more, {(share < 1e-6).sum()} of "
          f"{law.width} under 1e-6, {law.floored} floored")  # fmt: skip
    print(f"white energy a dimension: mean {energy.mean():.2f}, standard deviation {energy.std():.2f}, "
          f"Spearman with contrast {interval(spearman(energy, log_contrast(images)))}")  # fmt: skip


def interval(values: Any) -> str:
    return f"{values[0]:.2f} ({values[1]:.2f} to {values[2]:.2f})"


def report(results: dict[str, Any]) -> None:
    """Print the table."""
    print(
        "| encoder | seed | R of K | κ / R | R² with log r | Spearman of S | of S + κ log r | of S + R log r |"
    )
    print("|---" * 8 + "|")
    for found in results["encoders"].values():
        rows, (r, *ends) = found["rows"], found["r"]
        squares = sorted(end**2 for end in ends)
        squares = [0.0 if ends[0] < 0 < ends[1] else squares[0], squares[1]]
        cells = [
            found["encoder"],
            str(found["seed"]),
            f"{rows} of {found['width']}",
            f"{found['kappa'] / rows:.2f} ± {found['kappa_se'] / rows:.2f}",
            interval((r**2, *squares)),
            *(interval(found[f"spearman{which}"]) for which in ("", "_free", "_full")),
        ]
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("encoders", nargs="*")
    options.add_argument("--seed", type=int, default=0, help="of the training")
    options.add_argument("--steps", type=int, default=600, help="of the training, 64 images each")
    options.add_argument("--images", type=int, default=104, help="held out; 8 of them for κ")
    options.add_argument("--rows", type=int, default=0, help="of a whitened sketch; 0: all rows")
    options.add_argument("--embedded", type=int, default=4096, help="images to whiten a sketch by")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    pixels = load_pixels(data_folder())
    if not args.encoders:
        white_energy(pixels.test[:200], pixels.train[:1024])
        return
    results = kept(args.out, circumstances(args.threads))
    results.setdefault("encoders", {})
    for name in args.encoders:
        started = time.process_time()
        encoder = build(name, args.steps, args.seed, pixels.train).eval()
        reference = pixels.train[-args.embedded :]
        found = measure(encoder, pixels.test[: args.images], reference, args.rows)
        found |= {"encoder": name, "seed": args.seed, "steps": args.steps}
        results["encoders"][f"{name}, seed {args.seed}"] = found
        assert math.isfinite(found["kappa"])
        print(f"{name}: {time.process_time() - started:.0f} s", flush=True)
        store(args.out, results)
    report(results)


if __name__ == "__main__":
    main()
