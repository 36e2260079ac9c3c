"""Estimated scores in a table: what was taken, what is missing, and that a resumed run takes the same."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
import torch
from cli_helpers import make_folder, transform
from torch import Tensor, nn

from jepa_monitor import ScoreOptions
from jepa_monitor.cli import Settings, info_of, score_dataset
from jepa_monitor.cli.entry import main

SETTINGS = Settings(batch_size=4, polarity_samples=0)


class Wide(nn.Module):
    """A smooth encoder of 3 x 6 x 6 images, K = 48."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(108, 64), nn.Tanh(), nn.Linear(64, 48))

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)


def wide() -> tuple[nn.Module, object]:
    return Wide(), transform


def scored(folder: pathlib.Path, options: ScoreOptions, **others: Any) -> Any:
    return score_dataset(
        Wide(), str(folder), transform=transform, options=options, settings=SETTINGS, **others
    )


def test_a_table_of_estimates(tmp_path: pathlib.Path) -> None:
    make_folder(tmp_path / "data", 60)
    exact = scored(tmp_path / "data", ScoreOptions())
    found = scored(tmp_path / "data", ScoreOptions("lanczos"))
    info = info_of(found)
    assert info["method"].startswith(
        "lanczos, 6 starts, 2 steps, 12 of 48 rows, whitened by the response to noise, differences; "
        "estimates of 2 steps and 12 rows correlate"
    )
    assert (info["agreement"]["rows"], info["agreement"]["steps"]) == (12, 2)
    assert found["below_noise_floor"].null_count == 60  # not known, not 0
    scores, truth = (table["jepa_score"].to_numpy() for table in (found, exact))
    assert np.corrcoef(scores, truth)[0, 1] > 0.5
    assert np.abs(scores - truth).mean() < 20  # on the same scale
    assert found["log_prior"].to_numpy() == pytest.approx(exact["log_prior"].to_numpy())


@pytest.mark.parametrize(("tolerance", "kind"), [(1e-6, "exact, 48 rows"), (1e3, "sketch, 16 of")])
def test_a_tolerance_is_met_or_all_rows_are_taken(
    tmp_path: pathlib.Path, tolerance: float, kind: str
) -> None:
    make_folder(tmp_path / "data", 24)
    options = ScoreOptions("auto", tolerance=tolerance)
    found = scored(tmp_path / "data", options)
    assert info_of(found)["method"].startswith(kind)
    assert info_of(found)["agreement"]["images"] == 16
    assert info_of(found)["identity"]["options"]["tolerance"] == tolerance


def test_a_run_that_was_interrupted_goes_on_with_what_was_settled(tmp_path: pathlib.Path) -> None:
    make_folder(tmp_path / "data", 24)
    options, out = ScoreOptions("lanczos"), tmp_path / "scores.parquet"
    expected = scored(tmp_path / "data", options)

    def stop(phase: str, done: int, total: int) -> None:
        if phase == "scores" and done > 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scored(tmp_path / "data", options, out=out, progress=stop)
    found = scored(tmp_path / "data", options, out=out)
    assert found["jepa_score"].to_numpy() == pytest.approx(
        expected["jepa_score"].to_numpy(), abs=0.05
    )
    assert info_of(found)["method"] == info_of(expected)["method"]


def test_the_command_takes_them(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(tmp_path / "data", 20)
    words = ["score", "--model=test_estimates:wide", f"--data={tmp_path / 'data'}"]
    words += [f"--out={tmp_path / 's.parquet'}", "--method=lanczos", "--rows=8", "--steps=2"]
    assert main([*words, "--batch-size=5", "--polarity-samples=0"]) == 0
    assert "lanczos, 4 starts, 2 steps, 8 of 48 rows" in " ".join(capsys.readouterr().out.split())
