"""Maps beside a table of scores: of the oddest images, true to a float64 SVD, and shown on the page."""

from __future__ import annotations

import base64
import io
import json
import pathlib
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from cli_helpers import SIDE, Small, make_folder, transform
from matplotlib import colormaps
from PIL import Image
from torch import Tensor, nn

from jepa_monitor import ScoreOptions
from jepa_monitor.cli import Settings, compare, read_table, report, score_dataset
from jepa_monitor.cli.tables import write_table

EXACT = ScoreOptions(method="exact")


def scored(folder: pathlib.Path, encoder: nn.Module | None = None, **how: Any) -> pa.Table:
    make_folder(folder / "data", 20)
    settings = Settings(polarity_samples=0, rank_by="jepa_score", outlier_by="jepa_score", **how)
    place = folder / "s.parquet"
    return score_dataset(
        encoder or Small(), str(folder / "data"), place, transform=transform, options=EXACT,
        settings=settings,
    )  # fmt: skip


def content(page: pathlib.Path) -> dict[str, Any]:
    found = re.search(r'type="application/json">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])


def opened(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


def relative_map(image: Tensor) -> np.ndarray[Any, Any]:
    encoder = Small().double()
    found = torch.autograd.functional.jacobian(lambda x: encoder(x[None])[0], image.double())
    vectors = torch.linalg.svd(found.flatten(1), full_matrices=False).Vh
    each = vectors.square().sum(0).reshape(3, SIDE, SIDE).sum(0)
    return (each / each.mean()).detach().numpy()


def test_the_least_likely_images_have_the_maps_of_a_float64_svd(tmp_path: pathlib.Path) -> None:
    table = scored(tmp_path, leverage_maps=5, fence=100.0)
    assert not any(table["outlier"].to_pylist())
    with np.load(tmp_path / "s.maps.npz") as arrays:
        paths, shares, seen = (arrays[name] for name in ("paths", "shares", "seen"))
    order = np.argsort(table["jepa_score"].to_numpy())[:5]
    assert paths.tolist() == [table["path"].to_pylist()[i] for i in order]
    for path, share in zip(paths, shares, strict=True):
        image = transform(Image.open(tmp_path / "data" / path))
        np.testing.assert_allclose(share, relative_map(image), rtol=1e-3, atol=1e-4)
    assert seen.shape == (5, 3, SIDE, SIDE)


def test_outliers_have_maps_too(tmp_path: pathlib.Path) -> None:
    table = scored(tmp_path, leverage_maps=4, fence=0.1)
    values = table["jepa_score"].to_numpy()
    odd = [i for i in np.argsort(values) if table["outlier"].to_pylist()[i]]
    assert len(odd) > 4
    with np.load(tmp_path / "s.maps.npz") as arrays:
        assert arrays["paths"].tolist() == [table["path"].to_pylist()[i] for i in odd[:4]]


def test_the_page_shows_them_side_by_side_with_a_scale(tmp_path: pathlib.Path) -> None:
    table = scored(tmp_path, leverage_maps=6)
    data = content(report(str(tmp_path / "s.parquet")))
    maps = data["maps"]
    values = [table["jepa_score"].to_pylist()[pair["row"]] for pair in maps["pairs"]]
    assert len(values) == 6
    assert values == sorted(values)  # the least likely first
    with np.load(tmp_path / "s.maps.npz") as arrays:
        shares = dict(zip(arrays["paths"].tolist(), arrays["shares"], strict=True))
    assert maps["top"] == pytest.approx(max(2, np.quantile(np.stack([*shares.values()]), 0.995)))
    for pair in maps["pairs"]:
        path = data["columns"]["path"][pair["row"]]
        drawn = np.asarray(opened(pair["map"]).convert("RGB"), dtype=float)
        expected = 255 * colormaps["viridis"](shares[path] / maps["top"])[..., :3]
        assert np.abs(drawn - expected).max() < 4  # one of 256 colours
        photo = opened(pair["seen"])
        assert photo.size == (SIDE, SIDE)
        assert photo.mode == "RGB"
    assert opened(maps["scale"]).size == (256, 1)
    assert data["notes"] == []


def test_large_images_are_kept_small_and_their_shares_as_they_are(tmp_path: pathlib.Path) -> None:
    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            generator = torch.Generator().manual_seed(0)
            self.weight = nn.Parameter(torch.randn(200 * 100, 4, generator=generator))

        def forward(self, images: Tensor) -> Tensor:
            return torch.tanh(images.flatten(1) @ self.weight / 100)

    images = torch.rand(14, 1, 200, 100, generator=torch.Generator().manual_seed(1))
    dataset = torch.utils.data.TensorDataset(images)

    class Named(torch.utils.data.Dataset[Tensor]):
        def __len__(self) -> int:
            return len(dataset)

        def __getitem__(self, index: int) -> Tensor:
            return dataset[index][0]

    score_dataset(
        Large(), Named(), tmp_path / "s.parquet", options=EXACT, transform=None,
        settings=Settings(polarity_samples=0, leverage_maps=2),
    )  # fmt: skip
    with np.load(tmp_path / "s.maps.npz") as arrays:
        assert arrays["shares"].shape == (2, 96, 48)
        assert arrays["seen"].shape == (2, 1, 96, 48)
        np.testing.assert_allclose(arrays["shares"].mean((1, 2)), 1, rtol=0.1)
    maps = content(report(str(tmp_path / "s.parquet")))["maps"]
    assert opened(maps["pairs"][0]["seen"]).mode == "L"


def test_none_are_made_where_none_are_asked_for_and_old_ones_go(tmp_path: pathlib.Path) -> None:
    (tmp_path / "s.maps.npz").write_bytes(b"of an earlier table")
    scored(tmp_path, leverage_maps=0)
    assert not (tmp_path / "s.maps.npz").exists()
    data = content(report(str(tmp_path / "s.parquet")))
    assert data["maps"]["pairs"] == []
    assert data["notes"] == []
    with pytest.raises(ValueError, match="`leverage_maps` must be at least 0, got -1"):
        Settings(leverage_maps=-1)
    with pytest.raises(TypeError, match=r"`leverage_maps` must be an integer, got 1\.5"):
        Settings(leverage_maps=1.5)  # type: ignore[arg-type]


def test_a_map_that_fails_costs_no_score(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise MemoryError("one image does not fit into memory")

    monkeypatch.setattr("jepa_monitor.cli.leverage.leverages", failing)
    table = scored(tmp_path)
    assert len(table) == 20
    data = content(report(str(tmp_path / "s.parquet")))
    assert data["maps"]["pairs"] == []
    assert data["notes"] == ["No maps of pixels: MemoryError: one image does not fit into memory."]


def test_maps_that_do_not_fit_the_table_or_are_damaged(tmp_path: pathlib.Path) -> None:
    table = scored(tmp_path, leverage_maps=6)
    write_table(table.slice(0, 3), tmp_path / "s.parquet")
    pairs = content(report(str(tmp_path / "s.parquet")))["maps"]["pairs"]
    assert all(pair["row"] < 3 for pair in pairs)
    place = tmp_path / "s.maps.npz"
    place.write_bytes(place.read_bytes()[:100])
    data = content(report(str(tmp_path / "s.parquet")))
    assert data["maps"]["pairs"] == []
    assert data["notes"][0].startswith("No maps of pixels: s.maps.npz cannot be read")


def test_a_comparison_has_no_maps(tmp_path: pathlib.Path) -> None:
    scored(tmp_path)
    place = str(tmp_path / "s.parquet")
    compare(place, place, page=str(tmp_path / "c.html"))
    assert content(tmp_path / "c.html")["maps"]["pairs"] == []
    assert len(read_table(place)) == 20
