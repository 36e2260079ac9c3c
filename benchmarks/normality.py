"""Size and power of the verdict on the law of embeddings (docs/theory.md), by simulation.

    OMP_NUM_THREADS=1 python benchmarks/normality.py

Size: laws that are exactly normal, with flat and falling spectra; the share of p-values under 0.05
and of verdicts "no" must be at most what they promise. Power: laws that are not normal.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from jepa_monitor.functional import normality

Law = Callable[[int, int, torch.Generator], Tensor]


def _normal(count: int, width: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, width, generator=generator, dtype=torch.float64)


def _falling(condition: float) -> Law:
    """Normal, with variances that fall evenly to one part in ``condition``."""

    def draw(count: int, width: int, generator: torch.Generator) -> Tensor:
        scale = torch.logspace(0, -0.5 * math.log10(condition), width, dtype=torch.float64)
        return _normal(count, width, generator) * scale

    return draw


def _power_law(count: int, width: int, generator: torch.Generator) -> Tensor:
    """Normal, with variances 1, 1/2, 1/3 …, in random directions."""
    scale = torch.arange(1, width + 1, dtype=torch.float64).rsqrt()
    return (_normal(count, width, generator) * scale) @ _rotation(width)


def _rotation(width: int) -> Tensor:
    normal = _normal(width, width, torch.Generator().manual_seed(7))
    return torch.as_tensor(torch.linalg.qr(normal).Q)


def _clusters(count: int, width: int, generator: torch.Generator) -> Tensor:
    """Ten round clusters whose means have a standard deviation of 5 in each coordinate."""
    means = 5 * _normal(10, width, torch.Generator().manual_seed(9))
    return _normal(count, width, generator) + means[_labels(10, count, generator)]


def _six(count: int, width: int, generator: torch.Generator) -> Tensor:
    """Six round clusters, each pair 4 standard deviations apart, in random directions."""
    means = torch.zeros(6, width, dtype=torch.float64)
    means[:, :6] = torch.eye(6) * 4 / math.sqrt(2)
    means = means @ _rotation(width)
    return _normal(count, width, generator) + means[_labels(6, count, generator)]


def _labels(classes: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(classes, (count,), generator=generator)


def _uniform(count: int, width: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, width, generator=generator, dtype=torch.float64)


def _laplace(count: int, width: int, generator: torch.Generator) -> Tensor:
    u = _uniform(count, width, generator) - 0.5
    return -u.sign() * torch.log1p(-2 * u.abs())


def _student(count: int, width: int, generator: torch.Generator) -> Tensor:
    """Multivariate Student's t of 5 degrees of freedom."""
    chi = _normal(count, 5, generator).square().sum(dim=1, keepdim=True)
    return _normal(count, width, generator) * (5 / chi).sqrt()


def _rotated(law: Law) -> Law:
    def draw(count: int, width: int, generator: torch.Generator) -> Tensor:
        return law(count, width, generator) @ _rotation(width)

    return draw


def _cliff(count: int, width: int, generator: torch.Generator) -> Tensor:
    """Normal slices, variances four orders of magnitude lower in the last quarter (UR-JEPA)."""
    scale = torch.ones(width, dtype=torch.float64)
    scale[3 * width // 4 :] = 1e-2
    return (_normal(count, width, generator) * scale) @ _rotation(width)


IDEAL: dict[str, Law] = {
    "flat": _normal,
    "falls to 1e-4": _falling(1e4),
    "falls to 1e-8": _falling(1e8),
    "1/k, rotated": _power_law,
}
OTHER: dict[str, Law] = {
    "ten clusters": _clusters,
    "six clusters 4 sd apart": _six,
    "uniform": _uniform,
    "uniform, rotated": _rotated(_uniform),
    "Laplace": _laplace,
    "Laplace, rotated": _rotated(_laplace),
    "Student, 5": _student,
    "UR-JEPA": _cliff,
}


def _cell(law: Law, count: int, width: int, looks: int, ideal: bool) -> str:
    verdicts = []
    for seed in range(looks):
        generator = torch.Generator().manual_seed(1000 * seed + width)
        verdicts.append(normality(law(count, width, generator), seed=seed))
    refused = sum(verdict.gaussian is False for verdict in verdicts)
    if ideal:
        return f"{sum(verdict.p_value < 0.05 for verdict in verdicts)}, {refused} / {looks}"
    unknown = sum(verdict.gaussian is None for verdict in verdicts)
    effect = sum(verdict.effect for verdict in verdicts) / looks
    return f"{refused}, {unknown} / {looks} ({effect:.3f})"


def _table(laws: dict[str, Law], sizes: dict[tuple[int, int], int], ideal: bool) -> None:
    heads = [f"{count} × {width}" for count, width in sizes]
    print(f"| N × K | {' | '.join(heads)} |")
    print("|---" * (len(sizes) + 1) + "|")
    for name, law in laws.items():
        cells = [_cell(law, *size, looks, ideal) for size, looks in sizes.items()]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--looks", type=float, default=1.0, help="factor on the number of looks")
    factor = parser.parse_args().looks
    started = time.process_time()
    ideal = {(512, 16): 100, (512, 64): 100, (512, 192): 60, (512, 384): 40, (512, 1024): 20}
    ideal |= {(4096, 192): 4, (4096, 2048): 1}
    other = {(512, 16): 10, (512, 64): 10, (512, 192): 10, (512, 768): 5}
    other |= {(4096, 16): 3, (4096, 192): 3, (4096, 768): 1}
    normal = "Normal laws: p < 0.05, no / looks"
    power = "Other laws: no, cannot be said / looks (effect)"
    for title, laws, sizes in ((normal, IDEAL, ideal), (power, OTHER, other)):
        print(f"\n{title}\n")
        looks = {size: max(1, round(factor * count)) for size, count in sizes.items()}
        _table(laws, looks, laws is IDEAL)
    print(f"\n{time.process_time() - started:.0f} seconds of one core")


if __name__ == "__main__":
    main()
