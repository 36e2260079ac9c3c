"""What is said of images: by any detector of the registry, and nothing by a law that is void."""

from __future__ import annotations

import io
import pathlib

import numpy as np
import pytest
import torch
from cli_helpers import make_folder
from PIL import Image
from rich.console import Console
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from jepa_monitor import ScoreOptions
from jepa_monitor.cli import Settings, curate, info_of, read_table, report, score_dataset
from jepa_monitor.cli.closing import closing_table
from jepa_monitor.cli.entry import main
from jepa_monitor.detectors import DETECTORS, Detector, Reference, ScoredSet, choose_detectors

WIDTH, SOUND, ODD = 48, 40, 4
EXACT = ScoreOptions(method="exact")
QUICK = Settings(batch_size=16, polarity_samples=0)


class Wide(nn.Module):
    """K = 48, of images of 3 x 6 x 6 numbers."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.randn(108, WIDTH, generator=torch.Generator().manual_seed(0)) / 10
        self.weight = nn.Parameter(weight)

    def forward(self, images: Tensor) -> Tensor:
        return torch.tanh(images.flatten(1) @ self.weight)


def planted(sound: int = SOUND) -> Tensor:
    """Faces, so to speak: images near a few patterns, and some of other patterns at the end."""
    generator = torch.Generator().manual_seed(1)
    patterns = torch.rand(3, 3, 6, 6, generator=generator)
    chosen = patterns[torch.arange(sound) % 3]
    images = chosen + 0.02 * torch.randn(sound, 3, 6, 6, generator=generator)
    return torch.cat([images, torch.rand(ODD, 3, 6, 6, generator=generator)])


def embedded(images: Tensor) -> np.ndarray:
    with torch.no_grad():
        return Wide()(images).double().numpy()


def test_fewer_images_than_dimensions_are_judged_by_their_neighbours() -> None:
    images = planted()
    odd = np.arange(len(images)) >= SOUND
    table = score_dataset(Wide(), TensorDataset(images), options=EXACT, settings=QUICK)
    for name in ("log_density", "log_prior", "mahalanobis"):
        assert table[name].null_count == len(table), name
    info = info_of(table)
    assert info["outlier_by"] == "knn"
    assert info["rank_by"] == "knn"
    z = embedded(images)
    distances = NearestNeighbors(n_neighbors=11).fit(z).kneighbors(z)[0][:, 10]
    assert table["knn"].to_numpy() == pytest.approx(-distances, rel=1e-4)
    assert roc_auc_score(odd, -table["knn"].to_numpy()) == 1.0
    assert table["outlier"].to_pylist() == odd.tolist()
    stream = io.StringIO()
    Console(width=200, file=stream).print(closing_table(table, info["rank_by"]))
    said = stream.getvalue()
    assert (
        "44 images do not determine a normal law of embeddings of 48 dimensions, 49 would" in said
    )
    assert "no log_density, mahalanobis, log_prior" in said
    assert "outliers by knn" in said


def test_a_rank_by_the_void_law_falls_back_too(tmp_path: pathlib.Path) -> None:
    settings = Settings(polarity_samples=0, rank_by="mahalanobis")
    out = tmp_path / "s.csv"
    table = score_dataset(Wide(), TensorDataset(planted()), out, options=EXACT, settings=settings)
    assert info_of(read_table(out))["rank_by"] == "knn"
    expected = rankdata(table["knn"].to_numpy()) / len(table)
    assert table["quantile"].to_numpy() == pytest.approx(expected)
    assert '"rank_by":"knn"' in report(str(out)).read_text()
    for function, words in ((report, {}), (curate, {"out": str(tmp_path / "k.txt")})):
        with pytest.raises(ValueError, match="no image has 'log_density': 44 images do not"):
            function(str(out), rank_by="log_density", **words)  # type: ignore[operator]
    assert not (tmp_path / "k.txt").exists()


def test_one_image_more_than_dimensions_is_enough() -> None:
    for sound, holds in ((WIDTH - ODD, False), (WIDTH - ODD + 1, True)):
        table = score_dataset(Wide(), TensorDataset(planted(sound)), options=EXACT, settings=QUICK)
        assert (table["log_density"].null_count == 0) is holds
        assert info_of(table)["outlier_by"] == ("log_density" if holds else "knn")
        assert info_of(table)["rank_by"] == info_of(table)["outlier_by"]
        assert bool(info_of(table)["void"]) is not holds


def test_a_reference_that_is_too_small_says_nothing_of_others() -> None:
    images = planted()
    table = score_dataset(
        Wide(), TensorDataset(images), reference=TensorDataset(images[:SOUND]),
        options=EXACT, settings=QUICK,
    )  # fmt: skip
    assert table["log_density"].null_count == len(table)
    assert "40 images do not determine" in info_of(table)["void"]
    assert table["outlier"].to_pylist() == [False] * SOUND + [True] * ODD


def test_what_nothing_can_tell_is_not_told() -> None:
    table = score_dataset(Wide(), TensorDataset(planted()[:6]), options=EXACT, settings=QUICK)
    assert table["knn"].null_count == 6
    assert table["outlier"].to_pylist() == [None] * 6  # not false
    stream = io.StringIO()
    Console(width=200, file=stream).print(closing_table(table, info_of(table)["rank_by"]))
    assert "cannot be said of 6 images" in stream.getvalue()


class Brightness(Detector):
    """A detector of somebody's own."""

    name = "brightness"
    least_reference = 2

    def fit(self, reference: Reference) -> Brightness:
        self.count = len(reference.embeddings)
        return self

    def score(self, data: ScoredSet) -> Tensor:
        return -data.images.flatten(1).mean(1).double() - self.count


