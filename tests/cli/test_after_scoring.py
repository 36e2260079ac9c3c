"""What is done with a table: the page, the comparison, the lists."""

from __future__ import annotations

import json
import pathlib
import re

import numpy as np
import pyarrow as pa
import pytest
from cli_helpers import Small, make_folder, transform
from PIL import Image
from scipy.stats import spearmanr

from jepa_monitor.cli import (
    Settings,
    compare,
    curate,
    read_table,
    report,
    score_dataset,
    select,
)
from jepa_monitor.cli.entry import main
from jepa_monitor.cli.tables import write_table

NASTY = "<img src=x onerror=alert(1)>&\"'.png"


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("scored")
    make_folder(root / "data", 20, ("a", "b"))
    (root / "data" / "a" / NASTY).write_bytes((root / "data" / "a" / "000.png").read_bytes())
    score_dataset(
        Small(), str(root / "data"), root / "s.parquet", transform=transform,
        settings=Settings(polarity_samples=0),
    )  # fmt: skip
    return root / "s.parquet"


def made(count: int = 20, seed: int = 0, shift: int = 0) -> pa.Table:
    values = np.random.default_rng(seed).normal(size=count)
    paths = [f"{i + shift}.png" for i in range(count)]
    return pa.table(
        {"path": paths, "label": [str(i % 2) for i in range(count)], "jepa_score": values}
    )


