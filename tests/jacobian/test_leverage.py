"""Leverage maps are diagonals of a projection: compared with float64 SVDs, traces and differences."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from helpers import float64_score, interpreter_settings, mlp
from torch import Tensor, nn

from jepa_monitor import jepa_score, leverage_map
from jepa_monitor.functional.gaussian import Gaussian


def jacobian(encoder: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """In float64, (K, D), by PyTorch's own function."""
    found = torch.autograd.functional.jacobian(lambda x: encoder(x[None])[0], image.double())
    return found.flatten(1)


def expected_map(matrix: Tensor) -> Tensor:
    """Squared right singular vectors of all values that are not zero, (D,)."""
    _, values, vectors = torch.linalg.svd(matrix.double(), full_matrices=False)
    return vectors[values > 1e-10 * values[0]].square().sum(0)


def vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=0, img_size=32, patch_size=8).eval()


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(5, 12), (12, 12), (20, 12)])
def test_a_linear_encoder_has_the_projection_on_its_row_space(
    shape: tuple[int, int], precision: str
) -> None:
    torch.manual_seed(0)
    encoder = nn.Linear(shape[1], shape[0])
    found = leverage_map(encoder, torch.randn(3, shape[1]), precision=precision)
    expected = expected_map(encoder.weight.detach())
    torch.testing.assert_close(found.leverage, expected.expand(3, -1), rtol=0, atol=1e-5)
    assert found.leverage.dtype == torch.float64
    assert found.dropped.tolist() == [0, 0, 0]
    total = torch.full((3,), float(min(shape)), dtype=torch.float64)
    torch.testing.assert_close(found.leverage.sum(1), total, rtol=0, atol=1e-12)
    if shape[0] >= shape[1]:  # nothing that the embedding would not tell
        torch.testing.assert_close(found.leverage, torch.ones_like(found.leverage))


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_maps_of_a_network_are_diagonals_of_a_projection(precision: str) -> None:
    encoder, images = vit(), torch.randn(3, 3, 32, 32)
    found = leverage_map(encoder, images, precision=precision)
    double = copy.deepcopy(encoder).double()
    each = torch.stack([expected_map(jacobian(double, image)) for image in images])
    expected = each.unflatten(1, images.shape[1:]).sum(1)
    tolerance = 1e-2 if precision == "float32" else 1e-9
    torch.testing.assert_close(found.leverage, expected, rtol=tolerance, atol=tolerance * 0.01)
    assert found.leverage.shape == (3, 32, 32)
    assert found.dropped.tolist() == [1, 1, 1]  # embeddings of a last LayerNorm have no mean
    total = torch.full((3,), 63.0, dtype=torch.float64)
    torch.testing.assert_close(found.leverage.sum((1, 2)), total, rtol=0, atol=1e-10)
    assert (found.leverage >= 0).all()
    assert (found.leverage <= 3).all()


def test_it_is_the_derivative_of_the_score_by_the_gain_of_a_pixel() -> None:
    encoder = vit().double()
    image = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    found = leverage_map(encoder, image).leverage[0]
    step = 1e-3
    pixels = [divmod(int(found.argmax()), 32), (0, 0), (13, 21)]
    for row, column in pixels:
        scores = []
        for gain in (1 + step, 1 / (1 + step)):
            gains = torch.ones(32, 32, dtype=torch.float64)
            gains[row, column] = gain
            # The encoder sees the same image; the Jacobian's columns at that pixel grow by the gain.
            scores.append(float64_score(_Amplified(encoder, gains), image / gains).item())
        slope = (scores[0] - scores[1]) / (2 * torch.tensor(1 + step).log().item())
        assert found[row, column].item() == pytest.approx(slope, rel=1e-4), (row, column)


