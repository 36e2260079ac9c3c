"""A scored data set: every column against an independent computation; names and options."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np
import pyarrow as pa
import pytest
import torch
from cli_helpers import Small, attempt, make_folder, transform
from helpers import float64_score
from PIL import Image
from scipy.stats import median_abs_deviation, rankdata
from sklearn.neighbors import NearestNeighbors
from torch.utils.data import TensorDataset

from jepa_monitor import ScoreOptions
from jepa_monitor.cli import Settings, info_of, read_table, score_dataset
from jepa_monitor.cli.sources import open_source
from jepa_monitor.functional.gaussian import Gaussian

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
    # Of 24 images no detector can learn, and the next best ranks them.
    expected = rankdata(column(table, "log_density")) / len(score)
    assert column(table, "quantile") == pytest.approx(expected)
    assert table["combined"].null_count == table["p_value"].null_count == len(table)


def test_singular_values_below_the_noise_floor_are_counted() -> None:
    class Flat(Small):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            embeddings = super().forward(images)
            return torch.cat([embeddings[:, :5], embeddings[:, :3]], 1)  # K = 8 of rank 5

    images = torch.rand(12, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    table = score_dataset(Flat(), TensorDataset(images), options=EXACT, settings=QUICK)
    assert table["below_noise_floor"].to_pylist() == [3] * 12
    table = score_dataset(Small(), TensorDataset(images), options=EXACT, settings=QUICK)
    assert table["below_noise_floor"].to_pylist() == [0] * 12


@pytest.mark.parametrize("changes", [{"batch_size": "auto"}, {"batch_size": 20}, {"workers": 2}])
def test_batches_and_workers_do_not_change_the_rows(
    tmp_path: pathlib.Path, changes: dict[str, object]
) -> None:
    make_folder(tmp_path, 18)
    (tmp_path / "a" / "bad.png").write_bytes(b"bad")

    def table(settings: Settings) -> pa.Table:
        return score_dataset(
            Small(), str(tmp_path), transform=transform, options=EXACT, settings=settings
        )

    expected, found = table(QUICK), table(dataclasses.replace(QUICK, **changes))
    for name in expected.column_names:
        if expected[name].type == pa.float64():
            close = pytest.approx(column(expected, name), abs=1e-4, nan_ok=True)
            assert column(found, name) == close, name
        else:
            assert found[name].equals(expected[name]), name


def test_a_device_that_is_not_there() -> None:
    for device in ("nonsense", "cuda:99"):
        settings = Settings(device=device)
        with pytest.raises(ValueError, match=f"`device` '{device}' cannot be used"):
            score_dataset(Small(), TensorDataset(torch.rand(3, 3, 6, 6)), settings=settings)


def test_outliers_lie_under_the_robust_fence() -> None:
    images = torch.rand(40, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    images[7] *= 30  # saturates the encoder: a Jacobian near 0
    table = score_dataset(Small(), TensorDataset(images), options=EXACT, settings=QUICK)
    density = column(table, "log_density")
    fence = np.median(density) - 5 * 1.4826 * median_abs_deviation(density)
    assert table["outlier"].to_pylist() == (density < fence).tolist()
    assert table["outlier"].to_pylist()[7]
    settings = Settings(polarity_samples=0, outlier_by="mahalanobis", fence=2.5)
    table = score_dataset(Small(), TensorDataset(images), options=EXACT, settings=settings)
    distance = column(table, "mahalanobis")
    fence = np.median(distance) - 2.5 * 1.4826 * median_abs_deviation(distance)
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
    assert info["density/precondition_needed"] > 40  # so that of 40 images it cannot be said
    assert "density/precondition" not in info
    assert 0 < info["density/normality_p"] <= 1
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
        if name in ("note", "quality", "reason"):  # an empty text and none are one thing in CSV
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


def test_lists_of_spreadsheets_and_of_odd_names(tmp_path: pathlib.Path) -> None:
    make_folder(tmp_path, 1, ("a",))
    odd = ["a/000.png", "a/\u2028line\x0b.png", " spaced .png", "a,b.png", 'quoted".png', "#a.png"]
    for name in odd[1:]:
        (tmp_path / name).write_bytes((tmp_path / odd[0]).read_bytes())
    (tmp_path / "d.txt").write_bytes("\ufeff".encode() + "\r\n".join([*odd, ""]).encode())
    quoted = ['"' + name.replace('"', '""') + '"' for name in odd]
    rows = "".join(f"1,{name},x\r\n" for name in quoted)
    (tmp_path / "d.csv").write_bytes(("\ufeffid,path,label\r\n" + rows).encode())
    lines = "\n\n".join(json.dumps({"label": 3, "path": name}) for name in odd)
    (tmp_path / "d.jsonl").write_bytes(("\ufeff" + lines).encode())
    for name, label in (("d.txt", None), ("d.csv", "x"), ("d.jsonl", "3")):
        source = open_source(str(tmp_path / name), 10_000)
        assert [source.key(i) for i in range(len(source))] == odd, name
        assert {source.label(i) for i in range(len(source))} == {label}
        assert all(not isinstance(attempt(source, i), str) for i in range(len(source))), name


def test_names_that_no_file_can_have_are_skipped(tmp_path: pathlib.Path) -> None:
    make_folder(tmp_path, 1, ("a",))
    names = ["a/000.png", "a\0b.png", "half\ud800.png", "a", "x" * 5000]
    lines = "\n".join(json.dumps({"path": name}) for name in names)
    (tmp_path / "d.jsonl").write_text(lines)
    source = open_source(str(tmp_path / "d.jsonl"), 10_000)
    found = [attempt(source, i) for i in range(5)]
    assert not isinstance(found[0], str)
    for problem, reason in zip(
        found[1:],
        ("null byte", "is not UTF-8", "is no ordinary file", "name too long"),
        strict=True,
    ):
        assert reason in problem.lower() if reason == "name too long" else reason in problem
    assert source.key(2) == "half\\ud800.png"
    source.fingerprint()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone", None, "does not exist"),
        ("d.xyz", b"1", "none of them"),
        ("d.jsonl", b"[1]", "entry 1 of .* has no `path`"),
        ("d.jsonl", b'{"path": 3}', "entry 1 of .* has no `path`"),
        ("d.jsonl", b"[" * 100_000, "cannot be read"),
        ("d.csv", b"path\n\xff\n", "cannot be read"),
        ("d.csv", b'path\n"' + b"x" * 200_000, "cannot be read: field larger"),
        ("d.npz", b"no archive", "cannot be read"),
        ("d.npz", b"PK\x03\x04" + bytes(60), "cannot be read"),
        (
            "d.npz",
            b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': (0,)}",
            "cannot be read",
        ),
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


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"other": np.zeros(3)}, "has no array images or x or X, but other"),
        ({"images": np.zeros((2, 4, 4))}, "must hold uint8 images .* got float64"),
        ({"images": np.zeros((2, 4, 4, 2), np.uint8)}, "of shape"),
        ({"images": np.array([{}])}, "allow_pickle"),
        ({"labels": np.zeros(3)}, "2 images, but labels of shape"),
        ({"labels": np.array([0, 2]), "classes": np.array(["a", "b"])}, "integers from 0 to 1"),
        ({"labels": np.array(["a", "b"]), "classes": np.array(["a", "b"])}, "integers from 0 to 1"),
    ],
)
def test_arrays_that_are_no_images(
    tmp_path: pathlib.Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    if "labels" in arrays:
        arrays = {"images": np.zeros((2, 4, 4), np.uint8)} | arrays
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        open_source(str(tmp_path / "d.npz"), 10_000)


def test_settings_are_checked() -> None:
    for wrong, message in [
        ({"limit": 0}, "`limit` must be at least 1"),
        ({"batch_size": "big"}, "`batch_size` must be a number of images or auto"),
        ({"fence": 0.0}, "`fence` must be finite and above 0"),
        ({"workers": -1}, "`workers` must be at least 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            Settings(**wrong)  # type: ignore[arg-type]
    for name in ("rank_by", "outlier_by"):
        settings = Settings(**{name: "label"})  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"`{name}` must be one of jepa_score"):
            score_dataset(Small(), TensorDataset(torch.rand(3, 3, 6, 6)), settings=settings)
    with pytest.raises(ValueError, match="`out` must end in one of"):
        score_dataset(Small(), TensorDataset(torch.rand(3, 3, 6, 6)), "scores.txt")
    with pytest.raises(TypeError, match="`data` must be a path or a map-style data set"):
        score_dataset(Small(), 3)
    with pytest.raises(TypeError, match="there is no `transform`"):
        score_dataset(Small(), [Image.new("RGB", (6, 6))] * 3)
