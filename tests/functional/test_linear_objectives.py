"""Joint embedding and reconstruction: against SciPy, gradient steps on the objectives, and populations."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from jepa_monitor.functional.linear_objectives import (
    alignment_thresholds,
    joint_embedding,
    reconstruction,
)

RANK = 3


def views() -> tuple[Tensor, Tensor]:
    """30 images of 8 numbers, and all 5 views that each may have, which are shrunk, turned and noisy."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 8, generator=generator, dtype=torch.float64)
    x = x * torch.linspace(3, 0.5, 8, dtype=torch.float64)
    maps = torch.randn(5, 8, 8, generator=generator, dtype=torch.float64) / 6
    maps = maps + 0.7 * torch.eye(8, dtype=torch.float64)
    noise = torch.randn(30, 5, 8, generator=generator, dtype=torch.float64)
    return x, torch.einsum("nd,vde->nve", x, maps) + 0.5 * noise


def moments(x: Tensor, shown: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The cross moment, G and Σ, each view being equally likely."""
    mean = shown.mean(1)
    apart = (shown - mean[:, None]).flatten(0, 1)
    return x.T @ mean / len(x), mean.T @ mean / len(x), apart.T @ apart / len(apart)


def steps(loss_of: object, maps: list[Tensor], count: int = 1500) -> float:
    """What Adam makes of a loss."""
    maps = [each.requires_grad_() for each in maps]
    optimiser = torch.optim.Adam(maps, lr=0.03)
    for step in range(count):
        optimiser.param_groups[0]["lr"] = 0.03 * (1 - step / count)
        optimiser.zero_grad()
        loss = loss_of(*maps)  # type: ignore[operator]
        loss.backward()
        optimiser.step()
    return float(loss.detach())


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_joint_embedding_is_the_generalised_eigenproblem() -> None:
    _, between, within = moments(*views())
    found = joint_embedding(between, within, RANK)
    values, vectors = scipy.linalg.eigh(between.numpy(), (between + within).numpy())
    np.testing.assert_allclose(found.agreement.numpy(), values[::-1][:RANK], atol=1e-10)
    expected = vectors[:, ::-1][:, :RANK]  # SciPy scales them to the identity too
    np.testing.assert_allclose(
        (found.encoder @ found.encoder.T).numpy(), expected @ expected.T, atol=1e-9
    )


def test_joint_embedding_is_what_adam_makes_of_all_pairs_of_views() -> None:
    x, shown = views()
    _, between, within = moments(x, shown)
    found = joint_embedding(between, within, RANK)
    second = torch.einsum("nvd,nve->de", shown, shown) / shown[..., 0].numel()

    def loss_of(free: Tensor) -> Tensor:
        eigenvalues, vectors = torch.linalg.eigh(free.T @ second @ free)
        codes = shown @ (free @ (vectors / eigenvalues.sqrt()) @ vectors.T)  # of moment I
        return (codes[:, :, None] - codes[:, None]).square().sum(-1).mean()

    least = float(2 * (1 - found.agreement).sum())
    reached = steps(loss_of, [random(8, RANK)])
    assert reached == pytest.approx(least, rel=1e-3)
    assert reached >= least - 1e-9
    assert float(loss_of(found.encoder)) == pytest.approx(least)


def test_reconstruction_is_what_adam_makes_of_all_views() -> None:
    x, shown = views()
    found = reconstruction(*moments(x, shown), RANK)

    def loss_of(encoder: Tensor, decoder: Tensor) -> Tensor:
        return (shown @ encoder @ decoder - x[:, None]).square().sum(-1).mean()

    least = float(x.square().sum(1).mean() - found.gains.square().sum())
    assert float(loss_of(found.encoder, found.decoder)) == pytest.approx(least)
    reached = steps(loss_of, [random(8, RANK) / 3, random(RANK, 8, seed=2) / 3])
    assert reached == pytest.approx(least, rel=1e-3)
    assert reached >= least - 1e-9


def test_reconstruction_without_augmentation_is_pca() -> None:
    x, _ = views()
    moment = x.T @ x / len(x)
    found = reconstruction(moment, moment, torch.zeros_like(moment), RANK)
    values, vectors = np.linalg.eigh(moment.numpy())
    np.testing.assert_allclose(found.gains.square().numpy(), values[::-1][:RANK])
    kept = vectors[:, ::-1][:, :RANK]
    np.testing.assert_allclose((found.encoder @ found.decoder).numpy(), kept @ kept.T, atol=1e-9)


def test_directions_in_which_nothing_differs_are_left_out() -> None:
    cross, between, within = moments(*views())
    wide = [torch.nn.functional.pad(each, (2, 0, 2, 0)) for each in (cross, between, within)]
    for found, plain in (
        (joint_embedding(*wide[1:], RANK), joint_embedding(between, within, RANK)),
        (reconstruction(*wide, RANK), reconstruction(cross, between, within, RANK)),
    ):
        assert not found.encoder[:2].any()
        np.testing.assert_allclose(found[-1].numpy(), plain[-1].numpy(), atol=1e-9)
    with pytest.raises(ValueError, match="`rank` must be at most 8, the directions"):
        joint_embedding(*wide[1:], 9)


VECTORS = [(5.0, 0.230, 2.105), (30.0, 0.247, 17.747), (1.0, 0.150, None)]


def arranged(g: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    s = torch.tensor([5.0, 4.0, 3.0, 2.0], dtype=torch.float64)
    nuisance = torch.full((8,), g, dtype=torch.float64)
    return s, torch.full_like(s, 0.5), nuisance, torch.full_like(nuisance, 0.1)


@pytest.mark.parametrize(("g", "joint", "rebuilt"), VECTORS)
def test_thresholds_by_hand(g: float, joint: float, rebuilt: float | None) -> None:
    found = alignment_thresholds(*arranged(g))
    assert float(found.joint_embedding) == pytest.approx(joint, abs=5e-4)
    assert float(found.even) == pytest.approx(2.0)
    if rebuilt is None:
        assert float(found.reconstruction) < 0
    else:
        assert float(found.reconstruction) == pytest.approx(rebuilt, abs=5e-4)


@pytest.mark.parametrize("which", ["joint embedding", "reconstruction"])
@pytest.mark.parametrize("g", [5.0, 30.0, 1.0])
def test_codes_become_the_signal_where_the_thresholds_say(g: float, which: str) -> None:
    """Populations in a turned basis: below the threshold a nuisance is among the codes, above it none is."""
    s, s_noise, nuisance, g_noise = arranged(g)
    found = alignment_thresholds(s, s_noise, nuisance, g_noise)
    joint = which == "joint embedding"
    threshold = float(found.joint_embedding if joint else found.reconstruction)
    turn = torch.linalg.qr(random(12, 12)).Q
    between = turn @ torch.cat([s, nuisance]).diag() @ turn.T

    def nuisance_kept(squared: float) -> float:
        noise = torch.cat([s_noise, g_noise + squared * nuisance])
        within = turn @ noise.diag() @ turn.T
        encoder = (
            joint_embedding(between, within, 4)
            if joint
            else reconstruction(between, between, within, 4)
        ).encoder
        codes = torch.linalg.qr(encoder).Q
        return float((turn[:, 4:].T @ codes).square().sum())

    if threshold < 0:
        assert nuisance_kept(0.0) == pytest.approx(0, abs=1e-9)
        return
    assert nuisance_kept(0.8 * threshold) >= 1 - 1e-9
    assert nuisance_kept(1.2 * threshold) == pytest.approx(0, abs=1e-9)


def test_which_objective_needs_less_is_decided_by_the_variance_at_which_they_change_places() -> (
    None
):
    s, s_noise, _, g_noise = arranged(1.0)
    spread = torch.rand(200, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for scale, low in ((1.99, 0.0), (6.0, 2.01)):
        g = low + (scale - low) * spread.clamp_min(1e-3)
        found = alignment_thresholds(
            s.expand(200, 4), s_noise.expand(200, 4), g, g_noise.expand(200, 8)
        )
        less = found.joint_embedding < found.reconstruction
        assert bool(less.all()) is (low > 0)
        assert bool(less.any()) is (low > 0)
        assert found.even.shape == (200,)


def test_bad_arguments_are_named() -> None:
    one, s = torch.eye(4), torch.ones(2)
    with pytest.raises(TypeError, match="`between` must be a floating-point"):
        joint_embedding(one.long(), one, 1)
    with pytest.raises(ValueError, match=r"`within` must be \(4, 4\), got \(3, 3\)"):
        joint_embedding(one, torch.eye(3), 1)
    with pytest.raises(ValueError, match=r"`cross` must be \(D, D\), got \(4,\)"):
        reconstruction(torch.ones(4), one, one, 1)
    with pytest.raises(ValueError, match="`between` must be finite"):
        joint_embedding(one / 0, one, 1)
    with pytest.raises(ValueError, match="do the views differ at all"):
        joint_embedding(0 * one, 0 * one, 1)
    with pytest.raises(ValueError, match="`rank` must be at least 1, got 0"):
        joint_embedding(one, one, 0)
    with pytest.raises(TypeError, match="`signal` must be a floating-point"):
        alignment_thresholds(s.long(), s, s, s)
    with pytest.raises(ValueError, match="`nuisance` must be finite and above 0"):
        alignment_thresholds(s, s, 0 * s, s)
    with pytest.raises(ValueError, match="`signal_augmentation` must be finite and at least 0"):
        alignment_thresholds(s, -s, s, s)
    with pytest.raises(
        ValueError, match=r"`nuisance_augmentation` must be \(2,\), as `nuisance` is"
    ):
        alignment_thresholds(s, s, s, torch.ones(3))
    with pytest.raises(ValueError, match="`nuisance` must hold a number at least"):
        alignment_thresholds(s, s, torch.ones(0), torch.ones(0))
