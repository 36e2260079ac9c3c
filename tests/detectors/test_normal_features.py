"""Detectors that learn the law of a few numbers from examples, against scikit-learn and SciPy."""

from __future__ import annotations

import pathlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import images, leave_one_out_law, mlp
from scipy.spatial.distance import mahalanobis
from scipy.stats import expon, kstest, percentileofscore
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize
from torch import Tensor

from jepa_monitor import DensityMonitor
from jepa_monitor.detectors import (
    Bands,
    Combined,
    Contrast,
    Detector,
    NormalizedKNN,
    NormalizedMahalanobis,
    RadialMahalanobis,
    Reference,
    ScoredSet,
    SpectrumShape,
    TwoSidedJepaScore,
    detect,
)
from jepa_monitor.functional.gaussian import Gaussian


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scored(count: int, seed: int, width: int = 20) -> ScoredSet:
    draw = generator(seed)
    pictures = torch.rand(count, 3, 16, 16, generator=draw) * torch.rand(
        count, 1, 1, 1, generator=draw
    )
    values = torch.rand(count, width, generator=draw).double() + 0.5
    values = values.sort(1, descending=True).values
    return ScoredSet(
        pictures,
        torch.randn(count, 6, generator=draw).double(),
        values.log().sum(1),
        torch.randn(count, generator=draw).double(),
        values,
        torch.zeros(count).double(),
    )


def reference(count: int = 80) -> Reference:
    base = torch.randn(60, 6, generator=generator(9)).double()
    return Reference(base, Gaussian.fit(base), scored(count, 1))


def distances(learned: np.ndarray, judged: np.ndarray) -> np.ndarray:
    """Squared Mahalanobis distances of standardised features under scikit-learn's Ledoit-Wolf law."""
    centre, scale = learned.mean(0), learned.std(0, ddof=1)
    law = LedoitWolf().fit((learned - centre) / scale)
    return law.mahalanobis((judged - centre) / scale)


def block_means(values: Tensor) -> np.ndarray:
    logs = np.log(values.numpy())
    # 20 = 4 · 3 + 4 · 2: larger blocks come first, as in numpy.array_split.
    return np.stack([block.mean(1) for block in np.array_split(logs, 8, axis=1)], 1)


def contrasts(pictures: Tensor) -> np.ndarray:
    centred = pictures.double() - pictures.double().mean((2, 3), keepdim=True)
    return np.log(np.linalg.norm(centred.flatten(1).numpy(), axis=1))[:, None]


def octaves(pictures: Tensor) -> np.ndarray:
    power = (np.abs(np.fft.fft2(pictures.double().numpy()) / 256) ** 2).sum(1)
    frequency = np.hypot(np.fft.fftfreq(16)[:, None], np.fft.fftfreq(16)[None])
    masks = [frequency > 0.25, (frequency <= 0.25) & (frequency > 0.125)]
    masks.append((frequency <= 0.125) & (frequency > 0))
    return np.log(np.stack([power[:, mask].sum(1) for mask in masks], 1))


