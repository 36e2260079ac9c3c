"""Sparse autoencoders of tokens: what each way of training promises, and the command."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from jepa_monitor.recipes import sae
from jepa_monitor.recipes.sparse_autoencoders import (
    Settings,
    SparseAutoencoder,
    centroids,
    encode,
    loss,
    solve_decoder,
    train,
    unexplained,
    untied,
)

SMALL = Settings(atoms=16, k=3, epochs=8, batch_size=64, learning_rate=1e-2)


@pytest.fixture(scope="module")
def points() -> torch.Tensor:
    """Sparse mixtures of 12 directions in 8 dimensions, centred."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(12, 8, generator=generator), dim=1)
    shares = torch.rand(600, 12, generator=generator)
    codes = shares * (shares.argsort(1).argsort(1) < 2) + 0.5 * (shares.argsort(1).argsort(1) < 2)
    made = codes @ directions
    return made - made.mean(0)


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"codes": "batch_topk"}, {"codes": "signed", "tied": True, "auxiliary": 0.0},
        {"variant": "archetypal"}, {"variant": "pam"}, {"start": "kmeans"},
    ],
)  # fmt: skip
def test_training_explains_more_and_repeats(points, changes):
    settings = replace(SMALL, **changes)
    model = train(points, settings)
    codes, again = encode(model, points)
    begun = SparseAutoencoder(points, settings).eval()
    assert unexplained(points, again) < min(
        0.5, 0.9 * unexplained(points, encode(begun, points)[1])
    )
    fired = (codes != 0).sum(1).float()
    assert fired.mean() <= 3.6 if settings.codes == "batch_topk" else fired.max() <= 3
    assert settings.codes == "signed" or codes.min() >= 0
    same = train(points, settings)
    assert torch.equal(model.dictionary(), same.dictionary())


def test_archetypes_stay_mixtures_of_centroids_within_their_ball(points):
    model = train(points, replace(SMALL, variant="archetypal", relaxation=0.05))
    assert model.spread.shape == (64, 8)
    assert model.mixture.min() >= 0
    torch.testing.assert_close(model.mixture.sum(1), torch.ones(16))
    assert model.relaxed.norm(dim=1).max() <= 0.05 + 1e-6
    mixed = model.dictionary() / model.size.exp() - model.relaxed
    torch.testing.assert_close(mixed, model.mixture @ model.spread)
    begun = SparseAutoencoder(points, replace(SMALL, variant="archetypal", points_per_atom=1))
    assert begun.dictionary().norm(dim=1).min() > 0  # each atom begins at a centroid of its own
    assert len(torch.unique(begun.mixture.argmax(1))) == 16


def test_the_decoder_of_pam_is_least_squares_of_its_codes(points):
    free = {"alpha": 0.0, "beta": 0.0, "mu": 0.0, "nu": 0.0}
    model = train(points, replace(SMALL, variant="pam", auxiliary=0.0, **free))
    codes, again = encode(model, points)
    design = np.c_[codes.double(), np.ones(len(codes))]
    solved = np.linalg.lstsq(design, points.double().numpy(), rcond=None)[0]
    residual = ((points.double().numpy() - design @ solved) ** 2).sum()
    assert (points - again).square().sum().item() == pytest.approx(residual, rel=1e-4)
    held = train(points, replace(SMALL, variant="pam", mu=1e9, nu=1e9))
    begun = SparseAutoencoder(points, replace(SMALL, variant="pam"))
    torch.testing.assert_close(held.dictionary(), begun.dictionary(), atol=1e-3, rtol=0)
    torch.testing.assert_close(held.weight, begun.weight, atol=0.05, rtol=0)


def test_a_solve_after_sgd_only_helps_and_frees_tied_atoms(points):
    tied = train(points, replace(SMALL, tied=True, codes="signed", auxiliary=0.0))
    before = unexplained(points, encode(tied, points)[1])
    freed = untied(tied)
    assert unexplained(points, encode(freed, points)[1]) == pytest.approx(before)
    solve_decoder(freed, points, ridge=1e-6)
    assert unexplained(points, encode(freed, points)[1]) < before
    with pytest.raises(ValueError, match="no atoms of its own"):
        solve_decoder(tied, points)


def test_starts_differ_by_seed_unless_they_are_shared(points):
    def begun(seed, **changes):
        return SparseAutoencoder(points, replace(SMALL, seed=seed, **changes)).dictionary()

    for changes in ({}, {"start": "kmeans"}, {"variant": "archetypal"}):
        assert not torch.equal(begun(0, **changes), begun(1, **changes))
        assert torch.equal(begun(0, start_seed=3, **changes), begun(1, start_seed=3, **changes))


