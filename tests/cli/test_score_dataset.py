"""A scored data set: every column against an independent computation; names and options."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pyarrow as pa
import pytest
import torch
from cli_helpers import Small, make_folder, transform
from helpers import float64_score
from PIL import Image
from scipy.stats import median_abs_deviation, rankdata
from sklearn.neighbors import NearestNeighbors
from torch.utils.data import TensorDataset

from jepa_monitor import ScoreOptions
from jepa_monitor.cli import Settings, info_of, read_table, score_dataset
from jepa_monitor.gaussian import Gaussian

EXACT = ScoreOptions(method="exact")
QUICK = Settings(batch_size=4, polarity_samples=0)


def images_of(table: pa.Table, root: pathlib.Path) -> torch.Tensor:
    paths = table["path"].to_pylist()
    return torch.stack([transform(Image.open(root / p).convert("RGB")) for p in paths])


def column(table: pa.Table, name: str) -> np.ndarray:
    return table[name].to_numpy()


def test_every_column_against_an_independent_computation(tmp_path: pathlib.Path) -> None:
    make_folder(tmp_path / "data", 24)
    table = score_dataset(
        Small(), str(tmp_path / "data"), transform=transform, options=EXACT, settings=QUICK
    )
    assert table["path"].to_pylist() == sorted(
        str(p.relative_to(tmp_path / "data")) for p in (tmp_path / "data").rglob("*.png")
    )
    assert table["label"].to_pylist() == [p[0] for p in table["path"].to_pylist()]
    images = images_of(table, tmp_path / "data")
    score = float64_score(Small(), images)
    assert column(table, "jepa_score") == pytest.approx(score.numpy(), abs=1e-4)

    with torch.no_grad():
        z = Small().double()(images.double()).numpy()
    law = Gaussian.fit(torch.from_numpy(z))  # tested by itself, against scikit-learn
    covariance = law.covariance.numpy()
    centred = z - z.mean(0)
    squared = np.einsum("ni,ij,nj->n", centred, np.linalg.inv(covariance), centred)
    assert column(table, "mahalanobis") == pytest.approx(-squared, rel=1e-3)
    prior = -0.5 * (squared + np.linalg.slogdet(2 * np.pi * covariance)[1])
    assert column(table, "log_prior") == pytest.approx(prior, abs=1e-2)
    assert column(table, "log_density") == pytest.approx(score.numpy() + prior, abs=1e-2)

    others = NearestNeighbors(n_neighbors=11).fit(z).kneighbors(z)[0]  # the first: the image itself
    assert column(table, "knn") == pytest.approx(-others[:, 10], rel=1e-4)
    expected = rankdata(score.numpy()) / len(score)
    assert column(table, "quantile") == pytest.approx(expected)


def test_outliers_lie_under_the_robust_fence() -> None:
    images = torch.rand(40, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    images[7] *= 30  # saturates the encoder: a Jacobian near 0
    settings = Settings(polarity_samples=0, outlier_by="log_density", fence=2.5)
    table = score_dataset(Small(), TensorDataset(images), options=EXACT, settings=settings)
    density = column(table, "log_density")
    fence = np.median(density) - 2.5 * 1.4826 * median_abs_deviation(density)
    assert table["outlier"].to_pylist() == (density < fence).tolist()
    assert table["outlier"].to_pylist()[7]
    table = score_dataset(Small(), TensorDataset(images), options=EXACT, settings=QUICK)
    distance = column(table, "mahalanobis")
    fence = np.median(distance) - 3 * 1.4826 * median_abs_deviation(distance)
    assert table["outlier"].to_pylist() == (distance < fence).tolist()


def test_reference_of_other_images(tmp_path: pathlib.Path) -> None:
    generator = torch.Generator().manual_seed(0)
    data, reference = torch.rand(2, 30, 3, 6, 6, generator=generator).double().unbind()
    table = score_dataset(
        Small().double(),
        TensorDataset(data),
        reference=TensorDataset(reference),
        options=EXACT,
        settings=QUICK,
    )
    with torch.no_grad():
        z, base = (Small().double()(x).numpy() for x in (data, reference))
    distances = NearestNeighbors(n_neighbors=10).fit(base).kneighbors(z)[0]
    assert column(table, "knn") == pytest.approx(-distances[:, 9], rel=1e-6)


def test_limit_is_spread_over_the_classes(tmp_path: pathlib.Path) -> None:
    make_folder(tmp_path / "data", 20)
    settings = Settings(limit=6, polarity_samples=0)
    table = score_dataset(Small(), str(tmp_path / "data"), transform=transform, settings=settings)
    assert table["label"].to_pylist() == ["a"] * 3 + ["b"] * 3


def test_polarity_and_precondition_are_told() -> None:
    images = torch.rand(40, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    settings = Settings(polarity_samples=6)
    info = info_of(score_dataset(Small(), TensorDataset(images), options=EXACT, settings=settings))
    assert 0 <= info["density/polarity"] <= 1
    assert info["density/precondition"] in (0.0, 1.0)
    assert info["method"] == "exact, 8 rows"


def test_not_finite_scores_are_missing_and_counted() -> None:
    class Broken(Small):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            odd = images.flatten(1).sum(1, keepdim=True) > 1e3
            return super().forward(images) * torch.where(odd, torch.nan, 1.0)

    images = torch.rand(20, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    images[4] *= 1e4
    table = score_dataset(Broken(), TensorDataset(images), options=EXACT, settings=QUICK)
    assert len(table) == 20
    for name in ("jepa_score", "log_density", "knn", "mahalanobis", "quantile"):
        assert [i for i, v in enumerate(table[name].to_pylist()) if v is None] == [4], name
    assert table["outlier"].to_pylist()[4] is False


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_formats_come_back_as_they_were(tmp_path: pathlib.Path, suffix: str) -> None:
    make_folder(tmp_path / "data", 6, ("x, y", 'line\nbreak"'))
    out = tmp_path / f"scores{suffix}"
    table = score_dataset(Small(), str(tmp_path / "data"), out, transform=transform, settings=QUICK)
    back = read_table(out)
    assert info_of(back) == info_of(table)
    for name in table.column_names:
        if name == "note":  # an empty text and none are one thing in CSV
            continue
        assert back[name].to_pylist() == pytest.approx(table[name].to_pylist(), nan_ok=True), name


def test_npz_and_lists(tmp_path: pathlib.Path) -> None:
    make_folder(tmp_path / "data", 6)
    names = sorted(str(p.relative_to(tmp_path)) for p in (tmp_path / "data").rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(tmp_path / name)) for name in names])
    labels, classes = np.array([0, 0, 0, 1, 1, 1]), np.array(["a", "b"])
    np.savez(tmp_path / "d.npz", test_images=pixels, test_labels=labels, classes=classes)
    (tmp_path / "d.txt").write_text("\n".join(names))
    (tmp_path / "d.csv").write_text("path,label\n" + "".join(f"{n},{n[5]}\n" for n in names))
    lines = [json.dumps({"path": name, "label": name[5]}) for name in names]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    tables = {
        name: score_dataset(Small(), str(tmp_path / name), transform=transform, settings=QUICK)
        for name in ("data", "d.npz:test", "d.txt", "d.csv", "d.jsonl")
    }
    for name, table in tables.items():
        assert column(table, "jepa_score") == pytest.approx(column(tables["data"], "jepa_score"))
        if name != "d.txt":
            assert table["label"].to_pylist() == ["a"] * 3 + ["b"] * 3, name
    assert tables["d.npz:test"]["path"].to_pylist()[2] == "d.npz:test_images[2]"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone", None, "does not exist"),
        ("d.xyz", b"1", "neither of them"),
        ("d.csv", b"name\nx\n", "has no `path`"),
        ("d.jsonl", b"{", "cannot be read"),
        ("d.txt", b"a.png\na.png\n", "names 'a.png' more than once"),
        ("d.txt", b"", "there are no images"),
        ("d.npz:test", None, "there is no file"),
    ],
)
def test_data_that_are_none(
    tmp_path: pathlib.Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        score_dataset(Small(), str(tmp_path / name), transform=transform)


def test_settings_are_checked() -> None:
    for wrong, message in [
        ({"limit": 0}, "`limit` must be at least 1"),
        ({"batch_size": "big"}, "`batch_size` must be one of auto"),
        ({"rank_by": "label"}, "`rank_by` must be one of jepa_score"),
        ({"outlier_by": "label"}, "`outlier_by` must be one of jepa_score"),
        ({"fence": 0.0}, "`fence` must be finite and above 0"),
        ({"workers": -1}, "`workers` must be at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            Settings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`out` must end in one of"):
        score_dataset(Small(), TensorDataset(torch.rand(3, 3, 6, 6)), "scores.txt")
    with pytest.raises(TypeError, match="`data` must be a path or a map-style data set"):
        score_dataset(Small(), 3)
    with pytest.raises(TypeError, match="there is no `transform`"):
        score_dataset(Small(), [Image.new("RGB", (6, 6))] * 3)
