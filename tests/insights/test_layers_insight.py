"""Layers in a look: every tag by NumPy, what is remembered, what is said and drawn, and when nothing is."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers import float64_spectrum, interpreter_settings, mlp, off_the_start
from scipy.spatial.distance import cdist
from torch import Tensor, nn

from jepa_monitor import DensityMonitor, ScoreOptions
from jepa_monitor.functional import isotropic_baseline, sliced_epps_pulley
from jepa_monitor.insights import INSIGHTS
from jepa_monitor.insights.layer_parts import LayerSet
from jepa_monitor.insights.layers import LayerWise, plot_layers
from jepa_monitor.insights.table import tag_pattern
from jepa_monitor.probes.corruptions import CORRUPTIONS, SEVERITIES

SIDE, COUNT = 8, 40
DATA = torch.rand(COUNT, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
CHEAP: dict[str, Any] = {"max_probe_samples": 2, "options": ScoreOptions("sketch", rows=1)}


@cache
def encoder() -> nn.Sequential:
    torch.manual_seed(0)
    return off_the_start(mlp(192, 6, 12).double().eval())


def look(module: Any, insight: LayerWise | str = "layers", data: Tensor = DATA) -> Any:
    return DensityMonitor(data, insights=[insight], **CHEAP).evaluate(module)


@cache
def report() -> Any:
    return look(encoder())


def outputs() -> list[Tensor]:
    """What leaves the two linear layers."""
    first = encoder()[:2](DATA.double())
    return [first.detach(), encoder()(DATA.double()).detach()]


def measured(measure: str) -> dict[int, float]:
    start = f"layers/{measure}/"
    return {
        int(tag.removeprefix(start)): value
        for tag, value in report().scalars.items()
        if tag.startswith(start)
    }


def test_rank_and_spread_are_those_of_the_unit_embeddings() -> None:
    for n, z in enumerate(outputs()):
        unit = (z / z.norm(dim=1, keepdim=True)).numpy()
        values = np.linalg.eigvalsh(np.cov(unit.T, bias=True)).clip(1e-300)
        p = values / values.sum()
        rank = np.exp(-(p * np.log(p)).sum())
        most = isotropic_baseline(COUNT - 1, z.shape[1]).effective_rank
        assert measured("effective_rank_relative")[n] == pytest.approx(rank / most)
        spread = np.sqrt(1 - np.square(unit.mean(0)).sum())
        assert measured("normalized_std")[n] == pytest.approx(spread, rel=0.03)


def test_gaussianity_and_neighbours() -> None:
    first, second = outputs()
    effect = sliced_epps_pulley(second, standardized="whitened").effect_size.item()
    assert measured("gaussianity_effect")[1] == pytest.approx(effect)
    near = []
    for z in (first, second):
        distances = cdist(z, z, "cosine") + 9 * np.eye(COUNT)
        near.append(np.argsort(distances, 1)[:, :10])
    common = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(*near, strict=True)])
    chance = 10 / (COUNT - 1)
    assert measured("neighbors") == {1: pytest.approx((common - chance) / (1 - chance))}


def test_polarity_is_that_of_exact_scores_where_all_rows_are_taken() -> None:
    images = DATA[:8]
    worst = [corrupt(images, max(SEVERITIES)) for corrupt in CORRUPTIONS.values()]
    for n, cut in enumerate((encoder()[:2], encoder())):  # 12 and 6 numbers: no more than 16 rows
        scores = [
            float64_spectrum(cut, each).clamp_min(1e-6).log().sum(1) for each in (images, *worst)
        ]
        shares = [((scores[0] > each).double() + (scores[0] == each) / 2) for each in scores[1:]]
        expected = torch.stack(shares).mean().item()
        assert measured("polarity")[n] == pytest.approx(expected)
        assert measured("polarity_low")[n] < expected < measured("polarity_high")[n]


def test_rows_explain_every_tag_and_the_verdict_speaks_of_them() -> None:
    patterns = [tag_pattern(tag) for row in LayerWise.rows for tag in row.tags]
    tags = [tag for tag in report().scalars if tag.startswith("layers/")]
    assert len(tags) == 2 + 2 + 2 + 1 + 6
    for tag in tags:
        assert sum(bool(pattern.fullmatch(tag)) for pattern in patterns) == 1, tag
    for pattern in patterns:
        assert any(pattern.fullmatch(tag) for tag in tags), pattern
    ranks = measured("effective_rank_relative")
    low = min(ranks, key=ranks.__getitem__)
    assert f"number {low} has the fewest directions" in str(report().verdict)
    told = LayerWise().says(
        {
            "layers/effective_rank_relative/00": 0.5, "layers/effective_rank_relative/01": 0.2,
            "layers/polarity_low/00": 0.6, "layers/polarity_high/00": 0.9,
            "layers/polarity_low/01": 0.1, "layers/polarity_high/01": 0.4,
        }
    )  # fmt: skip
    assert "number 1 has the fewest directions (20.0% of isotropic), number 0 the most" in told
    assert "the right way up at layers 0." in told
    assert "inverted at layers 1." in told
    assert LayerWise().says({}) == ""


def test_looks_are_remembered_and_thinned() -> None:
    monitor = DensityMonitor(DATA, insights=[LayerWise(scored=0)], **CHEAP)
    for factor in (1.0, 2.0, 3.0):
        module = mlp(192, 6, 12).double().eval()
        with torch.no_grad():
            module[1].bias.fill_(factor)
        found = monitor.evaluate(module)
    table = monitor.memory["layers"]["table"]
    assert table.shape == (3, 2, 4)
    last = [found.scalars[f"layers/normalized_std/{n:02}"] for n in (0, 1)]
    torch.testing.assert_close(table[2, :, 1], torch.tensor(last))
    spreads = table[:, 0, 1]
    assert spreads[0] > spreads[1] > spreads[2]  # a common mean grows
    monitor.memory["layers"]["table"] = table[:1].repeat(128, 1, 1)
    monitor.evaluate(module)
    kept = monitor.memory["layers"]["table"]
    assert kept.shape == (65, 2, 4)
    torch.testing.assert_close(kept[-1, :, 1], torch.tensor(last))
    monitor.evaluate(mlp(192, 6, 9).double().eval()[:3])  # of one layer: none are told
    assert monitor.memory["layers"]["table"].shape == (65, 2, 4)


def test_the_figure_has_a_panel_for_each_measure_there_is() -> None:
    figures = INSIGHTS["layers"].figures(report().look)
    assert list(figures) == ["layers/looks"]
    panels = [axes.get_title() for axes in figures["layers/looks"].axes if axes.get_title()]
    assert panels == [
        "effective rank / isotropic",
        "spread",
        "not Gaussian (effect)",
        "neighbours kept",
        "polarity (right: upright)",
    ]
    history = torch.full((2, 3, 4), torch.nan)
    history[..., 0] = 0.5
    drawn = plot_layers(LayerSet({"a": 1, "b": 1, "c": 1}, ({}, {}, {}), history))
    assert [axes.get_title() for axes in drawn.axes if axes.get_title()] == [panels[0]]


def test_an_encoder_is_left_as_it_was_and_one_without_blocks_is_told_of() -> None:
    module = timm.create_model("test_vit", num_classes=0, img_size=SIDE, patch_size=2).train()
    before, state = interpreter_settings(), {k: v.clone() for k, v in module.state_dict().items()}
    found = look(module, LayerWise(scored=2, most=2), DATA[:16])
    assert found.failed == {}
    assert sum(tag.startswith("layers/polarity/") for tag in found.scalars) == 2
    assert interpreter_settings() == before
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert all(part.training for part in module.modules())
    assert not any(part._forward_hooks for part in module.modules())
    with pytest.warns(UserWarning, match="goes without 'layers': LayerError"):
        found = look(nn.Sequential(nn.Flatten(), nn.Linear(192, 6)))
    assert not any(tag.startswith("layers/") for tag in found.scalars)


def test_inputs_that_are_no_images_have_no_polarity() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(20, 8), nn.Tanh(), nn.Linear(8, 5))
    found = look(module, data=torch.randn(30, 20))
    tags = {tag.split("/")[1] for tag in found.scalars if tag.startswith("layers/")}
    assert tags == {"effective_rank_relative", "normalized_std", "gaussianity_effect", "neighbors"}
