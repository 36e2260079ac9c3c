"""White energy: against SciPy's cosine transform, and what it tells of noise, blur and shuffled tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.fft import dctn
from scipy.linalg import sqrtm
from torch import Tensor

from jepa_monitor import DensityMonitor
from jepa_monitor.detectors import DETECTORS, Reference, ScoredSet, detect
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.probes.corruptions import CORRUPTIONS


def pictures(count: int, seed: int, side: int = 16) -> Tensor:
    """Smooth random images of three channels that go together."""
    generator = torch.Generator().manual_seed(seed)
    waves = torch.randn(count, 3, side, side, generator=generator)
    waves = waves + waves[:, :1]
    size = torch.arange(side).float()
    spectrum = 1 / (1 + size[:, None].square() + size[None].square())
    cosines = torch.cos(torch.pi * (size[None] + 0.5) * size[:, None] / side)
    return torch.einsum("bchw,hx,wy->bcxy", waves * spectrum, cosines, cosines)


def scored(images: Tensor) -> ScoredSet:
    unknown = torch.full((len(images),), torch.nan, dtype=torch.float64)
    return ScoredSet(
        images, torch.zeros(len(images), 4), unknown, unknown, unknown[:, None], unknown
    )


def reference(images: Tensor) -> Reference:
    z = torch.randn(40, 4, generator=torch.Generator().manual_seed(0)).double()
    return Reference(z, Gaussian.fit(z), scored(images))


def log_energy(fitted: np.ndarray, judged: np.ndarray) -> np.ndarray:
    """With a covariance of channels at each cosine, by SciPy."""
    mean = fitted.mean((0, 2, 3), keepdims=True)
    waves, others = (dctn(part - mean, axes=(2, 3), norm="ortho") for part in (fitted, judged))
    total = np.zeros(len(judged))
    for row in range(fitted.shape[2]):
        for column in range(fitted.shape[3]):
            covariance = waves[:, :, row, column].T @ waves[:, :, row, column] / len(fitted)
            white = others[:, :, row, column] @ np.linalg.inv(sqrtm(covariance).real)
            total += np.square(white).sum(1)
    return np.log(total / judged[0].size)


def test_it_is_the_distance_of_held_out_energies_by_scipy() -> None:
    known, probe = pictures(128, 0, side=8), pictures(20, 1, side=8)
    examples = known.double().numpy()[:64]
    energies = np.zeros(64)
    for k in range(8):
        held = np.arange(64) % 8 == k
        energies[held] = log_energy(examples[~held], examples[held])
    found = log_energy(examples, probe.double().numpy())
    expected = -(((found - energies.mean()) / energies.std(ddof=1)) ** 2)
    detector = DETECTORS["white_energy"]
    scores, failed = detect([detector], reference(known), {"probe": scored(probe)})
    assert not failed
    np.testing.assert_allclose(scores["probe"]["white_energy"].numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("kind", list(CORRUPTIONS))
def test_corrupted_images_are_unusual_and_new_ones_are_not(kind: str) -> None:
    known, usual, worse = reference(pictures(128, 0)), pictures(200, 1), pictures(60, 2)
    sets = {
        "probe": scored(usual),
        "worse": scored(CORRUPTIONS[kind](worse, 3)),
        "reference": known.scored,
    }
    scores, _ = detect([DETECTORS["white_energy"]], known, sets)
    found = {name: values["white_energy"] for name, values in scores.items()}
    above = (found["probe"][:, None] > found["worse"][None]).double().mean()
    assert float(above) > 0.9
    assert torch.isnan(found["reference"][:64]).all()
    threshold = found["reference"][64:].sort().values[6]  # the seventh of 64: 11 % lie below it
    below = (found["probe"] < threshold).double().mean()
    assert 0.02 < float(below) < 0.3


def test_it_is_asked_for_by_name_and_needs_images() -> None:
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 256, 6))
    monitor = DensityMonitor(
        pictures(64, 1),
        reference=pictures(200, 0),
        ood={"noise": CORRUPTIONS["noise"](pictures(64, 2), 3)},
        detectors=["white_energy"],
        max_probe_samples=64,
    )
    scalars = monitor.evaluate(encoder).scalars
    assert scalars["ood/noise/auroc_white_energy"] > 0.9
    assert "outliers/white_energy" in scalars
    flat = pictures(80, 0).flatten(1)
    _, failed = detect([DETECTORS["white_energy"]], reference(flat), {"probe": scored(flat)})
    assert "`reference` must hold images (B, C, H, W)" in str(failed["white_energy"])
