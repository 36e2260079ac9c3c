"""Agreement up to maps, against SciPy's Procrustes and assignment and scikit-learn's kernel ridge regression."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist, pdist
from sklearn.kernel_ridge import KernelRidge
from torch import Tensor

from jepa_monitor.functional import map_agreement, mean_correlation, unbiased_cka

KINDS = ("permutation", "rotation", "linear", "smooth")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def related(count: int = 60, width: int = 5, other: int = 5) -> tuple[Tensor, Tensor]:
    z = normal(count, width) * torch.linspace(0.5, 2, width, dtype=torch.float64)
    mixed = torch.tanh(z @ normal(width, other, seed=1) / 2) + 0.3 * z.roll(1, 1)[:, :1]
    return z + 3, mixed + 0.1 * normal(count, other, seed=2) - 1


def halves(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).numpy()
    return [
        (order[: count // 2], order[count // 2 :]),
        (order[count // 2 :], order[: count // 2]),
    ]


def penalised(gram: np.ndarray, y: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Kernel ridge with the penalty of the least error of samples that are left out, one after another."""
    least, told = np.inf, asked
    for strength in np.logspace(-6, 3, 19) * np.trace(gram) / len(gram):
        penalty, missed = strength * np.eye(len(gram)), 0.0
        for left in range(len(gram)):
            rest = np.arange(len(gram)) != left
            dual = np.linalg.solve((gram + penalty)[np.ix_(rest, rest)], y[rest])
            missed += ((gram[left, rest] @ dual - y[left]) ** 2).sum()
        if missed < least:
            model = KernelRidge(alpha=strength, kernel="precomputed")
            least, told = missed, model.fit(gram, y).predict(asked)
    return told


