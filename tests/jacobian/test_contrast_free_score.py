"""What a change of contrast does to the score, of encoders whose law of it is known."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import images, mlp
from torch import Tensor, nn

from jepa_monitor import jepa_score
from jepa_monitor.functional import change_contrast, log_contrast
from jepa_monitor.jacobian.contrast import contrast_free_score

WIDTH = 10
HEAD = (nn.Flatten(), nn.Linear(192, 24), nn.GELU(), nn.Linear(24, WIDTH))


def seeded(*layers: nn.Module) -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    made = nn.Sequential(*layers).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(
                torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                / parameter[0].numel() ** 0.5
            )
    return made


NORMALISING = {
    # A group a channel: the mean of each channel goes, as that of `log_contrast` does.
    "GroupNorm": lambda: seeded(nn.GroupNorm(3, 3, eps=0, affine=False), *HEAD),
    "convolution, GroupNorm": lambda: seeded(
        nn.Conv2d(3, 3, 2, stride=2, bias=False),
        nn.GroupNorm(3, 3, eps=0, affine=False),
        nn.Flatten(), nn.Linear(48, 24), nn.GELU(), nn.Linear(24, WIDTH),
    ),
    "LayerNorm": lambda: seeded(
        nn.Flatten(2), nn.LayerNorm(64, eps=0, elementwise_affine=False), *HEAD
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NORMALISING)
@pytest.mark.parametrize("rows", [None, 6])
def test_a_stem_that_normalises_gives_a_slope_of_one_a_row(name: str, rows: int | None) -> None:
    encoder, data = NORMALISING[name](), images(5).double()
    how = {"precision": "float64"}
    if rows is not None:
        how |= {"method": "sketch", "rows": rows, "reference": images(60, 2).double()}
    found = contrast_free_score(encoder, data, **how)
    assert found.slope.mean == pytest.approx(rows or WIDTH, rel=1e-8)
    assert found.slope.error < 1e-7
    for factor in (0.1, 4.0):
        changed = change_contrast(data, factor)
        again = contrast_free_score(encoder, changed, **how)
        # J(cx) = J(x)/c
        expected = found.jepa_score - (rows or WIDTH) * math.log(factor)
        torch.testing.assert_close(again.jepa_score, expected)
        torch.testing.assert_close(again.score, found.score)
    assert found.jepa_score.std() > 0.1
    torch.testing.assert_close(
        found.score, found.jepa_score + found.slope.mean * log_contrast(data)
    )


@pytest.mark.parametrize("norm", [False, True])
def test_a_linear_encoder_has_no_slope_and_its_score_stays(norm: bool) -> None:
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(192, WIDTH)]
    if norm:
        layers = [nn.BatchNorm2d(3), *layers]
    encoder = nn.Sequential(*layers).double()
    with torch.no_grad():
        encoder(images(32).double())  # which moves the statistics of BatchNorm
    found = contrast_free_score(encoder, images(6).double(), precision="float64")
    assert abs(found.slope.mean) < 1e-9
    torch.testing.assert_close(found.score, found.jepa_score, rtol=0, atol=1e-9)
    assert found.jepa_score.std() < 1e-9


def test_the_slope_of_any_other_encoder_is_a_derivative() -> None:
    encoder, data = mlp(192, WIDTH).double(), images(3).double()
    found = contrast_free_score(encoder, data, precision="float64")
    step = 1e-4
    ends = [jepa_score(encoder, change_contrast(data, math.exp(s))) for s in (-step, step)]
    derivative = -(ends[1] - ends[0]) / (2 * step)
    torch.testing.assert_close(found.slope.each, derivative, rtol=0.1, atol=0.02)
    assert derivative.abs().min() > 0.05


def test_only_the_first_images_are_scored_twice() -> None:
    counted: list[int] = []

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(192, 4)

        def forward(self, batch: Tensor) -> Tensor:
            found: Tensor = self.net(batch)
            if found.requires_grad:
                found.register_hook(lambda gradient: counted.append(len(gradient)))
            return found

    encoder = Counting()
    jepa_score(encoder, images(20))
    once = sum(counted)
    counted.clear()
    contrast_free_score(encoder, images(20), slope_samples=3)
    assert once + 3 * 4 <= sum(counted) <= once + 3 * 4 + 2  # two of them tell whether images mix


def test_wrong_use_is_named() -> None:
    with pytest.raises(ValueError, match="`images` must have a contrast"):
        contrast_free_score(mlp(192, 4), torch.ones(3, 3, 8, 8))
    with pytest.raises(ValueError, match="`slope_samples` must be at least 1, got 0"):
        contrast_free_score(mlp(192, 4), images(3), slope_samples=0)
    with pytest.raises(ValueError, match="`images` must be finite"):
        contrast_free_score(mlp(192, 4), images(3) / 0)