def content(page: pathlib.Path) -> dict:  # type: ignore[type-arg]
    found = re.search(r'type="application/json">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])


def test_page_holds_everything_and_needs_nothing(
    scored: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    page = report(str(scored), str(tmp_path / "page.html"), images=3)
    text, data, table = page.read_text(), content(page), read_table(scored)
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", text)
    assert NASTY not in text
    assert data["columns"]["path"] == table["path"].to_pylist()
    assert f"a/{NASTY}" in data["columns"]["path"]
    assert all(thumb.startswith("data:image/jpeg;base64,") for thumb in data["thumbs"])
    scores = table["log_density"].to_numpy()  # of 21 images nothing learns
    for sheet in data["sheets"]:
        rows = [i for i, label in enumerate(table["label"].to_pylist()) if label == sheet["name"]]
        expected = [rows[i] for i in np.argsort(scores[rows])]
        assert sheet["ends"] == [expected[:3], expected[::-1][:3]]
    for spread in data["classes"]:
        mine = scores[[label == spread["name"] for label in table["label"].to_pylist()]]
        assert spread["levels"] == pytest.approx(np.percentile(mine, [5, 25, 50, 75, 95]))


def test_page_finds_images_beside_the_table_and_says_when_they_changed(
    scored: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "elsewhere"
    home.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (12, 6, 6, 3), dtype=np.uint8)
    np.savez(home / "set.npz", images=images)
    quick = Settings(polarity_samples=0)
    name, out = str(home / "set.npz"), home / "s.parquet"
    score_dataset(Small(), name, out, transform=transform, settings=quick)
    data = content(report(str(out)))
    assert None not in data["thumbs"]
    assert data["notes"] == []
    data = content(report(str(out), thumbnails=5))
    assert sum(thumb is not None for thumb in data["thumbs"]) == 5
    assert data["notes"] == ["Pictures of 5 of them (--thumbnails)."]
    np.savez(home / "set.npz", images=255 - images)
    assert "has changed since it was scored" in content(report(str(out)))["notes"][0]
    (home / "set.npz").unlink()
    data = content(report(str(out)))
    assert data["thumbs"] == [None] * 12
    assert data["notes"] == [
        "No pictures: set.npz:images is not here. `--data` says where the images are."
    ]


def test_page_of_a_table_whose_images_are_gone(tmp_path: pathlib.Path) -> None:
    write_table(made(), tmp_path / "s.csv")
    data = content(report(str(tmp_path / "s.csv")))
    assert data["thumbs"] == [None] * 20
    assert "outlier" not in data["columns"]
    with pytest.raises(ValueError, match="'nowhere' does not exist"):
        report(str(tmp_path / "s.csv"), data="nowhere")
    with pytest.raises(ValueError, match="`rank_by` must be one of jepa_score"):
        report(str(tmp_path / "s.csv"), rank_by="knn")


def test_a_page_of_a_sample_holds_all_outliers(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jepa_monitor.cli.page._ROWS", 10)
    table = made(200)
    ranks = np.argsort(np.argsort(table["jepa_score"].to_numpy()))
    odd = np.isin(ranks, [3, 60, 100, 101, 150])  # by another score than the one that sorts
    write_table(table.append_column("outlier", pa.array(odd)), tmp_path / "s.parquet")
    data = content(report(str(tmp_path / "s.parquet"), images=2))
    held = dict(zip(data["columns"]["path"], data["columns"]["outlier"], strict=True))
    paths = table["path"].to_pylist()
    assert {path for path, is_odd in held.items() if is_odd} == {
        paths[i] for i in np.flatnonzero(odd)
    }
    assert {paths[i] for i in np.flatnonzero(ranks < 10)} <= held.keys()
    assert data["total"] == 200
    assert f"The page holds {len(held)} of 200 images, all outliers among them." in data["notes"]
    # What the buttons save says in its name and below them what it covers.
    text = (tmp_path / "s.html").read_text()
    assert "all outliers among ${data.total} scored images" in text
    assert "images in this page${sample}" in text


def test_the_page_lists_files_that_were_skipped_or_converted(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path / "data", 6)
    make_folder(tmp_path / "other", 4)
    (tmp_path / "data" / "a" / NASTY).write_bytes(b"no image")
    (tmp_path / "data" / "b" / "empty.png").write_bytes(b"")
    (tmp_path / "other" / "b" / "gone.png").symlink_to("nowhere")
    Image.new("CMYK", (9, 9)).save(tmp_path / "data" / "a" / "cmyk.jpg")
    out = str(tmp_path / "s.csv")
    score_dataset(
        Small(), str(tmp_path / "data"), out, reference=str(tmp_path / "other"),
        transform=transform, settings=Settings(polarity_samples=0),
    )  # fmt: skip
    skipped, converted = content(report(out))["files"]
    assert skipped["total"] == 3
    assert {path for path, _ in skipped["rows"]} == {f"a/{NASTY}", "b/empty.png", "b/gone.png"}
    reasons = dict(skipped["rows"])
    assert reasons["b/empty.png"] == "is empty (0 bytes)"
    assert reasons["b/gone.png"].endswith("(in the reference)")
    assert converted["rows"] == [["a/cmyk.jpg", "CMYK without its colour profile"]]
    monkeypatch.setattr("jepa_monitor.cli.page._FILES", 2)
    skipped, _ = content(report(out))["files"]
    assert (skipped["total"], len(skipped["rows"])) == (3, 2)
    make_folder(tmp_path / "good", 4)
    score_dataset(
        Small(), str(tmp_path / "good"), tmp_path / "g.csv", transform=transform,
        settings=Settings(polarity_samples=0),
    )  # fmt: skip
    assert content(report(str(tmp_path / "g.csv")))["files"] == []


def test_comparison_against_scipy(tmp_path: pathlib.Path) -> None:
    first, second = made(30), made(30, seed=1, shift=5)
    write_table(first, tmp_path / "a.parquet")
    write_table(second, tmp_path / "b.parquet")
    found = compare(str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet"))
    x, y = first["jepa_score"].to_numpy()[5:], second["jepa_score"].to_numpy()[:25]
    facts = dict(found.facts)
    assert facts["images in common"] == "25 of 30 and 30"
    assert facts["Spearman correlation"] == f"{spearmanr(x, y).statistic:.3f}"
    ranks = [np.argsort(np.argsort(v)) + 1 for v in (x, y)]
    largest = np.abs(ranks[1] - ranks[0]).max() / 25
    assert abs(found.table["difference"].to_pylist()[0]) == pytest.approx(largest)
    page = tmp_path / "page.html"
    compare(str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet"), page=str(page))
    data, change = content(page), (ranks[1] - ranks[0]) / 25
    assert [list(fact) for fact in found.facts] == data["facts"][3:]
    numbers = {f"{i + 5}.png": change[i] for i in range(25)}
    columns = data["columns"]
    shown = dict(zip(columns["path"], columns["difference"], strict=True))
    assert shown == pytest.approx(numbers)
    for sheet in data["sheets"]:
        rows = [i for i, label in enumerate(columns["label"]) if label == sheet["name"]]
        mine = [columns["difference"][i] for i in rows]
        first, second = ([columns["difference"][i] for i in end] for end in sheet["ends"])
        count = (len(rows) + 1) // 2
        assert first == sorted(mine)[: min(count, 8)]
        assert second == sorted(mine)[count:][::-1][:8]
    write_table(made(3, shift=100), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match="at least 3 scored images in common, got 0"):
        compare(str(tmp_path / "a.parquet"), str(tmp_path / "c.parquet"))


def test_selection_by_quantile_class_and_budget() -> None:
    table = made(40)
    values = table["jepa_score"].to_numpy()
    order = np.argsort(values)
    assert select(table, low=0.05) == sorted(order[2:].tolist())
    assert select(table, high=0.1) == sorted(order[:4].tolist())
    assert select(table) == list(range(40))
    halves = [[i for i in order.tolist() if i % 2 == c] for c in (0, 1)]
    assert select(table, low=0.1, by_class=True) == sorted(halves[0][2:] + halves[1][2:])
    chosen = select(table, budget=4)
    assert sorted(order.tolist().index(i) for i in chosen) == [5, 15, 25, 35]
    assert len(select(table, budget=3, by_class=True)) == 6
    for wrong in ({"low": 1.5}, {"low": 0.5, "high": 0.5}, {"budget": 0}, {"rank_by": "path"}):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}`"):
            select(table, **wrong)  # type: ignore[arg-type]


def test_lists_are_read_again_and_nothing_is_deleted(
    scored: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    before = sorted((scored.parent / "data").rglob("*"))
    table = read_table(scored)
    order = np.argsort(table["log_density"].to_numpy(), kind="stable")
    for name in ("keep.csv", "keep.jsonl", "keep.txt"):
        assert curate(str(scored), str(tmp_path / name), low=0.2) == 17
        again = score_dataset(
            Small(), str(tmp_path / name), transform=transform,
            settings=Settings(polarity_samples=0),
        )  # fmt: skip
        kept = [str(scored.parent / "data" / table["path"][int(i)].as_py()) for i in order[4:]]
        assert sorted(again["path"].to_pylist()) == sorted(kept)
    assert curate(str(scored), str(tmp_path / "drop"), low=0.2, drop=True) == 4
    links = [p for p in (tmp_path / "drop").rglob("*") if p.is_symlink()]
    expected = {scored.parent / "data" / table["path"][int(i)].as_py() for i in order[:4]}
    assert {link.resolve() for link in links} == {path.resolve() for path in expected}
    assert sorted((scored.parent / "data").rglob("*")) == before
    with pytest.raises(ValueError, match="is not empty"):
        curate(str(scored), str(tmp_path / "drop"), low=0.2)
    with pytest.raises(ValueError, match=r"`out` must end in one of \.txt"):
        curate(str(scored), str(tmp_path / "drop.zip"))
    with pytest.raises(ValueError, match="there is no file"):
        curate(str(scored), str(tmp_path / "x.txt"), data=str(tmp_path))


@pytest.mark.parametrize("name", ["../beside.png", "{root}/absolute.png", "a/../../up.png"])
def test_links_that_would_lie_outside_are_refused_with_nothing_written(
    tmp_path: pathlib.Path, name: str
) -> None:
    make_folder(tmp_path / "lists" / "a", 3, ("c",))
    name = name.format(root=tmp_path)
    place = tmp_path / "lists" / name
    place.write_bytes((tmp_path / "lists" / "a" / "c" / "000.png").read_bytes())
    names = [f"a/c/{i:03d}.png" for i in range(3)]
    (tmp_path / "lists" / "l.txt").write_text("\n".join([*names, name]))
    scores = str(tmp_path / "s.jsonl")
    score_dataset(
        Small(), str(tmp_path / "lists" / "l.txt"), scores, transform=transform,
        settings=Settings(polarity_samples=0),
    )  # fmt: skip
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="would lie outside the folder: write a list"):
        curate(scores, str(tmp_path / "links"))
    assert sorted(tmp_path.rglob("*")) == before
    assert curate(scores, str(tmp_path / "keep.txt")) == 4  # a list may name it


def test_a_file_named_twice_is_refused_with_nothing_written(tmp_path: pathlib.Path) -> None:
    make_folder(tmp_path / "a", 3, ("c",))
    (tmp_path / "l.txt").write_text("a/c/000.png\na/c/001.png\n./a/c/001.png")
    scores = str(tmp_path / "s.jsonl")
    score_dataset(
        Small(), str(tmp_path / "l.txt"), scores, transform=transform,
        settings=Settings(polarity_samples=0),
    )  # fmt: skip
    with pytest.raises(ValueError, match="two images would be"):
        curate(scores, str(tmp_path / "links"))
    assert not (tmp_path / "links").exists()


def test_a_name_of_two_lines_does_not_fit_a_text(tmp_path: pathlib.Path) -> None:
    make_folder(tmp_path / "data", 4)
    (tmp_path / "data" / "a" / "000.png").rename(tmp_path / "data" / "a" / "x\ny.png")
    score_dataset(
        Small(), str(tmp_path / "data"), tmp_path / "s.jsonl", transform=transform,
        settings=Settings(polarity_samples=0),
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"write \.jsonl"):
        curate(str(tmp_path / "s.jsonl"), str(tmp_path / "keep.txt"))
    assert curate(str(tmp_path / "s.jsonl"), str(tmp_path / "keep.jsonl")) == 4


def test_commands(
    scored: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(scored), "--out", str(tmp_path / "p.html")]) == 0
    assert (tmp_path / "p.html").exists()
    page = tmp_path / "c.html"
    words = ["compare", str(scored), str(scored), "--rank-by", "knn", "--page", str(page)]
    assert main(words) == 0
    assert "1.000" in capsys.readouterr().out
    assert None not in content(page)["thumbs"]
    words = ["curate", str(scored), str(tmp_path / "k.txt"), "--low", "0.5", "--by-class", "--drop"]
    assert main(words) == 0
    assert "Wrote 10 images" in capsys.readouterr().out
    assert main(["report", "gone.parquet"]) == 2
    assert "there is no file 'gone.parquet'" in capsys.readouterr().err
