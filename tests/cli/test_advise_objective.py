"""Which objective needs less alignment: where noise is even, all that the command says is known by hand."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image
from pyarrow import parquet
from sklearn.datasets import load_digits

from jepa_monitor.cli.advice import AdviceSettings
from jepa_monitor.cli.advice_objective import ObjectiveSettings
from jepa_monitor.cli.corrupted_views import draw
from jepa_monitor.cli.entry import main
from jepa_monitor.cli.objectives import objective_table
from jepa_monitor.cli.tables import info_of
from jepa_monitor.probes.common_corruptions import CORRUPTIONS

SIDE = ["--side", "8"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of low contrast, so that no noise leaves the range."""
    pixels = np.round(90 + load_digits().images * (76 / 16)).astype(np.uint8)
    place = tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(place, train_images=pixels[..., None].repeat(3, 3))
    return f"{place}:train"


def told(words: list[str], tmp_path: pathlib.Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Run the command, and read its table and what is with it."""
    place = tmp_path / "table.parquet"
    assert main(["advise", "objective", *words, "--out", str(place)]) == 0
    table = parquet.read_table(place)
    return table.to_pylist(), info_of(table)


def variances(data: str) -> np.ndarray:
    pixels = np.load(data.partition(":")[0])["train_images"][..., 0].reshape(-1, 64) / 255
    return np.linalg.eigvalsh(np.cov(pixels.T))[::-1]


@pytest.mark.parametrize("codes", [3, 30])
def test_even_noise_by_hand(digits: str, tmp_path: pathlib.Path, codes: int) -> None:
    """Nuisance of variance .06², views with .05² more, in every direction."""
    g, noise = 0.06**2, 0.05**2
    words = ["--corruption", "gaussian_noise:2", "--augment", "noise:.05", "--codes", str(codes)]
    rows, info = told(["--data", digits, *SIDE, *words], tmp_path)
    found = info["objective"]
    s = variances(digits)[:codes]
    np.testing.assert_allclose(found["signal"], s, rtol=0.3)
    np.testing.assert_allclose(found["nuisance"], np.full(64 - codes, g), rtol=0.15)
    np.testing.assert_allclose(found["signal_augmentation"], np.full(codes, noise), rtol=0.1)
    # The weakest signal is what both need alignment for; 30 codes reach below the nuisance.
    assert bool(s[-1] < g) is (codes == 30)
    weakest = min(found["signal"])
    joint = noise / weakest - noise / g
    rebuilt = g * (weakest + noise) / weakest**2 - noise / g - 1
    assert found["joint_embedding"][0] == pytest.approx(joint, abs=0.1 * noise / weakest + 0.1)
    assert found["reconstruction"][0] == pytest.approx(rebuilt, abs=0.15 * abs(rebuilt))
    for name in ("joint_embedding", "reconstruction"):
        value, lower, upper = found[name]
        assert lower <= value <= upper
    less = info["facts"]["less alignment"]
    if codes == 3:
        assert less == "neither needs any: by this rule either will do"
    else:  # of 900 digits the solved encoders differ by little, and the other way
        assert rows[0]["difference_upper"] < 0
        assert less.startswith("joint embedding; but see the table")
    # Each signal direction is read as its share of what is there.
    wiener = (s / (s + g)).mean()
    assert rows[-1]["joint_embedding"] == pytest.approx(wiener, abs=0.06)
    assert rows[-1]["reconstruction"] == pytest.approx(wiener, abs=0.06)
    assert found["all"] == pytest.approx(wiener, abs=0.06)
    assert found["chance"] < rows[-1]["reconstruction"] - 0.1
    assert found["covered"][0] == pytest.approx(noise / g, abs=0.02)
    assert found["covered"][3] == pytest.approx(noise / g, abs=0.02)
    if codes == 3:
        assert rows[0]["joint_embedding"] == pytest.approx(wiener, abs=0.06)


def test_the_corruption_itself_covers_itself(digits: str, tmp_path: pathlib.Path) -> None:
    for severity, covered in ((2, 1.0), (1, (0.04 / 0.06) ** 2)):
        words = ["--corruption", "gaussian_noise:2", "--augment", f"inject:{severity}"]
        _, info = told(["--data", digits, *SIDE, "--codes", "8", *words], tmp_path)
        assert info["objective"]["covered"][0] == pytest.approx(covered, abs=0.03)
    words = ["--corruption", "fog:3", "--augment", "inject:3"]
    _, fog = told(["--data", digits, *SIDE, "--codes", "8", *words], tmp_path)
    value, lower, upper, chance = fog["objective"]["covered"]
    assert lower <= value <= upper
    assert value > 2 * chance  # clouds are not even, and so are no even noise's


def test_the_command_says_it_in_words(
    digits: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "p.png"
    state = torch.random.get_rng_state()
    words = ["--data", digits, *SIDE, "--codes", "8", "--augment", "crop,flip", "noise:.02"]
    rows, info = told([*words, "--picture", str(picture)], tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [row["alignment"] for row in rows] == [0, 0.25, 0.5, 1, 2, 4]
    for row in rows:
        for name in ("joint_embedding", "reconstruction", "difference"):
            assert row[f"{name}_lower"] <= row[name] <= row[f"{name}_upper"]
    with Image.open(picture) as image:
        assert image.format == "PNG"
    shown = capsys.readouterr().out
    for word in ("fog:3", "covered by views", "less alignment", "linear encoders", "random codes"):
        assert word in " ".join(shown.split())
    assert info["settings"]["corruption"] == "fog:3"
    again, _ = told(words, tmp_path)
    assert again == rows


@pytest.mark.parametrize("alignment", [0, 1])
def test_what_is_read_is_what_scipy_finds_in_the_draws(alignment: int) -> None:
    """Crops, whose mean is no image: all by arrays of views, SciPy and least squares."""
    images = torch.from_numpy(load_digits().images[:600, None] / 16)
    objective = ObjectiveSettings(augment=["crop", "noise:.05"], corruption="fog:3", views=3)
    settings = AdviceSettings(side=8, codes=5, seed=4)
    _, table = objective_table(images, settings, objective, lambda *_: None)
    generator = torch.Generator().manual_seed(4)
    fit, judge = (draw(part, objective, generator) for part in images.split(300))
    x, c, v = (part.numpy() for part in fit)
    x_mean, c_mean = x.mean(0), c[:, 0].mean(0)
    v = v - v.mean((0, 1))
    within = sum(np.cov(each.T) for each in v) / 300
    within = within + alignment**2 * sum(np.cov(each.T) for each in c) / 300
    second = (
        np.einsum("nvd,nve->de", v, v) / 900
    )  # the redrawn nuisance adds to it what it adds within
    drawn = sum(np.cov(each.T) for each in v) / 300
    mean = v.mean(1)
    between = mean.T @ mean / 300 - drawn / 3
    np.testing.assert_allclose(second, mean.T @ mean / 300 + drawn * 2 / 3, atol=1e-12)
    data = c[:, 0] - c_mean
    total = between + within
    _, joint = scipy.linalg.eigh(between, total)
    root = np.linalg.inv(scipy.linalg.sqrtm(total).real)
    right = np.linalg.svd(data.T @ mean / 300 @ root)[2]
    signal = np.linalg.eigh(np.cov(x.T))[1][:, ::-1][:, :5]
    other = judge.corrupted.numpy()[:, 0] - c_mean
    wanted = (judge.clean.numpy() - x_mean) @ signal
    encoders = {"joint_embedding": joint[:, ::-1][:, :5], "reconstruction": root @ right[:5].T}
    row = next(row for row in table.to_pylist() if row["alignment"] == alignment)
    for name, encoder in encoders.items():
        readout = np.linalg.lstsq(data @ encoder, (x - x_mean) @ signal, rcond=None)[0]
        errors = wanted - other @ encoder @ readout
        expected = (1 - (errors**2).sum(0) / (wanted**2).sum(0)).mean()
        assert row[name] == pytest.approx(expected, abs=1e-6)


def test_what_draws_nothing_is_no_nuisance(digits: str, tmp_path: pathlib.Path) -> None:
    words = ["--data", digits, *SIDE, "--codes", "4", "--corruption", "gaussian_blur:5"]
    rows, info = told([*words, "--picture", str(tmp_path / "p.png")], tmp_path)
    assert len(rows) == 1
    assert info["objective"]["joint_embedding"] is None
    assert info["facts"]["nuisance"].startswith("none: gaussian_blur does the same to every image")
    assert "less alignment" not in info["facts"]


def test_a_nuisance_within_the_signal_cannot_be_told_apart(
    digits: str, tmp_path: pathlib.Path
) -> None:
    words = ["--data", digits, "--side", "2", "--codes", "4"]
    rows, info = told([*words, "--picture", str(tmp_path / "p.png")], tmp_path)
    assert len(rows) == 6
    assert "100% of it in the signal's directions" in info["facts"]["nuisance"]
    assert info["facts"]["alignment"].startswith("cannot be told: all of the nuisance is in")
    assert info["objective"]["reconstruction"] is None


def test_a_strong_nuisance_apart_from_the_signal_is_what_joint_embedding_is_for(
    digits: str, tmp_path: pathlib.Path
) -> None:
    words = [
        "--data",
        digits,
        *SIDE,
        "--codes",
        "8",
        "--augment",
        "colour",
        "--corruption",
        "fog:5",
    ]
    rows, info = told(words, tmp_path)
    found = info["objective"]
    assert 0 < found["joint_embedding"][2] < found["reconstruction"][1]
    assert found["nuisance"][0] > found["even"]
    assert info["facts"]["less alignment"] == "joint embedding"
    assert rows[0]["difference_lower"] > 0
    assert info["facts"]["reads more, as is"].startswith("joint embedding, by")


def test_views_that_agree_in_too_much_determine_nothing(
    digits: str, tmp_path: pathlib.Path
) -> None:
    words = ["--data", digits, *SIDE, "--codes", "4", "--augment", "flip"]
    rows, info = told([*words, "--picture", str(tmp_path / "p.png")], tmp_path)
    assert rows[0]["joint_embedding"] is None
    assert rows[0]["reconstruction"] > 0
    assert rows[-1]["joint_embedding"] is not None
    assert "views by flip alone agree in more directions" in info["facts"]["alignment"]
    assert info["facts"]["reads more, as is"] == "joint embedding is not determined"


def test_all_corruptions_can_be_named() -> None:
    for kind in CORRUPTIONS:
        assert ObjectiveSettings(corruption=f"{kind}:2").parsed_corruption == (kind, 2)


@pytest.mark.parametrize("colour", [[], ["--colour"]])
def test_odd_sizes_and_unread_files(tmp_path: pathlib.Path, colour: list[str]) -> None:
    generator = np.random.default_rng(0)
    for n in range(60):
        pixels = generator.integers(0, 256, (10, 13, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{n}.png")
    (tmp_path / "bad.png").write_text("no image")
    words = ["--data", str(tmp_path), "--side", "3", "--codes", "2", "--views", "2", *colour]
    rows, info = told(words, tmp_path)
    assert info["facts"]["not read"] == "1"
    assert len(rows) == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--corruption", "smog:3"], "--corruption must be KIND:SEVERITY with fog, gaussian_noise"),
        (["--corruption", "fog:6"], "and 1 to 5, got 'fog:6'"),
        (["--corruption", "fog"], "and 1 to 5, got 'fog'"),
        (
            ["--augment", "cutout"],
            "--augment must be one of crop, flip, colour, noise, inject, got",
        ),
        (["--augment", "crop:.2"], "--augment crop takes no level, got 'crop:.2'"),
        (["--augment", "noise:-1"], "--augment noise must have a positive level, got 'noise:-1'"),
        (
            ["--augment", "noise:much"],
            "--augment noise must have a positive level, got 'noise:much'",
        ),
        (
            ["--augment", "inject:7"],
            "--augment inject must have a severity of 1 to 5, got 'inject:7'",
        ),
        (["--augment", "crop", "crop"], "--augment must name crop once"),
        (["--augment", ","], "--augment must name at least one augmentation"),
        (["--views", "1"], "--views must be at least 2, got 1"),
        (["--sizes", "2"], "--sizes is of advise mae, got advise objective"),
        (["--side", "32"], "--data must hold at least 2048 images"),
        (["--side", "8", "--codes", "64"], "--codes must be at most"),
    ],
)
def test_wrong_words_are_named(
    words: list[str], message: str, digits: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["advise", "objective", "--data", digits, *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_images_that_are_all_the_same_are_refused(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "same.npz", train_images=np.full((40, 8, 8, 3), 100, np.uint8))
    words = ["--data", f"{tmp_path / 'same.npz'}:train", "--side", "3", "--codes", "2"]
    assert main(["advise", "objective", *words]) == 2
    assert "--data must hold images that differ" in capsys.readouterr().err
    assert main(["advise", "mae", "--augment", "crop", *words]) == 2
    assert "--augment is of advise objective, got advise mae" in capsys.readouterr().err
