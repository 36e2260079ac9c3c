"""VICReg against the paper's equations, written with NumPy."""

import numpy as np
import pytest
import torch
from helpers import off_the_start

from jepa_monitor.recipes.vicreg import VicReg, vicreg_loss, vicreg_terms
from jepa_monitor.recipes.views import Views

TINY = {
    "image_size": 16,
    "patch_size": 4,
    "width": 8,
    "depth": 1,
    "expander_hidden": 12,
    "expander_width": 5,
}


def pair(count=30, width=5):
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(count, width, generator=generator, dtype=torch.float64)
    other = torch.randn(count, width, generator=generator, dtype=torch.float64)
    scale = torch.tensor([0.3, 2.0, 0.5, 0.9, 0.0], dtype=torch.float64)
    return first * scale, (0.8 * first + 0.4 * other) * scale


def reference(first, second):
    invariance = np.mean((first - second) ** 2)
    variance, covariance = 0.0, 0.0
    for z in (first, second):
        matrix = np.cov(z.T)
        variance += np.maximum(0, 1 - np.sqrt(np.diag(matrix) + 1e-4)).mean() / 2
        covariance += (matrix**2)[~np.eye(z.shape[1], dtype=bool)].sum() / z.shape[1]
    return {"invariance": invariance, "variance": variance, "covariance": covariance}


def views(large=2, small=0):
    generator = torch.Generator().manual_seed(1)
    crops = [torch.randn(6, 1, 16, 16, generator=generator) for _ in range(large)]
    return Views(crops, [crop[..., :8, :8] for crop in crops[:small]])


def test_terms_are_those_of_the_paper() -> None:
    first, second = pair()
    found, expected = vicreg_terms(first, second), reference(first.numpy(), second.numpy())
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-9), name
        assert value > 0.01


def test_loss_has_the_weights_of_the_paper() -> None:
    first, second = pair()
    terms = reference(first.numpy(), second.numpy())
    expected = 25 * terms["invariance"] + 25 * terms["variance"] + terms["covariance"]
    assert float(vicreg_loss(first, second)) == pytest.approx(expected, rel=1e-9)


def test_each_aim_is_met_by_what_meets_it() -> None:
    first, _ = pair(width=5)
    centred = first - first.mean(0)
    white = torch.linalg.svd(centred[:, :4], full_matrices=False)[0] * (29**0.5)
    found = vicreg_terms(white, white)
    assert float(found["invariance"]) == 0
    assert float(found["variance"]) == pytest.approx(0, abs=1e-12)
    assert float(found["covariance"]) == pytest.approx(0, abs=1e-12)


def test_model_weights_the_terms_of_its_two_views() -> None:
    torch.manual_seed(0)
    model = VicReg(**TINY, invariance_weight=2.0, variance_weight=3.0, covariance_weight=5.0)
    off_the_start(model)
    found = model.loss(views())
    z = model.network(torch.cat(views().global_crops)).detach().double().numpy()
    terms = reference(z[:6], z[6:])
    expected = 2 * terms["invariance"] + 3 * terms["variance"] + 5 * terms["covariance"]
    assert float(found["loss"]) == pytest.approx(expected, rel=1e-4)
    found["loss"].backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(("large", "small"), [(1, 0), (3, 0), (2, 1)])
def test_other_numbers_of_views_are_refused(large, small) -> None:
    message = rf"two global views .*got {large} global and {small} local"
    with pytest.raises(ValueError, match=message):
        VicReg(**TINY).loss(views(large, small))


def test_it_embeds_with_the_encoder_alone() -> None:
    model, images = VicReg(**TINY).eval(), torch.randn(2, 1, 16, 16)
    assert torch.equal(model(images), model.network.encoder(images))
    assert model(images).shape == (2, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 3}, "patch_size=3 does not divide image_size=16"),
        ({"warmup": -0.1}, r"warmup=-0\.1 must be in \[0, 1\)"),
    ],
)
def test_bad_arguments_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        VicReg(**{**TINY, **options})
