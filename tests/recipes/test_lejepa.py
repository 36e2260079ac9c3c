"""LeJEPA against the paper's equations, written with NumPy and SciPy."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from helpers import off_the_start
from scipy import integrate
from torch import nn

from jepa_monitor.functional import epps_pulley
from jepa_monitor.functional.gaussianity import slice_directions
from jepa_monitor.recipes import lejepa
from jepa_monitor.recipes.data import ImageDataModule
from jepa_monitor.recipes.lejepa import LeJepa, sigreg
from jepa_monitor.recipes.views import Views

TINY = {
    "image_size": 16,
    "patch_size": 4,
    "width": 8,
    "depth": 1,
    "projector_hidden": 12,
    "projector_width": 3,
    "slices": 7,
}


def embeddings(count=40, width=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 1.5 * torch.randn(count, width, generator=generator) + 0.2


def views(batch=6, large=2, small=2):
    generator = torch.Generator().manual_seed(1)

    def crops(count, size):
        return [torch.randn(batch, 1, size, size, generator=generator) for _ in range(count)]

    return Views(crops(large, 16), crops(small, 8))


def directions(width=3, count=7):
    generator = torch.Generator().manual_seed(2)
    return nn.functional.normalize(torch.randn(width, count, generator=generator), dim=0)


# -------------------------------------------------------------------------------------- SIGReg
def test_sigreg_is_the_integral_of_the_paper() -> None:
    z, slices = embeddings(), directions()
    expected = []
    for projection in (z.double() @ slices.double()).T.numpy():

        def integrand(t, x=projection):
            deviation = np.exp(1j * t * x).mean() - np.exp(-t * t / 2)
            return abs(deviation) ** 2 * np.exp(-t * t / 2)

        expected.append(len(z) * integrate.quad(integrand, -3, 3)[0])
    # The rest is the error of the trapezoidal rule at the ends of the window.
    assert float(sigreg(z, slices)) == pytest.approx(np.mean(expected), rel=5e-3)


def test_sigreg_is_the_statistic_of_the_monitor() -> None:
    z, slices = embeddings(), directions()
    expected = epps_pulley(z.double() @ slices.double()).mean()
    assert float(sigreg(z, slices)) == pytest.approx(float(expected), rel=1e-5)


def test_gradient_of_sigreg_is_the_derivative_of_the_sum() -> None:
    z, slices = embeddings().requires_grad_(), directions()
    sigreg(z, slices).backward()
    t = np.arange(17) * 3 / 16
    weight = np.exp(-(t**2) / 2) * 3 / 16 * np.where((t == 0) | (t == 3), 1, 2)
    expected = np.zeros((40, 3))
    for a in slices.double().T.numpy():
        x = z.detach().double().numpy() @ a
        cosine, sine = np.cos(np.outer(t, x)), np.sin(np.outer(t, x))
        slope = 2 * (sine.mean(1)[:, None] * cosine) * t[:, None]
        slope -= 2 * ((cosine.mean(1) - np.exp(-(t**2) / 2))[:, None] * sine) * t[:, None]
        expected += np.outer(weight @ slope, a) / slices.shape[1]
    np.testing.assert_allclose(z.grad, expected, atol=1e-5)


def test_sigreg_is_as_low_as_its_null_law_says_for_normal_embeddings_only() -> None:
    generator = torch.Generator().manual_seed(3)
    slices = directions(16, 256)
    normal = [float(sigreg(torch.randn(256, 16, generator=generator), slices)) for _ in range(30)]
    assert np.mean(normal) == pytest.approx(1.0525, abs=4 * np.std(normal) / np.sqrt(30))
    assert float(sigreg(torch.zeros(256, 16), slices)) == pytest.approx(0.402 * 256, rel=0.01)


def test_descending_sigreg_makes_a_square_gaussian() -> None:
    generator = torch.Generator().manual_seed(4)
    z = (2 * torch.rand(512, 2, generator=generator)).requires_grad_()
    slices, others = directions(2, 32), directions(2, 64)[:, 32:]
    assert float(sigreg(z.detach(), others)) > 100
    optimizer = torch.optim.Adam([z], 0.05)
    for _ in range(250):
        optimizer.zero_grad()
        sigreg(z, slices).backward()
        optimizer.step()
    assert float(sigreg(z.detach(), others)) < 1.05  # a sample of N(0, I) reads 1.05 on average


def test_sigreg_keeps_float32_under_autocast() -> None:
    z, slices = embeddings(200), directions()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = sigreg(z, slices)
    assert torch.equal(low, sigreg(z, slices))


# -------------------------------------------------------------------------------------- method
def test_loss_is_that_of_the_paper() -> None:
    torch.manual_seed(0)
    model, batch, slices = LeJepa(**TINY, sigreg_weight=0.3), views(), directions()
    off_the_start(model)
    found = model.loss(batch, slices)
    z = model.embed(batch).detach().numpy()
    assert z.shape == (4, 6, 3)
    target = z[:2].mean(0)
    prediction = np.mean([(view - target) ** 2 for view in z])
    normality = np.mean([epps_pulley(torch.tensor(view) @ slices) for view in z])
    assert float(found["prediction"]) == pytest.approx(prediction, rel=1e-5)
    assert float(found["sigreg"]) == pytest.approx(normality, rel=1e-5)
    assert float(found["loss"]) == pytest.approx(0.7 * prediction + 0.3 * normality, rel=1e-5)


def test_views_keep_their_places() -> None:
    torch.manual_seed(0)
    model, batch = LeJepa(**TINY).eval(), views()
    together = model.embed(batch)
    for place, crop in enumerate([*batch.global_crops, *batch.local_crops]):
        torch.testing.assert_close(together[place], model.network(crop))


def test_gradients_reach_every_parameter() -> None:
    torch.manual_seed(0)
    model = LeJepa(**TINY)
    model.loss(views(), directions())["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_it_embeds_with_the_encoder_alone() -> None:
    model, images = LeJepa(**TINY).eval(), torch.randn(2, 1, 16, 16)
    assert torch.equal(model(images), model.network.encoder(images))
    assert model(images).shape == (2, 8)


def fit(seed=0, **options):
    torch.manual_seed(0)
    model = LeJepa(**TINY, seed=seed)
    data = ImageDataModule("digits", batch_size=300, image_size=16, global_views=2, local_views=1)
    trainer = pl.Trainer(
        max_epochs=1,
        limit_train_batches=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        **options,
    )
    trainer.fit(model, datamodule=data)
    return model, trainer


def test_directions_follow_the_seed() -> None:
    first, second, other = (fit(seed)[0] for seed in (0, 0, 1))
    pairs = list(zip(first.parameters(), second.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not all(torch.equal(a, c) for a, _, c in pairs)


def test_every_step_has_directions_of_its_own_and_all_processes_the_same(monkeypatch) -> None:
    drawn = []

    def draw(*arguments):
        drawn.append(slice_directions(*arguments))
        return drawn[-1]

    monkeypatch.setattr(lejepa, "slice_directions", draw)
    for rank in (0, 1):
        monkeypatch.setattr(LeJepa, "global_rank", rank)
        fit()
    first, second, again, another = drawn
    assert torch.equal(first, again)
    assert torch.equal(second, another)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("options", [{"precision": "bf16-mixed"}, {"gradient_clip_val": 0.1}])
def test_trainer_flags_work(options) -> None:
    model, trainer = fit(**options)
    names = ("loss", "prediction", "sigreg", "lr", "weight_decay")
    assert all(torch.isfinite(trainer.callback_metrics[f"train/{name}"]) for name in names)
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 3}, "patch_size=3 does not divide image_size=16"),
        ({"warmup": 1.0}, r"warmup=1\.0 must be in \[0, 1\)"),
        ({"sigreg_weight": 1.5}, r"sigreg_weight=1\.5 must be in \[0, 1\]"),
    ],
)
def test_bad_arguments_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        LeJepa(**{**TINY, **options})
