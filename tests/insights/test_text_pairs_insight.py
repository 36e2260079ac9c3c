"""Pairs of texts in a look: each tag by NumPy and scikit-learn, what is refused, and training as it would be."""

from __future__ import annotations

import pathlib
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from helpers import trainer
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.metrics.pairwise import cosine_similarity
from text_models import TextItems, TinyText, lists, padded
from torch import Tensor, nn
from torch.utils.data import DataLoader

from jepa_monitor import DensityMonitor, JepaScoreCallback, ScoreOptions
from jepa_monitor.encoders import TokenEncoder
from jepa_monitor.insights.table import tag_pattern
from jepa_monitor.insights.text_pairs import TextPairs

CHEAP: dict[str, Any] = {"max_probe_samples": 1, "options": ScoreOptions("sketch", rows=1)}
COUNT = 90
FIRST = [[3, 5, *text] for text in lists(COUNT, 4, 6)]
SECOND = [[8, number % 39 + 1, *text[-2:]] for number, text in enumerate(FIRST)]


def states(model: TinyText, texts: list[list[int]]) -> list[NDArray[np.float64]]:
    with torch.no_grad():
        return [model(torch.tensor([text])).last_hidden_state[0].numpy() for text in texts]


def rank(z: NDArray[np.float64]) -> float:
    shares = np.linalg.svd(z, compute_uv=False)
    shares = shares / shares.sum() + 1e-7
    return float(np.exp(-(shares * np.log(shares)).sum()))


def turn(u: NDArray[np.float64], v: NDArray[np.float64]) -> float:
    return float(1 - u @ v / np.linalg.norm(u) / np.linalg.norm(v))


@pytest.fixture(scope="module")
def found() -> dict[str, float]:
    model = TinyText(True, width=16).double()
    monitor = DensityMonitor(
        {"input_ids": FIRST}, text_pairs=(padded(FIRST, "left"), {"input_ids": SECOND}), **CHEAP
    )
    return monitor.evaluate(TokenEncoder(model, "last")).scalars


def test_tags_are_those_of_the_embeddings(found: dict[str, float]) -> None:
    paths = [states(TinyText(True, width=16).double().eval(), view) for view in (FIRST, SECOND)]
    z, y = (np.array([path[-1] for path in view]) for view in paths)
    cosines, own = cosine_similarity(z, y), np.eye(COUNT, dtype=bool)
    both = np.concatenate([z, y])
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0)).numpy()
    strange = np.empty_like(y)
    strange[order] = y[np.roll(order, 1)]
    aligned, shuffled = cosines[own].mean(), cosines[~own].mean()
    expected = {
        "aligned": aligned,
        "shuffled": shuffled,
        "pair_gap": aligned - shuffled,
        "retrieval": (cosines.argmax(1) == np.arange(COUNT)).mean(),
        "common_share": np.sum(both.mean(0) ** 2) / np.mean(np.sum(both**2, 1)),
        "rank_first": rank(z),
        "rank_second": rank(y),
        "rank_difference": rank(z - y),
        "rank_difference_shuffled": rank(z - strange),
        "curvature": np.mean([
            np.mean([turn(h[t + 1] - h[t], h[t] - h[t - 1]) for t in range(1, len(h) - 1)])
            for view in paths for h in view
        ]),
        "pairs": COUNT,
    }  # fmt: skip
    for name, value in expected.items():
        assert found[f"text/{name}"] == pytest.approx(value, rel=1e-5), name
    assert 0.1 < expected["retrieval"] < 0.9
    assert found["text/retrieval_low"] < expected["retrieval"] < found["text/retrieval_high"]
    # Any three places of a text: the mean over all of them is what a random span is one of.
    spans = [
        np.mean([
            turn(h[t] - h[r], h[r] - h[s])
            for s in range(len(h)) for r in range(s + 1, len(h)) for t in range(r + 1, len(h))
        ])
        for view in paths for h in view
    ]  # fmt: skip
    assert found["text/stp"] == pytest.approx(np.mean(spans), abs=4 * 0.5 / len(spans) ** 0.5)


