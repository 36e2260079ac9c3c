"""A look computes with one thread where all are slower, and leaves the number of threads as it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import torch
from helpers import Validated, float64_score, images, loader, mlp, trainer
from torch import Tensor, nn

from jepa_monitor import DensityMonitor
from jepa_monitor.callbacks import CollapseCallback
from jepa_monitor.encoders.threads import faster_threads, using_threads
from jepa_monitor.jacobian.spectrum import decompose


class Clock:
    """Stands still, but for what passes take."""

    def __init__(self, seconds: Callable[[int], float]) -> None:
        self.seconds = seconds
        self.now = 0.0
        self.threads: list[int] = []

    def take(self) -> None:
        self.threads.append(torch.get_num_threads())
        self.now += self.seconds(torch.get_num_threads())


class Timed(nn.Module):
    def __init__(self, clock: Clock, fails_at: int | None = None) -> None:
        super().__init__()
        self.net = mlp(192, 10)
        self.clock, self.fails_at = clock, fails_at

    def forward(self, batch: Tensor) -> Tensor:
        self.clock.take()
        if len(self.clock.threads) == self.fails_at:
            raise RuntimeError("no luck")
        return self.net(batch)


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def _clock(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int], float]) -> Clock:
    clock = Clock(seconds)
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    return clock


BUSY = {"busy": (float, 1), "idle": (lambda count: 1 / count, 4)}


@pytest.mark.parametrize("state", BUSY)
def test_the_faster_number_is_taken(
    monkeypatch: pytest.MonkeyPatch, four_threads: None, state: str
) -> None:
    seconds, expected = BUSY[state]
    clock = _clock(monkeypatch, seconds)
    monitor = DensityMonitor(images(9), reference=images(12, 4), polarity_samples=2)
    report = monitor.evaluate(encoder := Timed(clock))
    tried = 6  # each embedding of the first encoder call beside the two that tell randomness
    assert sorted(set(clock.threads[:tried])) == [1, 4]
    assert set(clock.threads[tried:]) == {expected}
    assert len(clock.threads) > 10
    assert torch.get_num_threads() == 4
    expected_scores = float64_score(encoder.net, monitor.images)
    torch.testing.assert_close(report.probe.scores, expected_scores, rtol=0, atol=1e-3)


@pytest.mark.parametrize("fails_at", [1, 4, 8])
def test_the_number_is_put_back_when_a_look_fails(
    monkeypatch: pytest.MonkeyPatch, four_threads: None, fails_at: int
) -> None:
    clock = _clock(monkeypatch, BUSY["busy"][0])
    with pytest.raises(RuntimeError, match="no luck"):
        DensityMonitor(images(9)).evaluate(Timed(clock, fails_at))
    assert torch.get_num_threads() == 4


def test_the_fast_callback_chooses_too(
    monkeypatch: pytest.MonkeyPatch, four_threads: None, tmp_path
) -> None:
    clock = _clock(monkeypatch, BUSY["busy"][0])
    callback = CollapseCallback(lambda module: Timed(clock), every_n_steps=4, strict=True)
    trainer(tmp_path, [callback]).fit(Validated(), loader(32), loader(16, 3))
    assert len(callback.history) > 1
    assert clock.threads[-1] == 1
    assert torch.get_num_threads() == 4


def test_a_hopeless_number_is_tried_once(
    monkeypatch: pytest.MonkeyPatch, four_threads: None
) -> None:
    for seconds, tries in ((lambda n: 1.0 if n == 1 else 6.0, 3), (lambda n: 1.0, 4)):
        clock = _clock(monkeypatch, seconds)
        assert faster_threads(clock.take) == (1 if tries == 3 else 4)
        assert clock.threads == [1, 1, 4, 4][:tries]


def test_one_thread_needs_no_trial() -> None:
    with using_threads(1):
        assert faster_threads(pytest.fail) == 1


def test_small_matrices_are_decomposed_with_one_thread(
    monkeypatch: pytest.MonkeyPatch, four_threads: None
) -> None:
    for dtype, name in ((torch.float32, "eigh"), (torch.float64, "svdvals")):
        for rows, expected in ((16, 1), (200, 4)):
            threads: list[int] = []
            plain = getattr(torch.linalg, name)
            with monkeypatch.context() as patched:
                patched.setattr(
                    torch.linalg,
                    name,
                    lambda m, plain=plain, t=threads: (t.append(torch.get_num_threads()), plain(m))[
                        1
                    ],
                )
                decompose(torch.randn(1, rows, 300, dtype=dtype))
            assert threads == [expected]
    assert torch.get_num_threads() == 4
