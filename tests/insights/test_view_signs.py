"""Views, clusters, dimensions, LiDAR and lag: closed forms, and when they say nothing."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Validated, images, loader, mlp, trainer
from sklearn.metrics.pairwise import cosine_similarity
from torch import Tensor, nn

from jepa_monitor import DensityMonitor, JepaScoreCallback
from jepa_monitor.probes.augmentations import augment, draw_distortions


def scalars_of(
    encoder: Any, data: Tensor, monitor: DensityMonitor | None = None, **settings: Any
) -> dict[str, float]:
    monitor = monitor or DensityMonitor(data, max_probe_samples=2, **settings)
    report = monitor.evaluate(encoder)
    assert report.failed == {}
    return report.scalars


def smooth(count: int = 60, seed: int = 0) -> Tensor:
    """Blobs of colour, which a crop leaves similar to themselves."""
    small = torch.randn(count, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(small, size=8, mode="bilinear")


class Pooled(nn.Module):
    """The mean colour, to which a mirror is nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class Coarse(nn.Module):
    """Four pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


def test_views_find_each_other_as_far_as_the_nearest_are_their_own() -> None:
    data = smooth(60)
    found = scalars_of(Coarse(), data)
    views = [augment(data, draw_distortions(60, seed)) for seed in (0, 1)]
    a, b = (Coarse()(view) for view in views)
    share = (cosine_similarity(a, b).argmax(1) == np.arange(60)).mean()
    assert found["views/retrieval"] == pytest.approx((share - 1 / 60) / (1 - 1 / 60))
    low, high = found["views/retrieval_low"], found["views/retrieval_high"]
    assert low < found["views/retrieval"] < high
    share = (
        cosine_similarity(*(view.flatten(1) for view in views)).argmax(1) == np.arange(60)
    ).mean()
    assert found["views/retrieval_pixels"] == pytest.approx((share - 1 / 60) / (1 - 1 / 60))


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :8] * 0 + 1


def test_a_constant_encoder_is_at_chance() -> None:
    found = scalars_of(Constant(), smooth(60))
    assert found["views/retrieval"] == pytest.approx(0, abs=1e-12)
    assert found["views/retrieval_low"] < 0 < found["views/retrieval_high"]
    assert found["views/overlap"] == pytest.approx(0, abs=1e-12)
    assert found["clusters/self_clustering"] == pytest.approx(1)
    assert found["clusters/learnability"] == 0
    assert found["clusters/agreement"] == 0
    assert "clusters/learnability_low" not in found


def test_inputs_that_are_no_images_have_no_views() -> None:
    found = scalars_of(
        nn.Identity(), torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    )
    assert not [tag for tag in found if tag.startswith("views/")]
    assert "clusters/agreement" not in found
    assert 0 <= found["clusters/learnability"] <= 1
    low, high = found["clusters/learnability_low"], found["clusters/learnability_high"]
    assert low < found["clusters/learnability"] < high


def test_isotropic_embeddings_rarely_cluster_by_themselves() -> None:
    above = 0
    for seed in range(20):
        z = torch.randn(100, 6, generator=torch.Generator().manual_seed(seed))
        found = scalars_of(nn.Identity(), z)
        above += found["clusters/self_clustering"] > found["clusters/self_clustering_isotropic"]
    assert above <= 3  # of 20, 2.5 % each: more than 3 once in 600 cases


def monitored(seed: int = 0) -> DensityMonitor:
    return DensityMonitor(smooth(100, seed), max_probe_samples=2, insights=["dimension"])


class Noisy(nn.Module):
    """Embeddings that have nothing to do with the image but its exact pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return (1e4 * x.flatten(1)[:, :8]).sin()


