"""Attention in a look: every tag by NumPy, planted sinks, and when nothing is said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers import interpreter_settings, mlp, off_the_start
from scipy import stats
from scipy.special import softmax
from torch import Tensor, nn

from jepa_monitor import DensityMonitor, ScoreOptions
from jepa_monitor.insights import INSIGHTS
from jepa_monitor.insights.table import tag_pattern

CHEAP: dict[str, Any] = {
    "max_probe_samples": 1,
    "polarity_samples": 0,
    "options": ScoreOptions("sketch", rows=1),
}
DATA = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def look(encoder: Any, data: Tensor = DATA) -> Any:
    return DensityMonitor(data, insights=["attention"], **CHEAP).evaluate(encoder)


def ours(encoder: Any, data: Tensor = DATA) -> dict[str, float]:
    scalars = look(encoder, data).scalars
    return {tag: value for tag, value in scalars.items() if tag.startswith("attention/")}


class Weighed(nn.Module):
    """An attention of given weights, (heads, N, N), whatever the tokens."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)

    def attention_weights(self, tokens: Tensor) -> Tensor:
        return self.weights.expand(len(tokens), -1, -1, -1)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.weights.mean(0) @ tokens


def planted(*weights: Tensor) -> nn.Module:
    """Images of 8 × 8 pixels as 12 tokens of 16 numbers, and layers with these weights."""
    layers = [Weighed(each.double()) for each in weights]
    return nn.Sequential(nn.Flatten(), nn.Unflatten(1, (12, 16)), *layers)


def test_they_are_those_of_the_softmax_of_a_transformer() -> None:
    torch.manual_seed(0)
    vit = timm.create_model("test_vit", num_classes=0, img_size=8, patch_size=2).double().eval()
    off_the_start(vit)
    with torch.no_grad():
        for block in vit.blocks:
            block.attn.qkv.weight.mul_(2)
    found = ours(vit)
    with torch.no_grad():
        tokens = vit.norm_pre(vit._pos_embed(vit.patch_embed(DATA.double())))
        for layer, block in enumerate(vit.blocks):
            heads, count = block.attn.num_heads, tokens.shape[1]
            entropies, masses = [], []
            for image in block.norm1(tokens):
                x = block.attn.qkv(image).numpy().reshape(count, 3, heads, -1)
                for head in range(heads):
                    q, k = x[:, 0, head], x[:, 1, head]
                    weights = softmax(q @ k.T / np.sqrt(q.shape[1]), axis=1)
                    entropies.append(stats.entropy(weights, axis=1).mean() / np.log(count))
                    masses.append(weights.sum(0).max())
            assert found[f"attention/entropy/{layer:02}"] == pytest.approx(np.mean(entropies))
            assert found[f"attention/column_mass_max/{layer:02}"] == pytest.approx(np.mean(masses))
            assert found[f"attention/row_sum/{layer:02}"] == pytest.approx(1)
            assert 0.2 < np.mean(entropies) < 0.99
            tokens = block(tokens)
    assert len(found) == 3 * len(vit.blocks)


def test_planted_weights_are_told_by_layer() -> None:
    even = torch.full((2, 12, 12), 1 / 12, dtype=torch.float64)
    sink = torch.zeros(2, 12, 12)
    sink[:, :, 3] = 2.0  # rows that sum to 2
    signed = torch.zeros(1, 12, 12)
    signed[:, :, 0], signed[:, :, 1] = 3.0, -1.0
    found = ours(planted(even, sink, signed, torch.eye(12)[None]))
    three_of_four = stats.entropy([0.75, 0.25]) / np.log(12)
    expected = {
        "entropy": (1, 0, three_of_four, 0),
        "column_mass_max": (1, 12, 9, 1),
        "row_sum": (1, 2, 2, 1),
    }
    for name, values in expected.items():
        for layer, value in enumerate(values):
            tag = f"attention/{name}/{layer:02}"
            assert found[tag] == pytest.approx(value, abs=1e-12), tag
    assert len(found) == 12


def test_rows_explain_every_tag_and_the_verdict_names_the_largest_sink() -> None:
    sink = torch.full((1, 12, 12), 0.5 / 11)
    sink[:, :, 3] = 0.5
    report = look(planted(torch.full((1, 12, 12), 1 / 12), sink))
    told = {tag for tag in report.scalars if tag.startswith("attention/")}
    rows = [tag for row in INSIGHTS["attention"].rows for tag in row.tags]
    assert all(any(tag_pattern(tag).fullmatch(t) for tag in rows) for t in told)
    assert all(any(tag_pattern(tag).fullmatch(t) for t in told) for tag in rows)
    said = (
        "Of 2 layers of attention, number 1 has the largest sink: one token gets the weight of 6.0."
    )
    assert said in report.verdict.sentences


def test_an_encoder_is_left_as_it_was() -> None:
    encoder = timm.create_model("test_vit", num_classes=0, img_size=8, patch_size=4).train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    torch.manual_seed(5)
    settings, state = interpreter_settings(), torch.get_rng_state()
    assert ours(encoder)
    assert torch.equal(torch.get_rng_state(), state)
    assert interpreter_settings() == settings
    assert encoder.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert not any(module._forward_pre_hooks for module in encoder.modules())


def test_rotary_attention_and_none_at_all_are_told_of_and_the_rest_goes_on() -> None:
    """An attention that is given more than tokens has weights that qkv alone does not tell."""
    vit = timm.create_model("test_vit", num_classes=0, img_size=8, patch_size=4)

    class Turned(type(vit.blocks[0].attn)):  # type: ignore[misc]
        pass

    for block in vit.blocks:
        block.attn.__class__ = Turned
    for encoder in (vit, mlp(192, 6, 8)):
        with pytest.warns(UserWarning, match="attention") as told:
            report = look(encoder)
        assert any("no attention of which weights can be told" in str(w.message) for w in told)
        assert report.scalars["monitor/failed_insights"] == 1
        assert not any(tag.startswith("attention/") for tag in report.scalars)


def test_weights_that_are_not_finite_are_left_out() -> None:
    assert ours(planted(torch.full((1, 12, 12), torch.nan))) == {}