class _Amplified(nn.Module):
    def __init__(self, encoder: nn.Module, gains: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("gains", gains)

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder(images * self.gains)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_directions_in_which_nothing_moves_are_dropped_and_counted(precision: str) -> None:
    torch.manual_seed(0)
    encoder, images = mlp(48, 16, width=5), torch.rand(4, 3, 4, 4)
    found = leverage_map(encoder, images, precision=precision)
    assert found.dropped.tolist() == [11] * 4
    double = copy.deepcopy(encoder).double()
    each = torch.stack([expected_map(jacobian(double, image)) for image in images])
    expected = each.unflatten(1, (3, 4, 4)).sum(1)
    torch.testing.assert_close(found.leverage, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        found.leverage.sum((1, 2)), torch.full((4,), 5.0).double(), rtol=0, atol=1e-12
    )
    nothing = leverage_map(lambda x: 0 * x[:, :3], torch.rand(2, 6))
    assert nothing.leverage.eq(0).all()
    assert nothing.dropped.tolist() == [3, 3]


def test_what_the_score_clips_has_no_part_in_the_map() -> None:
    weight = torch.diag(torch.tensor([4.0, 1.0, 0.01]))
    found = leverage_map(lambda x: x @ weight, torch.zeros(1, 3), eps=0.1)
    torch.testing.assert_close(found.leverage, torch.tensor([[1.0, 1.0, 0.0]]).double())
    assert found.dropped.tolist() == [1]
    assert leverage_map(lambda x: x @ weight, torch.zeros(1, 3)).dropped.tolist() == [0]


@pytest.mark.parametrize("small", [1e-3, 1e-5, 2e-6])
def test_singular_values_far_apart_leave_the_sum_exact(small: float) -> None:
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(24, 24, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(60, 24, generator=generator, dtype=torch.float64)).Q
    values = torch.logspace(0, torch.tensor(small).log10().item(), 24, dtype=torch.float64)
    encoder = nn.Linear(60, 24, bias=False)
    encoder.weight.data = (left * values @ right.T).float()
    found = leverage_map(encoder, torch.zeros(1, 60), eps=1e-9)
    assert found.leverage.sum().item() == pytest.approx(24 - found.dropped.item(), abs=1e-10)
    assert found.dropped.item() == 0
    expected = expected_map(encoder.weight.detach())  # of the very numbers in float32
    torch.testing.assert_close(found.leverage[0], expected, rtol=0, atol=1e-3 * 1e-3 / small)


def test_a_sketch_has_the_map_of_its_own_rows() -> None:
    torch.manual_seed(0)
    encoder, images = vit(), torch.randn(2, 3, 32, 32)
    reference = Gaussian.fit(
        torch.randn(200, 64, dtype=torch.float64) @ torch.randn(64, 64).double()
    )
    found = leverage_map(encoder, images, method="sketch", rows=16, reference=reference)
    total = torch.full((2,), 16.0, dtype=torch.float64)
    torch.testing.assert_close(found.leverage.sum((1, 2)), total, rtol=0, atol=1e-10)
    # The sketch written out: orthonormal rows of the seed, applied to the whitened embedding.
    normal = torch.randn(64, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis = torch.linalg.qr(normal).Q.T @ reference.whitening
    double = copy.deepcopy(encoder).double()
    expected = expected_map(basis @ jacobian(double, images[0])).unflatten(0, (3, 32, 32)).sum(0)
    torch.testing.assert_close(found.leverage[0], expected, rtol=1e-3, atol=1e-5)
    with pytest.warns(UserWarning, match="not whitened") as warned:
        leverage_map(encoder, images, method="sketch")
    assert warned[0].filename == __file__


@pytest.mark.parametrize("method", ["exact", "sketch"])
def test_little_memory_gives_the_same_maps(method: str) -> None:
    encoder, images = vit(), torch.randn(3, 3, 32, 32)
    law = Gaussian.fit(torch.randn(200, 64, dtype=torch.float64))
    how = {"method": method, "reference": law}
    expected = leverage_map(encoder, images, **how).leverage
    image = images[0].nbytes
    tight = leverage_map(encoder, images, max_memory=1 << 20, **how)  # a few rows at a time
    torch.testing.assert_close(tight.leverage, expected, rtol=0.02, atol=1e-4)
    torch.testing.assert_close(tight.leverage.sum((1, 2)), expected.sum((1, 2)))
    one = leverage_map(encoder, images, max_memory=200 * image, **how)  # an image at a time
    torch.testing.assert_close(one.leverage, expected, rtol=0.02, atol=1e-4)


def test_any_shape_of_inputs_keeps_it_and_images_lose_their_channels() -> None:
    for shape in [(7,), (4, 5), (2, 3, 4), (2, 3, 2, 2)]:
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), 3))
        found = leverage_map(encoder, torch.randn(2, *shape)).leverage
        each = expected_map(encoder[1].weight.detach()).reshape(shape)
        expected = each.sum(0) if len(shape) == 3 else each
        assert found.shape == (2, *(shape[1:] if len(shape) == 3 else shape))
        torch.testing.assert_close(found[1], expected, rtol=0, atol=1e-5)


def test_an_image_without_a_jacobian_has_no_map_and_spoils_no_other() -> None:
    images = torch.tensor([[1.0, 2.0], [0.0, 3.0], [4.0, 1.0]])
    found = leverage_map(lambda x: x.sqrt(), images)
    assert found.leverage[1].isnan().all()
    assert found.dropped.tolist() == [0, 0, 0]
    torch.testing.assert_close(found.leverage[[0, 2]], torch.ones(2, 2).double())


def test_the_encoder_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 6)
    ).train()
    images = torch.rand(4, 3, 8, 8)
    before, settings = copy.deepcopy(encoder.state_dict()), interpreter_settings()
    with torch.inference_mode():
        found = leverage_map(encoder, images)
    assert not found.leverage.is_inference()
    assert interpreter_settings() == settings
    assert encoder.training
    assert all(p.grad is None and p.requires_grad for p in encoder.parameters())
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not images.requires_grad


def test_the_score_rises_by_the_map_where_rows_are_amplified() -> None:
    """A gain everywhere is worth one nat a direction: ΣL is the derivative of the score by it."""
    encoder, images = mlp(48, 8), torch.rand(2, 3, 4, 4)
    gain = 1.1
    risen = jepa_score(lambda x: encoder(gain * x), images / gain) - jepa_score(encoder, images)
    total = leverage_map(encoder, images).leverage.sum((1, 2))
    torch.testing.assert_close(risen, total * torch.tensor(gain).double().log(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: leverage_map("vit", torch.rand(2, 3)), TypeError, "`encoder` must be a module"),
        (lambda: leverage_map(mlp(), [1.0]), TypeError, "`images` must be a torch.Tensor, got list"),
        (lambda: leverage_map(mlp(), torch.rand(0, 48)), ValueError, "`images` must have shape"),
        (lambda: leverage_map(mlp(), torch.full((1, 48), torch.nan)), ValueError, "must be finite"),
        (lambda: leverage_map(mlp(), torch.zeros(2, 48).long()), TypeError, "floating point"),
        (lambda: leverage_map(mlp(), torch.rand(2, 48), method="fast"), ValueError, "`method`"),
        (lambda: leverage_map(mlp(), torch.rand(2, 48), pool="best"), ValueError, "`pool`"),
        (lambda: leverage_map(mlp(), torch.rand(2, 48), eps=0), ValueError, "`eps` must be finite"),
        (lambda: leverage_map(lambda x: x.detach(), torch.rand(2, 4)), ValueError, "no gradient"),
        (lambda: leverage_map(lambda x: x - x.mean(0), torch.rand(2, 4)), ValueError, "mixes"),
    ],
)  # fmt: skip
def test_wrong_uses(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