@pytest.mark.parametrize(
    ("detector", "features"),
    [
        (SpectrumShape(), lambda data: block_means(data.singular_values)),
        (Contrast(), lambda data: contrasts(data.images)),
        (Bands(), lambda data: octaves(data.images)),
        (TwoSidedJepaScore(), lambda data: data.scores.numpy()[:, None]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_distance_from_the_law_of_the_first_half_of_the_reference(
    detector: Detector, features
) -> None:
    known, data = reference(), scored(30, 2)
    examples = features(known.scored)[:40]
    expected = -distances(examples, features(data))
    np.testing.assert_allclose(detector.fit(known).score(data).numpy(), expected, rtol=1e-6)


def test_plain_singular_values_are_judged_as_scored_ones_are() -> None:
    known, data = reference(), scored(30, 2)
    values = known.scored.singular_values[:40]
    by_itself = SpectrumShape().fit(values).score(data.singular_values)
    assert torch.equal(by_itself, SpectrumShape().fit(known).score(data))
    with pytest.raises(ValueError, match="at least 16 examples"):
        SpectrumShape().fit(values[:15])
    with pytest.raises(ValueError, match="`data` must have shape"):
        SpectrumShape().fit(values).score(values[0])


def test_what_was_learned_from_is_no_measure_of_others() -> None:
    known = reference()
    sets = {"probe": scored(30, 2), "reference": known.scored}
    found, failed = detect([Contrast(), TwoSidedJepaScore()], known, sets)
    assert not failed
    for values in found["reference"].values():
        assert torch.isnan(values[:40]).all()
        assert torch.isfinite(values[40:]).all()
    for values in found["probe"].values():
        assert torch.isfinite(values).all()


def test_held_out_levels_are_uniform_however_few_the_examples() -> None:
    """Ranks of fresh images of one law among the half that was not learned from: the exact null."""
    ranks = []
    for trial in range(60):
        known = Reference(reference().embeddings, reference().law, scored(64, 100 + trial))
        fresh = scored(4, 1000 + trial)
        sets = {"probe": fresh, "reference": known.scored}
        found, _ = detect([SpectrumShape()], known, sets)
        usual = found["reference"]["spectrum_shape"][32:]
        below = (usual[None] < found["probe"]["spectrum_shape"][:, None]).sum(1)
        ranks += ((below + torch.rand(4, generator=generator(trial))) / 33).tolist()
    assert kstest(ranks, "uniform").pvalue > 0.01


def test_too_few_examples_leave_the_detector_out_and_inputs_that_are_no_images_have_no_bands() -> (
    None
):
    few = reference(30)  # fifteen to learn from
    found, failed = detect([Contrast()], few, {"probe": scored(5, 2)})
    assert found == {"probe": {}}
    assert not failed
    assert torch.isnan(
        Bands().features(
            scored(5, 2)
            .take(torch.arange(3))
            .__class__(
                torch.rand(3, 7),
                *(
                    torch.rand(3, 2).double(),
                    torch.rand(3).double(),
                    torch.rand(3).double(),
                    torch.rand(3, 2).double(),
                    torch.rand(3).double(),
                ),
            )
        )
    ).all()


def test_lengths_that_a_normal_law_has_are_left_alone_and_others_are_shrunk() -> None:
    normal = torch.randn(400, 64, generator=generator(0)).double()
    spread = normal * (0.5 * torch.randn(400, 1, generator=generator(1))).double().exp()
    plain = RadialMahalanobis().fit(Reference(normal, Gaussian.fit(normal)))
    shrunk = RadialMahalanobis().fit(Reference(spread, Gaussian.fit(spread)))
    assert plain.chosen == 0
    assert shrunk.chosen == 0.9
    directions = RadialMahalanobis(1.0).fit(Reference(spread, Gaussian.fit(spread)))
    rows = ScoredSet(
        torch.zeros(400, 1),
        spread,
        *(torch.zeros(400).double() for _ in range(2)),
        torch.ones(400, 3).double(),
        torch.zeros(400).double(),
    )
    # The spread of squared distances is that of a chi-squared law where β undoes the lengths.
    for detector, low, high in ((directions, 0.0, 0.3), (shrunk, 0.0, 0.3)):
        found = -detector.score(rows)
        assert low < float(found.std() / found.mean()) < high
    distance = Gaussian.fit(spread).mahalanobis_squared(spread)
    assert float(distance.std() / distance.mean()) > 0.9
    with pytest.raises(ValueError, match="`exponent` must be from 0 to 1, got 2"):
        RadialMahalanobis(2)


def test_directions_alone() -> None:
    """Neighbours and distances of embeddings scaled to unit length, by scikit-learn."""
    known, data = reference(), scored(20, 2)
    unit, base = normalize(data.embeddings), normalize(known.embeddings)
    nearest = NearestNeighbors(n_neighbors=10).fit(base).kneighbors(unit)[0][:, -1]
    found = NormalizedKNN().fit(known).score(data)
    np.testing.assert_allclose(found.numpy(), -nearest, rtol=1e-9)
    law = leave_one_out_law(base)
    away = [mahalanobis(z, law.mean, np.linalg.inv(law.cov)) ** 2 for z in unit]
    found = NormalizedMahalanobis().fit(known).score(data)
    np.testing.assert_allclose(found.numpy(), -np.array(away), rtol=1e-6)
    # Lengths do not matter, and what is not finite has no score.
    moved = replace(data, embeddings=7 * data.embeddings)
    moved.embeddings[3, 1] = torch.nan
    for detector in (NormalizedKNN(), NormalizedMahalanobis()):
        before, after = (detector.fit(known).score(some) for some in (data, moved))
        assert torch.isnan(after).nonzero().flatten().tolist() == [3]
        rest = torch.arange(20) != 3
        np.testing.assert_allclose(after[rest].numpy(), before[rest].numpy(), rtol=1e-9)


def log_p(usual: np.ndarray, x: float) -> float:
    """The share of the usual that score as low; under the six lowest of forty, SciPy's exponential tail."""
    ordered, size, tail = np.sort(usual), len(usual), 6
    threshold = ordered[tail - 1 : tail + 1].mean()
    if x >= threshold:
        return np.log((1 + percentileofscore(usual, x) / 100 * size) / (size + 1))
    law = expon.fit(threshold - ordered[:tail], floc=0)
    return np.log(tail / (size + 1)) + expon.logsf(threshold - x, *law)


def test_combined_is_the_mean_log_of_p_values_of_its_parts() -> None:
    """By hand: each part fitted with scikit-learn's law or taken as it is, its p-values by SciPy."""
    known, data = reference(), scored(30, 2)
    examples = known.scored.take(torch.arange(40))
    logs = []
    for detector in (NormalizedMahalanobis(), NormalizedKNN()):
        detector.fit(known)
        logs.append((detector.score(examples).numpy(), detector.score(data).numpy()))
    logs.append((examples.scores.numpy(), data.scores.numpy()))
    for features in (
        lambda some: block_means(some.singular_values),
        lambda some: octaves(some.images),
    ):
        learned = features(examples)
        usual = np.empty(40)
        for fold in range(4):
            held = np.arange(40) % 4 == fold
            usual[held] = -distances(learned[~held], learned[held])
        logs.append((usual, -distances(learned, features(data))))
    expected = np.mean([[log_p(usual, x) for x in judged] for usual, judged in logs], 0)
    found = Combined().fit(known).score(data)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_combined_goes_without_the_parts_that_have_nothing_to_say() -> None:
    """Inputs that are no images have no octaves; a score that is not finite is left out."""
    known, data = reference(), scored(30, 2)
    rows = [replace(some, images=some.images.flatten(1)[:, :7]) for some in (known.scored, data)]
    some = replace(known, scored=rows[0])
    parts = Combined().fit(some)
    assert torch.isfinite(parts.score(rows[1])).all()
    rows[1].scores[4] = torch.nan
    assert torch.isfinite(parts.score(rows[1])).all()
    assert float((parts.score(rows[1]) - Combined().fit(known).score(data)).abs().max()) > 0.01


def test_combined_covers_what_it_says_however_its_parts_depend() -> None:
    """Shares below the lowest quarter of the images that nothing was learned from: exact on average."""
    below = []
    for trial in range(40):
        known = Reference(reference().embeddings, reference().law, scored(70, 200 + trial))
        sets = {"probe": scored(20, 2000 + trial), "reference": known.scored}
        found, failed = detect([Combined()], known, sets)
        assert not failed
        usual = found["reference"]["combined"][35:].sort().values
        below.append(float((found["probe"]["combined"] < usual[8]).double().mean()))
    # The ninth of 35: a quarter of new images lie below it on average.
    assert np.mean(below) == pytest.approx(0.25, abs=3 * np.std(below) / np.sqrt(40))


def test_all_are_asked_for_by_name_in_the_monitor() -> None:
    names = ["contrast", "bands", "spectrum_shape", "jepa_score_two_sided", "mahalanobis_radial"]
    monitor = DensityMonitor(
        images(24, seed=1),
        reference=images(160, seed=2),
        ood={"inverted": 3 * images(24, seed=3)},
        max_probe_samples=48,
        detectors=names,
    )
    scalars = monitor.evaluate(mlp(3 * 8 * 8)).scalars
    tags = {tag.removeprefix("ood/inverted/auroc_") for tag in scalars if "auroc" in tag}
    # Thresholds are set on 24 reference images that no detector has learned from.
    assert tags >= {"contrast", "spectrum_shape", "jepa_score_two_sided", "mahalanobis_radial"}
    assert scalars["ood/inverted/auroc_contrast"] > 0.95
    assert "outliers/contrast" in scalars


@pytest.mark.parametrize(("name", "least"), [("dinov2_vits14", 0.88), ("dinov2_vitb14", 0.95)])
def test_the_shape_of_real_spectra_tells_house_numbers_from_objects(
    data_folder: pathlib.Path, name: str, least: float
) -> None:
    """64 images to learn from; the sum of logs has 0.84 and 0.67 on the same images."""
    with np.load(data_folder / "spectra" / f"{name}.npz") as arrays:
        inside, outside = (torch.from_numpy(arrays[key]) for key in ("in_cifar10", "out_svhn"))
    order = torch.randperm(len(inside), generator=generator(0))
    detector = SpectrumShape().fit(inside[order[:64]])
    usual, odd = detector.score(inside[order[64:]]), detector.score(outside)
    truth = np.r_[np.ones(len(usual)), np.zeros(len(odd))]
    assert roc_auc_score(truth, torch.cat([usual, odd]).numpy()) > least