def test_dimensions_are_withheld_until_views_find_each_other_better() -> None:
    monitor = monitored()
    first = monitor.evaluate(Noisy())
    assert first.scalars["dimension/withheld"] == 2
    assert "withheld: views of an image find each other no better" in str(first.verdict)
    assert not any(tag.startswith("dimension/mst") for tag in first.scalars)
    later = monitor.evaluate(Pooled())
    assert later.scalars["dimension/withheld"] == 0
    assert "withheld" not in str(later.verdict)
    low, value, high = (later.scalars[f"dimension/mst_raw{end}"] for end in ("_low", "", "_high"))
    assert low < value < high
    assert 1 < value < 10  # three colours; a small sample of them
    assert 1 < later.scalars["dimension/mst_raw_isotropic"] < 10
    collapsed = monitor.evaluate(Constant())
    assert collapsed.scalars["dimension/withheld"] == 1
    assert "withheld: a collapse lowers them" in str(collapsed.verdict)
    assert monitor.memory["first_retrieval"] == first.scalars["views/retrieval"]


def test_lidar_needs_images_and_counts_directions() -> None:
    data = smooth(80)
    found = scalars_of(Pooled(), data, insights=["lidar"])
    views = np.stack(
        [augment(data, draw_distortions(80, s)).mean((2, 3)).numpy() for s in range(10)], 1
    ).astype("f8")
    means = views.mean(1)
    within = ((views - means[:, None]) ** 2).sum() / (80 * 9)
    assert found["lidar/ratio"] == pytest.approx(means.var(0, ddof=1).sum() / within, rel=1e-5)
    assert found["lidar/ratio_noise"] == 0.1
    assert 1 <= found["lidar/rank"] <= 3
    assert found["lidar/needed"] == 2
    wide = DensityMonitor(data, max_probe_samples=2, insights=["lidar"]).evaluate(nn.Flatten())
    assert wide.scalars["lidar/needed"] == 107  # 5 · 192 / 9
    assert "lidar/rank" not in wide.scalars
    assert "LiDAR is withheld: embeddings of this width take 107 images" in str(wide.verdict)


def test_lag_of_weights_and_of_embeddings() -> None:
    data, average, online = images(40), mlp(192), mlp(192)
    found = scalars_of(average, data, online=online)
    flat = [
        torch.cat([p.detach().flatten() for p in m.parameters()]).double()
        for m in (online, average)
    ]
    assert found["ema/lag"] == pytest.approx(((flat[0] - flat[1]).norm() / flat[1].norm()).item())
    with torch.no_grad():
        z, other = online(data[:32]).double(), average(data[:32]).double()
    expected = (z - other).square().sum(1).mean() / other.var(0).sum()
    assert found["ema/functional_lag"] == pytest.approx(expected.item(), rel=1e-5)
    assert scalars_of(average, data, online=average)["ema/lag"] == 0
    without = scalars_of(average, data)
    assert not [tag for tag in without if tag.startswith("ema/")]
    called = scalars_of(average.forward, data, online=online.forward)
    assert "ema/lag" not in called  # no names to compare
    assert called["ema/functional_lag"] == found["ema/functional_lag"]
    other = scalars_of(average, data, online=mlp(192, 5))
    assert "ema/functional_lag" not in other  # of another width
    assert "ema/lag" in other  # of the layers that both have


class Averaged(Validated):
    """A trained encoder, its EMA target, and a head of the same shape as neither."""

    def __init__(self) -> None:
        super().__init__()
        self.target_encoder = Validated().encoder.requires_grad_(False)
        self.head = nn.Linear(12, 12)


def test_the_callback_finds_what_is_averaged(tmp_path: pathlib.Path) -> None:
    callback = JepaScoreCallback(max_overhead=None, max_probe_samples=2)
    module = Averaged()
    trainer(tmp_path, [callback], max_epochs=1).fit(module, loader(), loader(seed=2))
    flat = [
        torch.cat([p.detach().flatten() for p in m.parameters()]).double()
        for m in (module.encoder, module.target_encoder)
    ]
    expected = ((flat[0] - flat[1]).norm() / flat[1].norm()).item()
    assert callback.history[-1]["ema/lag"] == pytest.approx(expected)
    assert callback.history[0]["ema/lag"] != pytest.approx(expected)
    plain = JepaScoreCallback(max_overhead=None, max_probe_samples=2)
    trainer(tmp_path, [plain], max_epochs=1).fit(Validated(), loader(), loader(seed=2))
    assert not [tag for look in plain.history for tag in look if tag.startswith("ema/")]
