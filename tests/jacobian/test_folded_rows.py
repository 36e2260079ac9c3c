"""Rows that are folded into the batch are the same rows; the fold fills the device, and no more."""

from __future__ import annotations

import pytest
import torch
from helpers import images
from torch import Tensor, nn

from jepa_monitor.encoders.embedder import Embedder
from jepa_monitor.jacobian import ScoreOptions, engine
from jepa_monitor.jacobian.engine import fold_of, spectra
from jepa_monitor.jacobian.rows import jacobian_rows

CPU, GPU = torch.device("cpu"), torch.device("cuda")


BACKWARDS: list[int] = []  # outside of the module, whose lists are put back after a look


@pytest.fixture(autouse=True)
def _nothing_counted() -> None:
    BACKWARDS.clear()


class Counting(nn.Module):
    """Notes how many images each backward pass has."""

    def __init__(self, width: int = 7) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(192, 20), nn.GELU(), nn.Linear(20, width))

    def forward(self, batch: Tensor) -> Tensor:
        found: Tensor = self.net(batch)
        if found.requires_grad:
            found.register_hook(lambda gradient: BACKWARDS.append(len(gradient)))
        return found


@pytest.mark.parametrize("fold", [1, 2, 3, 7, 9])
@pytest.mark.parametrize("kind", ["all", "combined", "of each image"])
def test_rows_do_not_depend_on_the_fold(fold: int, kind: str) -> None:
    encoder, batch = Counting().double(), images(3).double()
    draw = torch.Generator().manual_seed(1)
    cotangents = {
        "all": None,
        "combined": torch.randn(5, 7, generator=draw, dtype=torch.float64),
        "of each image": torch.randn(5, 3, 7, generator=draw, dtype=torch.float64),
    }[kind]
    embedder = Embedder(encoder, "auto", torch.float64)
    z, rows = embedder.run(lambda: jacobian_rows(embedder, batch, cotangents, fold), CPU)
    exact = torch.func.vmap(torch.func.jacrev(lambda x: encoder.net(x[None])[0]))(batch).flatten(2)
    if cotangents is not None:
        own = cotangents if cotangents.ndim == 3 else cotangents[:, None].expand(-1, 3, -1)
        exact = torch.einsum("rbk,bkd->brd", own, exact)
    torch.testing.assert_close(rows, exact)
    torch.testing.assert_close(z, encoder.net(batch).detach())
    assert [3 * fold] * -(-rows.shape[1] // fold) == BACKWARDS


MB = 2**20


@pytest.mark.parametrize(
    ("device", "sizes", "expected"),
    [
        (GPU, (1, 1000, 384, MB), 48),  # an eighth of the rows
        (GPU, (4, 1000, 384, MB), 16),  # 64 images
        (GPU, (64, 1000, 384, MB), 1),
        (GPU, (100, 100, 384, MB), 1),
        (GPU, (2, 5, 384, MB), 2),  # what fits
        (GPU, (1, 1, 384, MB), 1),
        (GPU, (1, 1000, 16, MB), 2),
        (GPU, (1, 1000, 4, MB), 1),
        (CPU, (1, 1000, 384, 3 * MB), 16),  # 48 MB
        (CPU, (1, 1000, 384, 1000), 48),
        (CPU, (1, 1000, 384, 0), 48),
        (CPU, (1, 1000, 384, 50 * MB), 1),
        (CPU, (8, 1000, 384, 3 * MB), 2),
        (CPU, (1, 10, 384, MB), 8),  # of 5 to 10, 6 and 8 leave no copy without a row
        (CPU, (1, 1000, 97, 3 * MB), 7),  # 14 passes of 7 take 98 rows
    ],
)
def test_a_batch_is_filled_and_the_forward_pass_stays_small(
    device: torch.device, sizes: tuple[int, int, int, int], expected: int
) -> None:
    assert fold_of(device, *sizes) == expected


def test_scores_are_the_same_and_no_fold_is_tried_again_where_memory_ran_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder, options = Counting(24), ScoreOptions()
    batch = images(2)
    monkeypatch.setattr(engine, "fold_of", lambda *_: 1)
    plain = spectra(Embedder(encoder), batch, options).singular_values
    BACKWARDS.clear()
    monkeypatch.setattr(engine, "fold_of", lambda *_: 3)
    folded = spectra(Embedder(encoder), batch, options).singular_values
    torch.testing.assert_close(folded, plain, rtol=1e-4, atol=1e-7)
    assert BACKWARDS.count(6) == 8
    tried: list[int] = []

    class Tight(Counting):
        def forward(self, batch: Tensor) -> Tensor:
            tried.append(len(batch))
            if len(batch) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(batch)

    found = spectra(Embedder(Tight(24)), batch, options).singular_values
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-7)
    assert tried.count(6) == 1
