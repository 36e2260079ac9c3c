"""Does a term of the density tell images that were blurred, noised or cut up? Which one?

    python benchmarks/missing_term.py lejepa-conv vicreg-conv lejepa    # a table of docs/theory.md

Encoders are named as in benchmarks/contrast.py, and trained here in the same way. 96 held-out images of
CIFAR-10 are compared with 48 others in two severities of each corruption; the law of embeddings, that of
images and all that is fitted to examples see images of the training set. AUROC, mean of both severities,
with its 95 % interval, from 2000 draws of images:

    S             JEPA-SCORE, all rows
    S + κ log r   contrast-free; κ is measured on images of the training set
    S_Σ           ½ log det JΣJᵀ, with the covariance Σ of images, diagonal in frequency
    prior + S     `log_density`
    all three     `log_density(..., fibre="gaussian")`
    fibre         minus the distance of the fibre's white energy from its median over examples
    log r, bands  the detectors `contrast` and `bands`, of examples

`combined` on the same corruptions is in docs/detectors.md.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from _encoders import data_folder, load_pixels
from _results import circumstances, kept, parser, store
from contrast import SLOPE, build
from torch import Tensor, nn

from jepa_monitor import log_density
from jepa_monitor.detectors.bands import Bands
from jepa_monitor.detectors.contrast import Contrast
from jepa_monitor.detectors.inputs import ScoredSet
from jepa_monitor.functional import contrast_free
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.jacobian.contrast import contrast_free_score
from jepa_monitor.jacobian.fibre import fit_inputs
from jepa_monitor.jacobian.score import LogDensity
from jepa_monitor.probes.corruptions import CORRUPTIONS

SEVERITIES = (1, 3)
USUAL, WORSE, EXAMPLES = 96, 48, 48
DRAWS = 2000


def plain(images: Tensor) -> ScoredSet:
    """What detectors take that need nothing but images."""
    none = torch.full((len(images),), torch.nan, dtype=torch.float64)
    return ScoredSet(images, none[:, None], none, none, none[:, None], none)


def energy_of(terms: LogDensity) -> Tensor:
    """White energy along the fibre."""
    assert terms.fibre_energy is not None
    return terms.fibre_energy


def statistics_of(encoder: nn.Module, sets: dict[str, Tensor], reference: Tensor) -> dict[str, Any]:
    """Score every set by every term, higher for more usual."""
    kappa = contrast_free_score(
        encoder, reference[:SLOPE], slope_samples=SLOPE, method="exact"
    ).slope.mean
    examples, fitted = reference[:EXAMPLES], reference[EXAMPLES:]
    inputs = fit_inputs(fitted)
    with torch.no_grad():
        law = Gaussian.fit(torch.cat([encoder(part) for part in torch.split(fitted, 256)]).double())
    terms = {
        name: log_density(encoder, images, law, fibre=inputs)
        for name, images in {"examples": examples, **sets}.items()
    }
    middle = energy_of(terms["examples"]).median()
    rules = {
        label: detector.learn(detector.features(plain(examples)))
        for label, detector in (("log r", Contrast()), ("bands", Bands()))
    }
    unseen = examples[0].numel() - law.width
    scores = {}
    for name, images in sets.items():
        found, energy = terms[name], energy_of(terms[name])
        assert found.log_fibre is not None
        scores[name] = {
            "S": found.jepa_score,
            "S + κ log r": contrast_free(found.jepa_score, images, kappa),
            # Up to a constant: beside the white energy, `log_fibre` has S_Σ - S.
            "S_Σ": found.jepa_score + found.log_fibre + unseen / 2 * energy,
            "prior + S": found.jepa_score + found.log_prior,
            "all three": found.log_density,
            "fibre": -(energy - middle).abs(),
        } | {label: rule.score(plain(images)) for label, rule in rules.items()}
    return {"kappa": kappa, "scores": scores}


def auroc(inside: Tensor, outside: Tensor) -> Tensor:
    """(..., n) against (..., m)."""
    above = (inside[..., :, None] > outside[..., None, :]).double()
    ties = (inside[..., :, None] == outside[..., None, :]).double()
    return (above + ties / 2).mean((-1, -2))


def compare(scores: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, list[float]]]:
    """AUROC of every statistic against every kind, with its interval."""
    generator = torch.Generator().manual_seed(0)
    found: dict[str, dict[str, list[float]]] = {}
    for kind in CORRUPTIONS:
        found[kind] = {}
        for label, usual in scores["usual"].items():
            worse = [scores[f"{kind} {severity}"][label] for severity in SEVERITIES]
            draws = []
            for _ in range(DRAWS):
                some = usual[torch.randint(USUAL, (USUAL,), generator=generator)]
                others = torch.randint(WORSE, (WORSE,), generator=generator)
                draws.append(statistics.mean(float(auroc(some, each[others])) for each in worse))
            ends = torch.tensor(draws).quantile(torch.tensor([0.025, 0.975])).tolist()
            found[kind][label] = [
                statistics.mean(float(auroc(usual, each)) for each in worse),
                *ends,
            ]
    return found


def report(results: dict[str, Any]) -> None:
    """Print the table."""
    shown = list(next(iter(results["encoders"].values()))["aurocs"]["blur"])
    print("| encoder | seed | κ | against | " + " | ".join(shown) + " |")
    print("|---" * (len(shown) + 4) + "|")
    for found in results["encoders"].values():
        for kind, row in found["aurocs"].items():
            cells = [
                f"{row[label][0]:.2f} ({row[label][1]:.2f} to {row[label][2]:.2f})"
                for label in shown
            ]
            head = [found["encoder"], str(found["seed"]), f"{found['kappa']:.0f}", kind]
            print("| " + " | ".join([*head, *cells]) + " |")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("encoders", nargs="+")
    options.add_argument("--seed", type=int, default=0, help="of the training")
    options.add_argument("--steps", type=int, default=600, help="of the training, 64 images each")
    options.add_argument("--embedded", type=int, default=4096, help="images to fit laws to")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    pixels = load_pixels(data_folder())
    sets = {"usual": pixels.test[:USUAL]} | {
        f"{kind} {severity}": corrupt(pixels.test[USUAL : USUAL + WORSE], severity)
        for kind, corrupt in CORRUPTIONS.items()
        for severity in SEVERITIES
    }
    results = kept(args.out, circumstances(args.threads))
    results.setdefault("encoders", {})
    for name in args.encoders:
        started = time.process_time()
        encoder = build(name, args.steps, args.seed, pixels.train).eval()
        found = statistics_of(encoder, sets, pixels.train[-args.embedded :])
        results["encoders"][f"{name}, seed {args.seed}"] = {
            "encoder": name,
            "seed": args.seed,
            "steps": args.steps,
            "kappa": found["kappa"],
            "aurocs": compare(found["scores"]),
        }
        print(f"{name}: {time.process_time() - started:.0f} s", flush=True)
        store(args.out, results)
    report(results)


if __name__ == "__main__":
    main()