def test_the_first_reconstructions_have_the_best_length(points):
    for changes in ({}, {"start": "kmeans"}, {"variant": "archetypal"}, {"codes": "batch_topk"}):
        model = SparseAutoencoder(points, replace(SMALL, **changes))
        again = model(points)[1].detach() - model.bias.detach()
        target = points - model.bias.detach()
        gain = np.linalg.lstsq(again.reshape(-1, 1), target.flatten(), rcond=None)[0]
        assert gain[0] == pytest.approx(1, abs=1e-4)
        assert unexplained(points, again + model.bias.detach()) < 1


def test_the_loss_is_the_error_and_what_unused_atoms_make_of_it(points):
    model = SparseAutoencoder(points, replace(SMALL, auxiliary=0.25))
    x, w, d = (t.detach().double().numpy() for t in (points, model.weight, model.dictionary()))
    scores = x @ w.T
    order = np.argsort(-scores, axis=1)
    codes = np.zeros_like(scores)
    np.put_along_axis(codes, order[:, :3], np.take_along_axis(scores, order[:, :3], 1), 1)
    codes = codes.clip(0)
    residual = x - codes @ d - x.mean(0)
    left = scores.clip(0) - codes
    half = np.where(left >= np.sort(left, axis=1)[:, [-8]], left, 0)
    expected = (residual**2).mean() + 0.25 * ((residual - half @ d) ** 2).mean()
    assert loss(model, points).item() == pytest.approx(expected, rel=1e-4)


def test_the_published_share_is_flattered_by_means_that_differ():
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)) + torch.arange(4) * 5
    guess = x.mean(0).expand_as(x)
    assert unexplained(x, guess) == pytest.approx(1)
    assert unexplained(x, guess, scalar_mean=True) < 0.1


def test_centroids_are_as_many_as_points_allow(points):
    assert centroids(points, 30, 0).shape == (30, 8)
    assert centroids(points[:20], 64, 0).shape == (20, 8)


def test_the_reference_agrees_on_codes_and_auxiliary_loss(points):
    """Overcomplete, the library of the authors of RA-SAE: ``pip install overcomplete``."""
    losses = pytest.importorskip("overcomplete.sae.losses")
    model = SparseAutoencoder(points, replace(SMALL, auxiliary=0.1)).eval()
    scores = model.scores(points)
    codes, again = model(points)
    theirs = losses.top_k_auxiliary_loss(
        points, again, scores, codes, model.dictionary(), penalty=0.1
    )
    torch.testing.assert_close(loss(model, points), theirs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"atoms": 601}, "`atoms` must be at most the number of points, 600, got 601"),
        ({"k": 17}, "`k` must be at most the 16 atoms, got 17"),
        ({"k": 0}, "`k` must be at least 1"),
        ({"variant": "other"}, "`variant` must be one of topk, archetypal, pam"),
        ({"variant": "pam", "tied": True}, "`tied` is of variant 'topk', got 'pam'"),
    ],
)
def test_errors_name_what_is_wrong(points, changes, message):
    with pytest.raises(ValueError, match=message):
        train(points, replace(SMALL, **changes))


def test_points_that_say_nothing_are_refused(points):
    with pytest.raises(ValueError, match="all the same"):
        train(torch.ones(50, 4), SMALL)
    with pytest.raises(ValueError, match="must be finite"):
        train(points / 0.0, SMALL)


def test_the_command_prints_all_rows_and_keeps_the_dictionary(tmp_path, capsys):
    common = ["--folder", str(tmp_path), "--images=30", "--image_size=16", "--atoms=24", "--k=2"]
    found = sae.main([*common, "--encoder_epochs=0", "--epochs=1", "--seeds=2"])
    text = capsys.readouterr().out
    for words in ("Welch", "k-means + PCA", "places shuffled", "Gaussian tokens", "stability"):
        assert words in text
    assert len(found["stability"]) == 1
    assert json.loads((tmp_path / "report.json").read_text()) == found
    assert (tmp_path / "atoms.png").stat().st_size > 1000
    kept = torch.load(tmp_path / "sae.pt", weights_only=True)
    assert kept["dictionary"].shape == (24, 64)
    # The encoder that it kept, by its path, gives the same tokens.
    again = sae.main([*common, f"--encoder={tmp_path}/encoder.ckpt", "--epochs=1", "--seeds=1"])
    assert again["tokens"] == pytest.approx(found["tokens"], rel=1e-3)
    with pytest.raises(SystemExit):
        sae.main([*common, f"--encoder={tmp_path}/encoder.ckpt", "--k=99"])
    assert "`k` must be at most the 24 atoms" in capsys.readouterr().err
