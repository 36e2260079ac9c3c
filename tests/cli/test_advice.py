"""What data say before anything is trained: the command, its table and its picture."""

from __future__ import annotations

import csv
import pathlib

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from jepa_monitor.cli.entry import main

DIGITS = ["--side", "8", "--sizes", "2,4", "--masks", "0,.75", "--codes", "8"]


@pytest.fixture
def digits(tmp_path: pathlib.Path) -> str:
    pixels = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    np.savez(tmp_path / "digits.npz", train_images=pixels[..., None].repeat(3, 3))
    return str(tmp_path / "digits.npz:train")


def test_digits(digits: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, picture = tmp_path / "t.csv", tmp_path / "p.png"
    words = ["--data", digits, "--out", str(table), "--picture", str(picture)]
    assert main(["advise", "mae", *words, *DIGITS]) == 0
    with table.open() as file:
        read = [
            {k: float(v) if v else None for k, v in row.items()} for row in csv.DictReader(file)
        ]
    rows = {(row["patch"], row["mask"]): row for row in read}
    assert list(rows) == [(2, 0.0), (2, 0.75), (4, 0.0), (4, 0.75)]
    # Without a mask all grids are PCA, of which this half of the digits keeps two thirds by 8 codes.
    assert rows[2, 0.0]["explained"] == pytest.approx(rows[4, 0.0]["explained"])
    assert 0.6 < rows[2, 0.0]["explained"] < 0.75
    assert rows[2, 0.0]["decay_length"] == pytest.approx(2.86, abs=0.05)
    assert (
        rows[4, 0.75]["decay_length"] is None
    )  # pixels half an image apart weigh more than near ones
    assert rows[4, 0.75]["influence_length"] > rows[2, 0.75]["influence_length"]
    assert rows[4, 0.75]["explained"] < rows[2, 0.75]["explained"] < rows[2, 0.0]["explained"]
    shown = capsys.readouterr().out
    assert "how far the map must look, and no accuracy" in shown
    with Image.open(picture) as image:
        assert image.format == "PNG"


def test_few_images_are_refused(
    digits: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["advise", "mae", "--data", digits, "--side", "32"]) == 2
    assert "--data must hold at least 2048 images" in capsys.readouterr().err
    del tmp_path


def test_unread_files_are_counted(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = np.random.default_rng(0)
    for n in range(40):
        pixels = generator.integers(0, 256, (10, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{n}.png")
    (tmp_path / "bad.png").write_text("no image")
    words = [
        "--data",
        str(tmp_path),
        "--side",
        "4",
        "--sizes",
        "2",
        "--masks",
        ".5",
        "--codes",
        "4",
    ]
    assert main(["advise", "mae", *words]) == 0
    told = next(line for line in capsys.readouterr().out.splitlines() if "not read" in line)
    assert "1" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--sizes", "3"],
            "--sizes must divide images of 16 pixels (--side) into several patches, got 3",
        ),
        (["--sizes", "2.5"], "--sizes must be whole numbers of pixels, got 2.5"),
        (["--masks", "1"], "--masks must be from 0 to less than 1, got 1"),
        (["--codes", "300"], "--codes must be at most 256, got 300"),
    ],
)
def test_wrong_words_are_named(
    words: list[str], message: str, digits: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["advise", "mae", "--data", digits, *words]) == 2
    assert message in capsys.readouterr().err


def test_another_method_is_refused(digits: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", "moco", "--data", digits]) == 2
    assert "WHAT must be one of" in capsys.readouterr().err
