"""The grokking recipe: data, methods, what it measures and what it prints."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.autograd.functional import jacobian

from jepa_monitor.recipes import grokking
from jepa_monitor.recipes.grokking import Settings


@pytest.fixture(scope="module")
def data() -> grokking.Digits:
    return grokking.load("digits")


def test_data_are_split_once_and_normalised(data: grokking.Digits) -> None:
    assert data.images.shape == (1000, 64)
    assert data.test_images.shape == (797, 64)
    assert data.images.mean().item() == pytest.approx(0, abs=1e-5)
    assert data.images.std().item() == pytest.approx(1, abs=1e-5)
    assert set(data.labels.tolist()) == set(data.test_labels.tolist()) == set(range(10))
    assert torch.equal(grokking.load("digits").labels, data.labels)


def test_initial_weights_are_scaled() -> None:
    torch.manual_seed(5)
    usual = grokking.classifier(64, Settings(init_scale=1.0))
    torch.manual_seed(6)  # the seed is that of the settings, not the global one
    large = grokking.classifier(64, Settings(init_scale=8.0))
    for one, other in zip(usual.parameters(), large.parameters(), strict=True):
        torch.testing.assert_close(8 * one, other)


def test_a_look_agrees_with_the_definitions(data: grokking.Digits) -> None:
    network = grokking.classifier(64, Settings(width=16))
    seen = grokking.look(network, data)
    images = data.images[: grokking.ALIGNED_AT].double()
    exact = network.double()
    rows = torch.stack([jacobian(lambda x: exact(x[None])[0], image) for image in images]).numpy()
    x = images.numpy()
    mu = rows.sum(1)
    cosines = mu @ x.T / np.linalg.norm(mu, axis=1)[:, None] / np.linalg.norm(x, axis=1)
    own = np.eye(len(x), dtype=bool)
    sizes = np.linalg.norm(rows, axis=(1, 2))
    gains = np.linalg.norm(np.einsum("ikd,jd->ijk", rows, x), axis=2)
    gains /= sizes[:, None] * np.linalg.norm(x, axis=1)
    spectra = np.linalg.svd(rows, compute_uv=False)
    expected = {
        "centroid_alignment": cosines[own].mean(),
        "centroid_alignment_shuffled": cosines[~own].mean(),
        "jacobian_alignment": gains[own].mean(),
        "jacobian_alignment_shuffled": gains[~own].mean(),
        "rank_one_share": (spectra[:, 0] ** 2 / (spectra**2).sum(1)).mean(),
        "jacobian_norm": sizes.mean(),
    }
    for key, value in expected.items():
        assert seen[key] == pytest.approx(value, rel=1e-4, abs=1e-5), key
    with torch.no_grad():
        right = exact(data.test_images.double()).argmax(1) == data.test_labels
    assert seen["test_accuracy"] == pytest.approx(right.double().mean().item(), abs=0.01)


def test_regularisers_act_on_what_they_are_said_to(data: grokking.Digits) -> None:
    ends = {
        method: grokking.train(data, Settings(method, steps=150, width=32, strength=1.0), looks=3)[
            -1
        ]
        for method in grokking.METHODS
    }
    assert ends["none"]["train_accuracy"] > 0.4
    for method in ("decay", "jacobian"):
        assert ends[method]["jacobian_norm"] < 0.9 * ends["none"]["jacobian_norm"]
    again = grokking.train(data, Settings("jacobian", steps=150, width=32, strength=1.0), looks=3)
    assert again[-1] == ends["jacobian"]


def test_first_step() -> None:
    seen = [{"step": s, "a": a} for s, a in ((0, 0.1), (10, 0.9), (20, 0.5), (30, 0.95))]
    assert grokking.first_step(seen, "a", 0.9) == 10
    assert grokking.first_step(seen, "a", 0.99) == float("inf")


def test_command_line_trains_stores_and_shows(tmp_path, capsys) -> None:
    arguments = ["--method", "none", "decay", "--seeds", "2", "--folder", str(tmp_path)]
    runs = grokking.main([*arguments, "--steps", "20", "--looks", "2"])
    printed = capsys.readouterr().out
    assert "| no regulariser | never, never | never, never |" in printed
    assert (tmp_path / "digits.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "digits_none.json").read_text()) == runs["none"]
    shown = grokking.main([*arguments, "--show"])
    assert shown == runs
    table = [line for line in printed.splitlines() if line.startswith("|")]
    assert [x for x in capsys.readouterr().out.splitlines() if x.startswith("|")] == table


def test_errors(data: grokking.Digits) -> None:
    with pytest.raises(ValueError, match="`name` must be one of digits, mnist, got 'letters'"):
        grokking.load("letters")
    with pytest.raises(ValueError, match="`method` must be one of none, decay, jacobian, got 'l1'"):
        grokking.train(data, Settings("l1"))
