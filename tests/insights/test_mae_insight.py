"""Influence in a look: lengths and shares of linear maps by NumPy, ViTs by finite differences, and when nothing is said."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers import interpreter_settings, mlp, off_the_start
from numpy.typing import NDArray
from torch import Tensor, nn

from jepa_monitor import DensityMonitor, ScoreOptions
from jepa_monitor.functional.linear_mae import cell_distances, influence, linear_mae, patch_grid
from jepa_monitor.insights import INSIGHTS
from jepa_monitor.insights.mae import Influence
from jepa_monitor.insights.table import tag_pattern

Array = NDArray[np.float64]
CHEAP: dict[str, Any] = {
    "max_probe_samples": 1,
    "polarity_samples": 0,
    "options": ScoreOptions("sketch", rows=1),
}


def pictures(count: int, *shape: int) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(count))


def look(encoder: Any, data: Tensor, insight: Influence | str = "mae") -> Any:
    return DensityMonitor(data, insights=[insight], **CHEAP).evaluate(encoder)


def ours(encoder: Any, data: Tensor, insight: Influence | str = "mae") -> dict[str, float]:
    found = look(encoder, data, insight).scalars
    return {tag: value for tag, value in found.items() if tag.startswith("mae/")}


class Linear(nn.Module):
    """Tokens that are linear in the pixels: from (D,) to (P, d)."""

    def __init__(self, weights: Tensor, tokens: int) -> None:
        super().__init__()
        self.weights, self.tokens = nn.Parameter(weights.double()), tokens

    def forward(self, images: Tensor) -> Tensor:
        return (images.flatten(1) @ self.weights).unflatten(1, (self.tokens, -1))


class Filling(Linear):
    """The same, and hidden pixels that are linear in those that are seen."""

    def __init__(self, weights: Tensor, tokens: int, filling: Tensor, patches: Tensor) -> None:
        super().__init__(weights, tokens)
        self.filling, self.patches = nn.Parameter(filling.double()), patches

    def reconstruct(self, images: Tensor, hidden: Tensor) -> Tensor:
        gone = hidden[:, self.patches]
        flat = images.flatten(1)
        made = (flat * ~gone) @ self.filling
        return torch.where(gone, made, flat).view_as(images)


def pixel_distances(height: int, width: int) -> Array:
    places = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1)
    places = places.reshape(-1, 2)
    return np.linalg.norm(places[:, None] - places[None], axis=-1)


def test_distances_to_cells_are_means_over_their_pixels() -> None:
    corners = torch.tensor([[0, 0], [2, 3], [4, 4], [1, 0]])
    found = cell_distances((6, 7), (2, 3), corners)
    pixels = pixel_distances(6, 7).reshape(6, 7, 6, 7)
    for (top, left), apart in zip(corners.tolist(), found, strict=True):
        expected = pixels[:, :, top : top + 2, left : left + 3].mean((2, 3))
        np.testing.assert_allclose(apart, expected)
    with pytest.raises(
        ValueError, match=r"`corners` must be .* cells of 2x3 pixels in an image of 6x7"
    ):
        cell_distances((6, 7), (2, 3), torch.tensor([[5, 0]]))


def test_of_a_linear_map_they_are_its_weights() -> None:
    """4 × 3 patches of 2 × 2 pixels of three channels; a token is one number, so a direction is a sign."""
    weights = torch.randn(3 * 8 * 6, 12, generator=torch.Generator().manual_seed(0))
    found = ours(Linear(weights, 12), pictures(5, 3, 8, 6))
    pixels = pixel_distances(8, 6).reshape(8, 6, 8, 6)
    size = weights.double().abs().numpy().reshape(3, 8, 6, 12).sum(0)
    far = own = 0.0
    for patch, (row, column) in enumerate(itertools.product(range(4), range(3))):
        rows, columns = slice(2 * row, 2 * row + 2), slice(2 * column, 2 * column + 2)
        far += (size[..., patch] * pixels[:, :, rows, columns].mean((2, 3))).sum()
        own += size[rows, columns, patch].sum()
    for end in ("", "_low", "_high"):  # all images have one derivative
        assert found[f"mae/influence_length{end}"] == pytest.approx(far / size.sum())
        assert found[f"mae/in_patch_share{end}"] == pytest.approx(own / size.sum())
    assert found["mae/influence_even"] == pytest.approx(pixels.mean())
    assert found["mae/in_patch_even"] == 1 / 12
    assert not any("reconstruction" in tag for tag in found)


@pytest.mark.parametrize(("size", "mask"), [(2, 0.25), (4, 0.9)])
def test_of_a_linear_autoencoder_it_is_the_length_of_the_closed_form(
    size: int, mask: float
) -> None:
    """A token for each pixel: the distance of :func:`influence`, which has tests of its own."""
    x = torch.randn(600, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = x.cumsum(1).cumsum(2).flatten(1)
    x = x - x.mean(0)
    grid = patch_grid(8, size)
    solved = linear_mae(x.T @ x, grid, mask, rank=8)
    weights = solved.encoder @ solved.decoder
    found = ours(Linear(weights, 64), pictures(4, 1, 8, 8))
    pixels = influence(weights, 8, torch.arange(64))
    assert found["mae/influence_length"] == pytest.approx(float(pixels.distance))
    assert found["mae/in_patch_share"] == pytest.approx(float(pixels.in_patch))
    assert found["mae/influence_even"] == pytest.approx(float(pixels.even))


def test_random_directions_measure_the_length_of_the_derivative() -> None:
    weights = torch.randn(64, 4 * 3, generator=torch.Generator().manual_seed(0)).double()
    found = ours(Linear(weights, 4), pictures(300, 1, 8, 8), Influence(300))
    length = weights.view(64, 4, 3).norm(dim=2).numpy()
    apart = cell_distances((8, 8), (4, 4), torch.tensor([[0, 0], [0, 4], [4, 0], [4, 4]]))
    far = (length * apart.flatten(1).T.numpy()).sum() / length.sum()
    own = (length * (patch_grid(8, 4)[:, None] == torch.arange(4)).numpy()).sum() / length.sum()
    for name, expected in (("influence_length", far), ("in_patch_share", own)):
        value, low, high = (found[f"mae/{name}{end}"] for end in ("", "_low", "_high"))
        error = (high - low) / 2 / 1.96
        assert 0 < error < 0.01 * value
        assert value == pytest.approx(expected, abs=3.5 * error)


def test_reconstructed_pixels_depend_on_seen_ones_as_over_all_masks() -> None:
    """Three of four patches are hidden: four masks."""
    generator = torch.Generator().manual_seed(2)
    grid = patch_grid(4, 2, channels=2)
    filling = torch.randn(32, 32, generator=generator)
    encoder = Filling(torch.randn(32, 4, generator=generator), 4, filling, grid)
    found = ours(encoder, pictures(400, 2, 4, 4), Influence(400, mask=0.7))
    size, apart = filling.double().abs().numpy(), np.tile(pixel_distances(4, 4), (2, 2))
    total = far = even = 0.0
    for seen in range(4):
        inputs, outputs = (grid == seen).numpy(), (grid != seen).numpy()
        part = size[inputs][:, outputs]
        total, far = total + part.sum(), far + (part * apart[inputs][:, outputs]).sum()
        even += apart[inputs][:, outputs].mean() / 4
    value, low, high = (found[f"mae/reconstruction_length{end}"] for end in ("", "_low", "_high"))
    error = (high - low) / 2 / 1.96
    assert 0 < error < 0.02
    assert value == pytest.approx(far / total, abs=3.5 * error)
    assert found["mae/reconstruction_even"] == pytest.approx(even, rel=0.01)


def test_of_a_transformer_they_are_finite_differences() -> None:
    torch.manual_seed(0)
    vit = timm.create_model("test_vit", num_classes=0, img_size=8, patch_size=4).double().eval()
    off_the_start(vit)
    data = pictures(3, 3, 8, 8).double()

    def tokens(images: Tensor) -> Tensor:
        with torch.no_grad():
            return vit.forward_features(images)[:, 1:]  # without its class token

    step = 1e-5
    moves = step * torch.eye(192, dtype=torch.double).view(192, 1, 3, 8, 8)
    derivatives = [(tokens(data + move) - tokens(data - move)) / (2 * step) for move in moves]
    length = torch.stack(derivatives).norm(dim=3).view(3, 64, 3, 4).sum(0).numpy()
    apart = cell_distances((8, 8), (4, 4), torch.tensor([[0, 0], [0, 4], [4, 0], [4, 4]]))
    weighted = length * apart.flatten(1).T.numpy()[:, None]  # pixel, image, token
    found = ours(vit, data.repeat(60, 1, 1, 1), Influence(180))
    assert found["mae/influence_length"] == pytest.approx(weighted.sum() / length.sum(), rel=0.02)


def test_rows_explain_every_tag_and_the_verdict_speaks_of_them() -> None:
    grid = patch_grid(4, 2)
    encoder = Filling(torch.ones(16, 4), 4, torch.ones(16, 16), grid)
    report = look(encoder, pictures(6, 1, 4, 4))
    told = {tag for tag in report.scalars if tag.startswith("mae/")}
    rows = [tag for row in INSIGHTS["mae"].rows for tag in row.tags]
    assert {tag for tag in rows if any(tag_pattern(tag).fullmatch(t) for t in told)} == set(rows)
    assert all(any(tag_pattern(tag).fullmatch(t) for tag in rows) for t in told)
    even = report.scalars["mae/influence_even"]
    # All weights are equal: as far off as can be, and a quarter in the own patch.
    assert report.scalars["mae/influence_length"] == pytest.approx(even)
    assert report.scalars["mae/in_patch_share"] == pytest.approx(1 / 4)
    assert (
        f"Tokens depend on pixels {even:.1f} px off on average, where {even:.1f} px would be all of the "
        "image alike; 25% of that lies in their own patch." in report.verdict.sentences
    )


def test_an_encoder_is_left_as_it_was() -> None:
    encoder = timm.create_model("test_vit", num_classes=0, img_size=8, patch_size=4).train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    torch.manual_seed(5)
    settings, state = interpreter_settings(), torch.get_rng_state()
    assert ours(encoder, pictures(4, 3, 8, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert interpreter_settings() == settings
    assert encoder.training
    assert all(p.grad is None for p in encoder.parameters())
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert not any(module._forward_hooks for module in encoder.modules())


def test_a_convolution_sees_its_neighbourhood_alone() -> None:
    """Of 3 × 3 pixels around each cell of one pixel, all weights equal."""
    made = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular").double()
    with torch.no_grad():
        made.weight.copy_(torch.ones(1, 1, 1, 1))
    network = nn.Sequential(made, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = ours(network, pictures(4, 1, 7, 7), Influence(4))
    assert found["mae/in_patch_share"] == pytest.approx(1 / 9, rel=1e-6)
    wrapped = np.abs(np.subtract.outer(np.arange(7), np.arange(7)))
    near = np.minimum(wrapped, 7 - wrapped) <= 1
    within = np.einsum("ac,bd->abcd", near, near).reshape(49, 49)
    assert found["mae/influence_length"] == pytest.approx(pixel_distances(7, 7)[within].mean())


@pytest.mark.parametrize(
    ("encoder", "data", "words"),
    [
        (mlp(48, 5, 8), pictures(6, 3, 4, 4), "`encoder` gives no tokens"),
        (nn.Sequential(nn.Unflatten(1, (4, 4)), nn.LayerNorm(4)), pictures(6, 16), "images (B, C, H, W)"),
        (
            nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            pictures(6, 1, 8, 8),
            "no tokens on a grid that divides images of 8x8 pixels",
        ),
    ],
)  # fmt: skip
def test_what_has_no_patches_is_told_of_and_the_rest_goes_on(
    encoder: nn.Module, data: Tensor, words: str
) -> None:
    with pytest.warns(UserWarning, match="mae") as told:
        report = look(encoder, data)
    assert any(words in str(warning.message) for warning in told)
    assert report.scalars["monitor/failed_insights"] == 1
    assert "collapse/rankme" in report.scalars
    assert not any(tag.startswith("mae/") for tag in report.scalars)


def test_tokens_that_depend_on_nothing_have_no_length() -> None:
    found = ours(Linear(torch.zeros(16, 4), 4), pictures(6, 1, 4, 4))
    assert found == {}


def test_bad_arguments_and_reconstructions_are_named() -> None:
    with pytest.raises(ValueError, match=r"`mask` must be in \(0, 1\), got 1"):
        Influence(mask=1)

    class Wrong(Linear):
        def reconstruct(self, images: Tensor, hidden: Tensor) -> Tensor:
            return images[:, :, :2]

    with pytest.warns(
        UserWarning, match=r"`encoder.reconstruct` must return images \(\d, 1, 4, 4\)"
    ):
        look(Wrong(torch.ones(16, 4), 4), pictures(6, 1, 4, 4))


def test_the_figure_has_the_image_what_is_seen_and_what_is_filled_in() -> None:
    """A map that fills in nothing: what is hidden stays at the darkest of all images."""
    data = pictures(6, 1, 4, 4)
    encoder = Filling(torch.ones(16, 4), 4, torch.zeros(16, 16), patch_grid(4, 2))
    report = look(encoder, data, Influence(6, mask=0.5))
    figure = report.figures()["mae/filled_in"]
    panels = np.array([axes.images[0].get_array()[..., 0] for axes in figure.axes]).reshape(
        3, 6, 4, 4
    )
    low, high = data.min(), data.max()
    scaled = ((data - low) / (high - low))[:, 0].numpy()
    np.testing.assert_allclose(panels[0], scaled, atol=1e-6)
    hidden = panels[1] == 0.5
    blocks = hidden.reshape(6, 2, 2, 2, 2).transpose(0, 1, 3, 2, 4).reshape(6, 4, 4)
    assert np.array_equal(blocks.all(2), blocks.any(2))  # whole patches
    assert (blocks.all(2).sum(1) == 2).all()  # half of them
    np.testing.assert_allclose(panels[1][~hidden], scaled[~hidden], atol=1e-6)
    np.testing.assert_allclose(panels[2], np.where(hidden, 0.0, scaled), atol=1e-6)


def test_an_encoder_that_fills_in_nothing_has_no_figure() -> None:
    report = look(Linear(torch.ones(16, 4), 4), pictures(6, 1, 4, 4))
    assert "mae/filled_in" not in report.figures()


def test_a_method_of_the_same_name_that_takes_something_else_is_left_alone() -> None:
    class Other(Linear):
        def reconstruct(self, codes: Tensor) -> Tensor:
            raise AssertionError(codes)

    found = ours(Other(torch.ones(16, 4), 4), pictures(6, 1, 4, 4))
    assert "mae/influence_length" in found
    assert not any("reconstruction" in tag for tag in found)