def test_a_linear_map_explains_as_much_as_scikit_learns(found: dict[str, float]) -> None:
    model = TinyText(True, width=16).double().eval()
    z, y = (np.array([h[-1] for h in states(model, view)]) for view in (FIRST, SECOND))
    half = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0)).numpy()
    parts, missed = (half[: COUNT // 2], half[COUNT // 2 :]), []
    for fit, held in (parts, parts[::-1]):
        ridge = RidgeCV(np.logspace(-6, 3, 40)).fit(z[fit], y[fit])
        missed.append(r2_score(y[held], ridge.predict(z[held]), multioutput="variance_weighted"))
    assert found["text/linear_r2"] == pytest.approx(np.mean(missed), abs=0.05)
    assert found["text/linear_r2"] > 0.3
    assert found["text/linear_r2_null"] < 0.1
    assert 0 < found["text/linear_r2_error"] < 0.3


def test_the_plan_counts_the_pairs() -> None:
    pairs = {"input_ids": FIRST}, {"input_ids": SECOND}
    monitor = DensityMonitor({"input_ids": FIRST}, text_pairs=pairs, **CHEAP)
    assert monitor.plan(TinyText()).startswith(f"a look embeds {3 * COUNT} texts")


def test_every_row_has_its_tag_and_no_more(found: dict[str, float]) -> None:
    ours = [tag for tag in found if tag.startswith("text/")]
    rows = [tag_pattern(tag) for row in TextPairs.rows for tag in row.tags]
    assert [p for p in rows if not any(p.fullmatch(tag) for tag in ours)] == []
    assert len(ours) == len(rows)


def test_identical_views_are_aligned_and_without_pairs_there_is_nothing() -> None:
    encoder = TokenEncoder(TinyText(), "last")
    texts = padded(lists(40, 4, 2))  # of two tokens at most: no paths
    scalars = DensityMonitor(texts, text_pairs=(texts, texts), **CHEAP).evaluate(encoder).scalars
    assert scalars["text/aligned"] == pytest.approx(1)
    assert not {"text/curvature", "text/stp", "text/linear_r2"} & set(scalars)
    plain = DensityMonitor(texts, **CHEAP).evaluate(encoder)
    assert not [tag for tag in plain.scalars if tag.startswith("text/")]
    assert plain.failed == {}
    assert TextPairs().says(plain.scalars) == ""
    assert "+0." in TextPairs().says(scalars) and "of shuffled pairs" in TextPairs().says(scalars)  # noqa: PT018


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({"input_ids": FIRST}, "`text_pairs` must be two sets of texts, got dict"),
        (({"input_ids": FIRST},), "two sets of texts, got 1 of them"),
        ((torch.rand(5, 3), {"input_ids": FIRST}), r"`text_pairs\[0\]` must be texts"),
        (({"input_ids": FIRST}, {"input_ids": SECOND[:4]}), "at least 3, got 90 and 4"),
        (({"input_ids": FIRST[:2]}, {"input_ids": SECOND[:2]}), "at least 3, got 2 and 2"),
        (({"input_ids": FIRST}, {"input_ids": [[], *SECOND[1:]]}), r"`text_pairs\[1\]` must have at least one token.*text 0 has none"),
        (({"input_ids": FIRST}, {"input_ids": torch.ones(90, 2).long(), "attention_mask": torch.zeros(90, 2).long()}), r"`text_pairs\[1\]`.*all padding"),
        (({"input_ids": FIRST}, {"tokens": SECOND}), r"`text_pairs\[1\]`"),
    ],
)  # fmt: skip
def test_what_are_no_pairs_is_refused(pairs: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        DensityMonitor({"input_ids": FIRST}, text_pairs=pairs)


def test_pairs_of_texts_need_a_probe_of_texts() -> None:
    with pytest.raises(TypeError, match="`probe` must be texts"):
        DensityMonitor(torch.rand(20, 6), text_pairs=({"input_ids": FIRST}, {"input_ids": SECOND}))


def test_ids_beyond_the_vocabulary_leave_the_other_tags() -> None:
    strange = {"input_ids": [[*text, 99] for text in SECOND]}
    monitor = DensityMonitor(
        {"input_ids": FIRST}, text_pairs=({"input_ids": FIRST}, strange), **CHEAP
    )
    with pytest.warns(UserWarning, match="ids below 40.*text 0 has 99"):
        report = monitor.evaluate(TinyText())
    assert list(report.failed) == ["text"]
    assert "collapse/rankme" in report.scalars


class Modelled(pl.LightningModule):
    """Draws random numbers in training, as dropout does."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.head = TinyText(True), nn.Linear(12, 40)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        states = self.model(batch["input_ids"], batch["attention_mask"]).last_hidden_state
        return nn.functional.cross_entropy(self.head(states[:, 0]), batch["input_ids"][:, -1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def test_training_is_bit_for_bit_what_it_would_be(tmp_path: pathlib.Path) -> None:
    def fitted(*callbacks: pl.Callback) -> Modelled:
        pl.seed_everything(3)
        module = Modelled()
        data = TextItems(32, 2)
        batches = DataLoader(
            data, 8, collate_fn=lambda items: padded([item["input_ids"] for item in items])
        )
        trainer(tmp_path, list(callbacks)).fit(module, batches)
        return module

    callback = JepaScoreCallback(
        probe={"input_ids": FIRST},
        text_pairs=({"input_ids": FIRST}, {"input_ids": SECOND}),
        max_overhead=None,
        strict=True,
        **CHEAP,
    )
    plain, watched = fitted(), fitted(callback)
    for (name, value), other in zip(
        watched.state_dict().items(), plain.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), name
    assert callback.history[-1]["text/pairs"] == COUNT
    assert callback.history[-1]["text/shortcut"] == 0
