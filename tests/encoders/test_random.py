"""Encoders that do not repeat themselves in eval mode: said once, counted, and comparable."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import float64_score, float64_spectrum, images, interpreter_settings, mlp
from torch import Tensor, nn

from jepa_monitor import DensityMonitor, ScoreOptions, audit_precision, jepa_score


class Masking(nn.Module):
    """Keeps a random half of its patches, by Hugging Face's ViTMAE's way to draw them."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 2, 2)
        self.head = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 10))

    def forward(self, batch: Tensor) -> Tensor:
        tokens = self.patches(batch).flatten(2).mT
        noise = torch.rand(tokens.shape[:2])
        kept = noise.argsort(dim=1)[:, : tokens.shape[1] // 2, None].expand(-1, -1, 16)
        return self.head(tokens.gather(1, kept)).mean(1)


class Scaled(nn.Module):
    """A network whose output is scaled by what a function draws."""

    def __init__(self, draw: Callable[[Any], float | Tensor]) -> None:
        super().__init__()
        self.net = mlp(192, 10)
        self.draw = draw
        self.generator = torch.Generator().manual_seed(3)
        self.passes = 0

    def forward(self, batch: Tensor) -> Tensor:
        self.passes += 1
        return self.net(batch) * (1.5 + self.draw(self))


RANDOM: dict[str, Callable[[], nn.Module]] = {
    "masks": Masking,
    "dropout": lambda: Scaled(lambda m: nn.functional.dropout(torch.ones(10), 0.3).double().float()),
    "python": lambda: Scaled(lambda m: random.random()),
    "numpy": lambda: Scaled(lambda m: float(np.random.rand())),  # noqa: NPY002
    "a generator of its own": lambda: Scaled(lambda m: torch.rand(10, generator=m.generator)),
    "counts its passes": lambda: Scaled(lambda m: 0.5**m.passes),
}  # fmt: skip


def silently(work: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return work()


@pytest.mark.parametrize("name", RANDOM)
def test_it_is_said_once_and_two_looks_agree(name: str) -> None:
    encoder = RANDOM[name]()
    batch = images(6)
    with pytest.warns(UserWarning, match=r"other embeddings at every pass.*moved them by [\d.]+%"):
        first = jepa_score(encoder, batch)
    torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
    before = interpreter_settings()
    second = silently(lambda: jepa_score(encoder, batch))
    assert interpreter_settings() == before
    assert torch.equal(first, second)
    monitor = DensityMonitor(batch, reference=images(12, 4), polarity_samples=2)
    reports = [silently(lambda: monitor.evaluate(encoder)).scalars for _ in range(2)]
    reports = [{k: v for k, v in r.items() if k != "monitor/seconds"} for r in reports]
    assert reports[0] == pytest.approx(reports[1], abs=0, nan_ok=True)
    assert reports[0]["monitor/random"] > 1e-3


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("memory", [None, 1, 10**5])
def test_scores_are_those_of_the_seed_in_any_chunking(precision: str, memory: int | None) -> None:
    encoder, batch = Masking().eval(), images(5)
    with pytest.warns(UserWarning, match="other embeddings"):
        scores = jepa_score(encoder, batch, precision=precision, max_memory=memory)

    def seeded(pixels: Tensor) -> Tensor:
        torch.manual_seed(0)
        return encoder(pixels)

    encoder.double()
    expected = float64_spectrum(seeded, batch).clamp_min(1e-6).log().sum(1)
    torch.testing.assert_close(
        scores, expected, rtol=0, atol=0.02 if precision == "float32" else 1e-6
    )


def test_the_report_says_how_far_a_second_pass_moves_the_embeddings() -> None:
    encoder, batch = Masking().eval(), images(20)
    with pytest.warns(UserWarning, match="other embeddings"):
        report = DensityMonitor(batch, options=ScoreOptions()).evaluate(encoder)
    with torch.no_grad():
        # The engine's first call is that which compares two images.
        passes = [(torch.manual_seed(seed), encoder(batch[:2]))[1] for seed in (0, 1)]
    moved = (passes[1] - passes[0]).norm() / passes[0].norm()
    assert report.scalars["monitor/random"] == pytest.approx(moved.item(), rel=1e-5)


@pytest.mark.parametrize("module", [mlp(192, 10), nn.Sequential(*mlp(192, 10), nn.Dropout(0.5))])
def test_an_encoder_that_repeats_itself_is_not_accused(module: nn.Module) -> None:
    report = silently(lambda: DensityMonitor(images(6)).evaluate(module.train()))
    assert report.scalars["monitor/random"] == 0
    audit = audit_precision(module, images(4))
    assert "float32 is good enough" in audit.verdict
    assert torch.equal(audit.random, torch.zeros(4, dtype=torch.float64))


def test_the_audit_certifies_no_random_encoder() -> None:
    encoder, batch = Masking().eval(), images(4)
    with pytest.warns(UserWarning, match="other embeddings"):
        audit = audit_precision(encoder, batch)
    scores = []
    encoder.double()
    for seed in (0, 1):

        def seeded(pixels: Tensor, seed: int = seed) -> Tensor:
            torch.manual_seed(seed)
            return encoder(pixels)

        scores.append(float64_spectrum(seeded, batch).clamp_min(1e-6).log().sum(1))
    torch.testing.assert_close(audit.random, scores[1] - scores[0], rtol=0, atol=0.02)
    worst = (scores[1] - scores[0]).abs().max()
    assert f"another seed moves its scores by up to {worst:.2g} nats" in audit.verdict
    assert audit.verdict.startswith("no precision is good enough")


class Counting(nn.Module):
    """Counts in place, in what its output is multiplied by."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.net = mlp(192, 10)
        self.kind = kind
        self.register_buffer("steps", torch.ones(()))
        self.table, self.plain = torch.ones(10), 1.0

    def forward(self, batch: Tensor) -> Tensor:
        self.steps += 1
        self.table *= 2
        self.plain += 1
        return (
            self.net(batch)
            * {"buffer": self.steps, "table": self.table, "plain": self.plain}[self.kind]
        )


@pytest.mark.parametrize("kind", ["buffer", "table", "plain"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_every_image_is_embedded_with_the_first_count(kind: str, stored: torch.dtype) -> None:
    encoder, batch = Counting(kind).to(stored), images(5)
    with pytest.warns(UserWarning, match="other embeddings"):
        scores = jepa_score(encoder, batch)
    expected = float64_score(encoder.net, batch) + 10 * math.log(2)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-3)
    assert (encoder.steps, encoder.plain) == (1, 1)
    assert torch.equal(encoder.table, torch.ones(10))
