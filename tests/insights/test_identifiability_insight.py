"""Agreement with another encoder, from a look to the sentence."""

from __future__ import annotations

import pytest
import torch
from helpers import images, mlp
from torch import nn

from jepa_monitor import DensityMonitor
from jepa_monitor.functional import map_agreement, mean_correlation, unbiased_cka
from jepa_monitor.insights.identifiability import Identifiability

PREFIX = "identifiability/"


def look(encoder: nn.Module, other: object, count: int = 80) -> dict[str, float]:
    monitor = DensityMonitor(images(count), insights=["identifiability"], compare_with=other)
    scalars = monitor.evaluate(encoder).scalars
    return {tag: value for tag, value in scalars.items() if tag.startswith(PREFIX)}


def test_numbers_are_those_of_the_functions() -> None:
    torch.manual_seed(0)
    first, second = mlp(192, 6).double(), mlp(192, 4).double()
    found = look(first, second)
    z, y = (module(images(80).double()).detach() for module in (first, second))
    draw = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    nulls = []
    for kind in ("permutation", "rotation", "linear", "smooth"):
        for way, pair in (("to", (z, y)), ("from", (y, z))):
            expected = map_agreement(*pair, kind)
            assert found.pop(f"{PREFIX}{way}/{kind}") == pytest.approx(expected.value.item())
            assert found.pop(f"{PREFIX}{way}_error/{kind}") == pytest.approx(expected.error.item())
        nulls += [map_agreement(*pair, kind).value.item() for pair in ((z, y[draw]), (y[draw], z))]
    matched = mean_correlation(z, y)
    assert found == {
        f"{PREFIX}null": pytest.approx(max(nulls), abs=1e-6),
        f"{PREFIX}mcc": pytest.approx(matched.value.item()),
        f"{PREFIX}mcc_error": pytest.approx(matched.error.item()),
        f"{PREFIX}cka": pytest.approx(unbiased_cka(z, y).item()),
    }


def test_a_rotation_is_called_one() -> None:
    torch.manual_seed(0)
    encoder = mlp(192, 6)
    turned = nn.Sequential(encoder, nn.Linear(6, 6, bias=False))
    turned[1].weight.data = torch.linalg.qr(torch.randn(6, 6)).Q
    found = look(encoder, turned)
    assert found["identifiability/to/rotation"] == pytest.approx(1, abs=1e-4)
    assert (
        Identifiability().says(found).startswith("Up to a rotation the embeddings tell 100% ± 0%")
    )
    swapped = look(encoder, lambda batch: -encoder(batch).flip(1))
    assert "Up to the order and signs of their coordinates" in Identifiability().says(swapped)
    assert swapped["identifiability/mcc"] == pytest.approx(1)


def test_nothing_in_common_is_said() -> None:
    draw = torch.Generator().manual_seed(5)
    noise = torch.randn(80, 6, generator=draw)
    torch.manual_seed(0)
    known = images(80)

    class Unrelated(nn.Module):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            rows = [int((known - image).flatten(1).abs().sum(1).argmin()) for image in batch]
            return noise[rows]

    sentence = Identifiability().says(look(mlp(192, 6), Unrelated()))
    assert sentence.startswith("The embeddings tell next to nothing of those of `compare_with`")


def test_nothing_is_said_where_nothing_can_be() -> None:
    encoder = mlp(192, 6)
    assert look(encoder, mlp(192, 4), count=40) == {}
    assert look(encoder, lambda batch: torch.ones(len(batch), 3)) == {}
    assert look(encoder, None) == {}
    assert Identifiability().says({}) == ""
