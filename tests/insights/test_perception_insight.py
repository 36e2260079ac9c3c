"""Perception in a look: each tag by the matrices of the paper and SciPy, and when nothing is said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from text_models import TextItems, TinyText, padded

from jepa_monitor import DensityMonitor, ScoreOptions
from jepa_monitor.encoders import TokenEncoder
from jepa_monitor.insights.perception import Perception
from jepa_monitor.insights.table import tag_pattern

CHEAP: dict[str, Any] = {"max_probe_samples": 1, "options": ScoreOptions("sketch", rows=1)}


def top(second: np.ndarray, cross: np.ndarray, k: int) -> np.ndarray:
    values, vectors = scipy.linalg.eigh(cross @ cross.T, second)
    return vectors[:, np.argsort(-values)[:k]]


def by_hand(model: TinyText, items: TextItems, shuffles: int) -> list[float]:
    """The value of the last layer of all texts, and with classes shuffled."""
    model, states = model.double().eval(), []
    for text in items.texts:
        with torch.no_grad():
            states.append(model(torch.tensor([text])).last_hidden_state[0].numpy())
    # A norm's states lie in a plane: coordinates there make the second moments regular.
    _, axes = np.linalg.eigh(sum(h.T @ h for h in states))
    states = [h @ axes[:, 1:] for h in states]
    width = states[0].shape[1]
    second, cross = np.zeros((width, width)), np.zeros((width, width))
    for h in states:
        for t in range(1, len(h)):
            c = h[:t].sum(0)
            second += np.outer(c, c)
            cross += np.outer(c, h[t])
    means = np.array([h.mean(0) for h in states])
    means = means - means.mean(0)
    y, found = np.eye(2)[[text[0] % 2 for text in items.texts]], []
    y, v, rng = y - y.mean(0), top(second, cross, 16), np.random.default_rng(0)
    for _ in range(1 + shuffles):
        u = top(means.T @ means, means.T @ y, 1)
        found.append(float(np.mean(np.cos(scipy.linalg.subspace_angles(u, v)) ** 2)))
        y = rng.permutation(y)
    return found


def test_tags_are_those_of_the_paper_and_a_permutation() -> None:
    model, items = TinyText(width=24), TextItems(100, 3)
    monitor = DensityMonitor(items, insights=["perception"], **CHEAP)
    scalars = monitor.evaluate(TokenEncoder(model)).scalars
    ours = {tag: value for tag, value in scalars.items() if tag.startswith("perception/")}
    value, *others = by_hand(model, items, 200)
    assert ours["perception/ntps"] == pytest.approx(value, abs=1e-4)
    assert ours["perception/chance"] == 16 / 24
    excess = (ours["perception/ntps"] - 16 / 24) / (1 - 16 / 24)
    assert ours["perception/excess"] == pytest.approx(excess)
    spread = float(np.std(others, ddof=1))
    assert ours["perception/null"] == pytest.approx(np.mean(others), abs=4 * spread / 20**0.5)
    assert 0.5 * spread < ours["perception/null_sd"] < 1.7 * spread
    rows = [tag_pattern(tag) for row in Perception.rows for tag in row.tags]
    assert [p for p in rows if not any(p.fullmatch(tag) for tag in ours)] == []
    assert len(ours) == len(rows)


@pytest.mark.parametrize(
    ("probe", "encoder", "reason"),
    [
        (torch.rand(20, 6), torch.nn.Linear(6, 3), r"needs texts \(`input_ids`\) with one class each"),
        (padded(TextItems(20, 3).texts), TinyText(), r"needs texts \(`input_ids`\) with one class each"),
    ],
)  # fmt: skip
def test_without_texts_or_classes_it_is_absent_with_a_reason(
    probe: Any, encoder: Any, reason: str
) -> None:
    monitor = DensityMonitor(probe, insights=["perception"], **CHEAP)
    with pytest.warns(UserWarning, match=reason):
        report = monitor.evaluate(encoder)
    assert list(report.failed) == ["perception"]
    assert not [tag for tag in report.scalars if tag.startswith("perception/")]