class Failing(Brightness):
    name = "failing"

    def score(self, data: ScoredSet) -> Tensor:
        raise RuntimeError("no such luck")


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_of_the_registry_has_a_column_or_a_reason(name: str) -> None:
    asked = [name] if name not in {each.name for each in choose_detectors()} else []
    tables = [
        score_dataset(
            Wide(), TensorDataset(planted(count)), options=EXACT, settings=QUICK, detectors=asked
        )
        for count in (140, SOUND)
    ]
    detector = DETECTORS[name]
    assert tables[0][name].null_count == 0
    assert {"combined", "jepa_score", "log_density", "log_prior"} <= set(tables[0].column_names)
    # Of 44 images at most 22 are scored, and 11 learned from.
    learns, info = detector.least_examples > 0, info_of(tables[1])
    assert (tables[1][name].null_count > 0) is (detector.by_law or learns)
    assert (name in info["left_out"]) is detector.by_law
    assert (name in info["missing"]) is learns
    if learns:
        reason = f"it takes {2 * detector.least_examples} scored images of the reference"
        assert info["missing"][name].startswith(reason)


def test_a_detector_of_ones_own_ranks_and_tells_outliers(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_folder(tmp_path / "data", 20)
    Image.new("RGB", (9, 9), "white").save(tmp_path / "data" / "a" / "white.png")
    out = str(tmp_path / "s.jsonl")
    words = [
        "score", "--model", "cli_helpers:encoder", "--data", str(tmp_path / "data"), "--out", out,
        "--polarity-samples", "0", "--detectors", "test_verdict:Brightness",
    ]  # fmt: skip
    assert main([*words, "--rank-by", "brightness", "--outlier-by", "brightness"]) == 0
    printed = capsys.readouterr().out
    assert printed.index("least likely") < printed.index("a/white.png")
    table = read_table(out)
    scores = dict(zip(table["path"].to_pylist(), table["brightness"].to_pylist(), strict=True))
    assert scores["a/white.png"] == pytest.approx(-1 - 21)
    assert min(scores, key=lambda path: scores[path]) == "a/white.png"
    odd = dict(zip(table["path"].to_pylist(), table["outlier"].to_pylist(), strict=True))
    assert odd["a/white.png"]
    assert '"rank_by":"brightness"' in report(out).read_text()
    assert main([*words, "--overwrite", "--rank-by", "brightnes"]) == 2
    assert "--rank-by must be one of jepa_score" in capsys.readouterr().err
    words[-1] = "test_verdict:Failing"
    assert main([*words, "--overwrite"]) == 2
    assert "--detectors: failing has failed: RuntimeError: no such luck" in capsys.readouterr().err