def reference(first: Tensor, second: Tensor, kind: str) -> tuple[float, float]:
    width = max(first.shape[1], second.shape[1])
    z, y = (np.pad(x.numpy(), ((0, 0), (0, width - x.shape[1]))) for x in (first, second))
    errors, spreads = [], []
    for fit, held in halves(len(z)):
        known, wanted = z[fit] - z[fit].mean(0), y[fit] - y[fit].mean(0)
        shown, truth = z[held] - z[fit].mean(0), y[held] - y[fit].mean(0)
        if kind in ("permutation", "rotation"):
            if kind == "rotation":
                turn, total = orthogonal_procrustes(known, wanted)
            else:
                products = known.T @ wanted
                rows, columns = linear_sum_assignment(-np.abs(products))
                turn = np.zeros_like(products)
                turn[rows, columns] = np.where(products[rows, columns] < 0, -1, 1)
                total = np.abs(products[rows, columns]).sum()
            told = shown @ turn * total / (known**2).sum()
        elif kind == "linear":
            told = penalised(known @ known.T, wanted, shown @ known.T)
        else:
            scale, power = np.sort(pdist(known)), (known**2).sum(1).mean()
            wide = scale[(len(scale) - 1) // 2]
            grams = [
                a @ known.T / power + np.exp(-(cdist(a, known) ** 2) / (2 * wide**2))
                for a in (known, shown)
            ]
            told = penalised(grams[0], wanted, grams[1])
        errors.append(((truth - told) ** 2).sum(1))
        spreads.append((truth**2).sum(1))
    missed, whole = np.concatenate(errors), np.concatenate(spreads)
    ratio = missed.sum() / whole.sum()
    return 1 - ratio, 1.96 * np.sqrt(((missed - ratio * whole) ** 2).sum()) / whole.sum()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("widths", [(5, 5), (3, 6), (6, 3)])
def test_what_maps_explain(kind: str, widths: tuple[int, int]) -> None:
    first, second = related(60, *widths)
    found, (value, error) = map_agreement(first, second, kind), reference(first, second, kind)
    assert found.value.item() == pytest.approx(value, rel=1e-6)
    assert found.error.item() == pytest.approx(error, rel=1e-6)
    assert 0.05 < value < 0.99


def test_each_class_of_maps_is_told_from_the_next() -> None:
    z = normal(400, 8) * torch.linspace(0.3, 2, 8, dtype=torch.float64)
    rotation = torch.linalg.qr(normal(8, 8, seed=1)).Q
    targets = {
        "permutation": -2 * z.flip(1),
        "rotation": z @ rotation,
        "linear": z @ normal(8, 12, seed=2),
        "smooth": z.square(),
    }
    for place, (own, target) in enumerate(targets.items()):
        shares = [map_agreement(z, target, kind).value.item() for kind in KINDS]
        assert min(shares[place:]) > (0.3 if own == "smooth" else 0.99), own
        assert max([*shares[:place], -1.0]) < (0.1 if own == "smooth" else 0.9), own
    assert mean_correlation(z, targets["permutation"]).value.item() == pytest.approx(1)
    assert mean_correlation(z, targets["rotation"]).value.item() < 0.8


def test_unrelated_embeddings_read_nothing() -> None:
    pairs = [(normal(128, 40, seed=s), normal(128, 30, seed=100 + s)) for s in range(12)]
    for kind in KINDS:
        shares = torch.stack([map_agreement(a, b, kind).value for a, b in pairs])
        assert shares.mean() <= 0.01
        assert shares.mean() > -0.5
    for measured in (lambda a, b: mean_correlation(a, b).value, unbiased_cka):
        values = torch.stack([measured(a, b) for a, b in pairs])
        assert abs(values.mean()) < 4 * values.std() / 12**0.5


@pytest.mark.parametrize("widths", [(4, 4), (3, 6), (6, 3)])
def test_mean_correlation(widths: tuple[int, int]) -> None:
    first, second = related(80, *widths)
    values = []
    for fit, held in halves(80):
        a, b = first.numpy(), second.numpy()
        known = np.corrcoef(a[fit].T, b[fit].T)[: widths[0], widths[0] :]
        asked = np.corrcoef(a[held].T, b[held].T)[: widths[0], widths[0] :]
        rows, columns = linear_sum_assignment(-np.abs(known))
        values.append((np.sign(known) * asked)[rows, columns].mean())
    assert mean_correlation(first, second).value.item() == pytest.approx(np.mean(values))


def test_the_intervals_cover() -> None:
    """Of repeated draws of the same two encoders, what many samples say lies within most intervals."""
    first, second = related(6000, 3, 3)
    truth = map_agreement(first[:3000], second[:3000], "rotation").value
    mean = mean_correlation(first[:3000], second[:3000]).value
    hits = []
    for part in range(60):
        rows = slice(3000 + 50 * part, 3050 + 50 * part)
        share = map_agreement(first[rows], second[rows], "rotation", seed=part)
        matched = mean_correlation(first[rows], second[rows], seed=part)
        hits += [
            bool((share.value - truth).abs() < share.error),
            bool((matched.value - mean).abs() < matched.error),
        ]
    assert np.mean(hits) > 0.8


def test_unbiased_cka_is_the_mean_over_quadruples() -> None:
    """HSIC without bias is a U-statistic: an average over all quadruples of distinct samples."""
    from itertools import permutations

    first, second = related(7, 3, 2)
    k, m = ((z - z.mean(0)).numpy() @ (z - z.mean(0)).numpy().T for z in (first, second))

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        return float(
            np.mean(
                [
                    k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])
                    for i, j, q, r in permutations(range(7), 4)
                ]
            )
        )

    expected = hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
    assert unbiased_cka(first, second).item() == pytest.approx(expected)
    assert unbiased_cka(first, 5 - 2 * first.flip(1)).item() == pytest.approx(1)


def test_wrong_use_is_named() -> None:
    z = normal(40, 3)
    with pytest.raises(ValueError, match="`kind` must be one of permutation, rotation"):
        map_agreement(z, z, "affine")
    with pytest.raises(ValueError, match="`source` must"):
        map_agreement(z[:20], z[:20])
    with pytest.raises(ValueError, match="same number of rows"):
        map_agreement(z, z[:35])
    with pytest.raises(ValueError, match="`target` must not be constant"):
        map_agreement(z, torch.ones(40, 2))
    with pytest.raises(ValueError, match=r"`second` has \d+ non-finite"):
        mean_correlation(z, z.masked_fill(z > 2, torch.nan))
    assert unbiased_cka(z, torch.ones(40, 2)).isnan()
    assert mean_correlation(z, torch.ones(40, 2)).value.item() == 0
