"""Copies, suspect labels and bad pixels, planted and found; each with a reason in words."""

from __future__ import annotations

import io
import pathlib

import numpy as np
import pytest
import torch
from cli_helpers import Small, transform
from PIL import Image, ImageEnhance, ImageFilter
from sklearn.covariance import ShrunkCovariance
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

from jepa_monitor import ScoreOptions
from jepa_monitor.cli import Settings, read_table, report, score_dataset
from jepa_monitor.cli.closing import facts
from jepa_monitor.cli.duplicates import find_copies
from jepa_monitor.cli.labels import fit_classes
from jepa_monitor.cli.quality import NUMBERS, looks_of, quality_flags

EXACT = ScoreOptions(method="exact")
QUICK = Settings(polarity_samples=0)


def photo(seed: int, side: int = 64) -> Image.Image:
    """Smooth shapes with edges, as photographs have them."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    smooth = Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)
    grain = np.random.default_rng(seed + 1000).normal(0, 12, (side, side, 3))
    return Image.fromarray(np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8))


def jpeg(image: Image.Image, quality: int = 60) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(io.BytesIO(stream.getvalue())).convert("RGB")


def flags(images: list[Image.Image]) -> list[list[str]]:
    return quality_flags(np.array([looks_of(image)[: len(NUMBERS)] for image in images]))


def test_what_is_plainly_wrong_is_named() -> None:
    good = [photo(seed) for seed in range(20)]
    assert flags(good) == [[]] * 20
    dim = ImageEnhance.Brightness(photo(30)).enhance(0.1)
    pale = Image.fromarray(245 + np.asarray(photo(31)) // 26)
    wide = Image.fromarray(np.tile(np.asarray(photo(32)), (1, 4, 1)))
    soft = photo(33).filter(ImageFilter.GaussianBlur(3))
    flat = Image.new("RGB", (64, 64), (90, 120, 60))
    found = flags([*good, dim, pale, wide, soft, flat])[20:]
    assert found == [["dark"], ["bright"], ["odd shape"], ["blurred"], ["low information"]]


def test_entropy_and_sharpness_against_their_definitions() -> None:
    image = photo(0)
    grey = np.asarray(image.convert("L"), dtype=float)
    share = np.unique(grey, return_counts=True)[1] / grey.size
    looks = looks_of(image)
    assert looks.entropy == pytest.approx(-(share * np.log2(share)).sum())
    laplacian = [
        grey[i - 1, j] + grey[i + 1, j] + grey[i, j - 1] + grey[i, j + 1] - 4 * grey[i, j]
        for i in range(1, 63)
        for j in range(1, 63)
    ]
    assert looks.sharpness == pytest.approx(np.std(laplacian) / grey.std())


def test_copies_are_found_and_others_are_not() -> None:
    images = [photo(seed) for seed in range(30)]
    copies = {
        30: (images[3], True),
        31: (jpeg(images[5]), False),
        32: (images[7].resize((48, 48), Image.Resampling.LANCZOS), False),
        33: (ImageEnhance.Brightness(images[9]).enhance(0.8), False),
        34: (jpeg(images[5], 40), False),
    }
    flat = [Image.new("RGB", (64, 64), (value, 0, 0)) for value in (10, 20, 20)]
    looks = [looks_of(each) for each in (*images, *(image for image, _ in copies.values()), *flat)]
    plain = [look.entropy < 0.5 for look in looks]
    found = find_copies([x.pixels for x in looks], [x.gradients for x in looks], plain)
    firsts = {row: (copy.first, copy.exact) for row, copy in found.items()}
    assert firsts == {
        **{row: (row, False) for row in (3, 5, 7, 9, 36)},
        30: (3, True), 31: (5, False), 34: (5, False), 32: (7, False), 33: (9, False),
        37: (36, True),
    }  # fmt: skip
    assert sorted({copy.group for copy in found.values()}) == [0, 1, 2, 3, 4]


def test_every_near_pair_is_found() -> None:
    """Against all pairs, one by one, and their connected components."""
    generator = np.random.default_rng(0)
    base = [int(mark) for mark in generator.integers(0, 2**62, 60)]
    marks = base + [mark ^ sum(1 << int(b) for b in generator.choice(64, k, replace=False))
                    for mark in base for k in (1, 3, 4)]  # fmt: skip
    near = [[(a ^ b).bit_count() <= 3 for b in marks] for a in marks]
    root = list(range(len(marks)))
    for _ in marks:
        root = [min(root[j] for j in range(len(marks)) if near[i][j]) for i in range(len(marks))]
    found = find_copies([b"%d" % i for i in range(len(marks))], marks, [False] * len(marks))
    expected = {i: root[i] for i in range(len(marks)) if root.count(root[i]) > 1}
    assert {row: copy.first for row, copy in found.items()} == expected


def test_label_scores_leave_the_image_out_of_its_class() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = ["a"] * 9 + ["b"] * 12 + ["once"]
    z = torch.randn(22, 3, generator=generator).double()
    z[9:] += 4
    classes = fit_classes(z, labels)
    assert classes is not None
    assert classes.names == ("a", "b")
    own = torch.arange(22) != 5
    scores, others = classes.score(z, [*labels[:21], None], own)
    within = np.concatenate([z[:9] - z[:9].mean(0), z[9:21] - z[9:21].mean(0)])
    law = ShrunkCovariance(shrinkage=classes.law.shrinkage, assume_centered=False).fit(within)
    inverse = np.linalg.inv(law.covariance_)
    for i in range(21):
        mine, other = (slice(0, 9), slice(9, 21)) if i < 9 else (slice(9, 21), slice(0, 9))
        members = [j for j in range(*mine.indices(22)) if j != i or not own[i]]
        near = (z[i] - z[members].mean(0)).numpy()
        far = (z[i] - z[other].mean(0)).numpy()
        assert scores[i].item() == pytest.approx(far @ inverse @ far - near @ inverse @ near)
        assert others[i] == ("b" if i < 9 else "a")
    assert torch.isnan(scores[21])
    assert fit_classes(z[:4], ["a", "a", "b", "b"]) is None  # no more than dimensions
    assert fit_classes(z, ["a"] * 22) is None


def test_wrong_labels_of_digits_are_found() -> None:
    digits = load_digits()
    wrong = np.random.default_rng(0).random(len(digits.target)) < 0.05
    labels = np.where(wrong, (digits.target + 3) % 10, digits.target)

    class Labelled(TensorDataset):
        targets = labels.tolist()

    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    generator = torch.Generator().manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 40))
    nn.init.normal_(encoder[1].weight, generator=generator)
    settings = Settings(polarity_samples=0, limit=700)
    table = score_dataset(
        encoder, Labelled(images), options=ScoreOptions(method="sketch"), settings=settings
    )
    chosen = [i * len(images) // 700 for i in range(700)]
    suspect = np.array(table["suspect_label"].to_pylist())
    planted = wrong[chosen]
    assert (suspect & planted).sum() / suspect.sum() > 0.8
    assert (suspect & planted).sum() / planted.sum() > 0.6
    row = int(np.flatnonzero(suspect & planted)[0])
    label, truth = labels[chosen[row]], digits.target[chosen[row]]
    assert table["reason"][row].as_py().startswith(f"labelled {label}, but nearer to {truth}")


def test_labels_that_embeddings_do_not_tell_apart_are_not_doubted() -> None:
    class Arbitrary(TensorDataset):
        targets = torch.randint(0, 5, (200,), generator=torch.Generator().manual_seed(1)).tolist()

    images = torch.rand(200, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    table = score_dataset(Small(), Arbitrary(images), options=EXACT, settings=QUICK)
    assert table["label_score"].null_count == 0
    assert table["suspect_label"].null_count == 200


def test_the_table_and_the_page_say_why(tmp_path: pathlib.Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for seed in range(24):
        photo(seed).save(tmp_path / "data" / "ab"[seed % 2] / f"{seed:02d}.png")
    photo(4).save(tmp_path / "data" / "b" / "copy.png")
    photo(6).resize((50, 50)).save(tmp_path / "data" / "a" / "small.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "data" / "b" / "black.png")
    out = tmp_path / "s.csv"
    score_dataset(
        Small(), str(tmp_path / "data"), out, transform=transform, options=EXACT, settings=QUICK
    )
    table = read_table(out)
    rows = {row["path"]: row for row in table.to_pylist()}
    assert rows["b/copy.png"]["reason"].startswith(
        "the same pixels as a/04.png, which is labelled a"
    )
    assert rows["b/copy.png"]["copies"] == rows["a/04.png"]["copies"] is not None
    assert rows["a/small.png"]["reason"].startswith("nearly the same as a/06.png")
    assert rows["b/copy.png"]["neighbour"] == "a/04.png"  # never the image itself
    assert rows["a/04.png"]["neighbour"] == "b/copy.png"
    assert rows["b/black.png"]["quality"] == "dark, low information"
    assert rows["b/black.png"]["reason"].endswith("dark; low information")
    said = dict(facts(table, "jepa_score"))
    assert said["the same or nearly"] == "4 images in 2 groups, see `copies`"
    assert said["quality"] == "1 dark, 1 low information"
    page = report(str(out)).read_text()
    assert "the same pixels as a/04.png" in page
    assert '"neighbour":[' in page


def test_of_tensors_nothing_is_said() -> None:
    images = torch.rand(20, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    images[3] = images[4]
    table = score_dataset(Small(), TensorDataset(images), options=EXACT, settings=QUICK)
    assert table["copies"].null_count == 20
    assert table["quality"].to_pylist() == [""] * 20
    assert table["suspect_label"].null_count == 20
    assert table["neighbour"].to_pylist()[3] == "TensorDataset[4]"
