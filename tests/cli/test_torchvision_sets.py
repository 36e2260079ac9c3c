"""Data sets of torchvision by name, from files written here in their layout."""

from __future__ import annotations

import pathlib
import struct

import numpy as np
import pytest
import torch
from cli_helpers import Small, attempt, make_folder, transform
from PIL import Image
from torchvision import datasets

from jepa_monitor import ScoreOptions
from jepa_monitor.cli import RefusedError, Settings, score_dataset
from jepa_monitor.cli.errors import BadImage
from jepa_monitor.cli.sources import open_source

MOST = 10_000  # pixels
QUICK = Settings(batch_size=4, polarity_samples=0, max_pixels=MOST)
EXACT = ScoreOptions(method="exact")
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)


def write_mnist(root: pathlib.Path) -> None:
    """Two sets in the layout of http://yann.lecun.com/exdb/mnist."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, images in (("train", PIXELS[:12]), ("t10k", PIXELS[12:])):
        labels = (np.arange(len(images)) % 3).astype(np.uint8)
        header = struct.pack(">IIII", 0x803, *images.shape)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = struct.pack(">II", 0x801, len(labels))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())


@pytest.mark.parametrize(("split", "images"), [("train", PIXELS[:12]), ("test", PIXELS[12:])])
def test_a_class_with_train(tmp_path: pathlib.Path, split: str, images: np.ndarray) -> None:
    write_mnist(tmp_path)
    name = f"torchvision/MNIST:{split}@{tmp_path}"
    source = open_source(name, MOST)
    assert len(source) == len(images)
    assert source.key(3) == f"{name}[3]"
    assert [source.label(i) for i in range(4)] == ["0 - zero", "1 - one", "2 - two", "0 - zero"]
    for index, expected in enumerate(images):
        assert np.array_equal(np.asarray(source.load(index)[0])[..., 0], expected)


def test_a_class_with_split(tmp_path: pathlib.Path) -> None:
    for split, classes in (("train", ("n01440764",)), ("val", ("n01440764", "n02102040"))):
        make_folder(tmp_path / "imagenette2" / split, 4, classes)
    for path in list(tmp_path.rglob("*.png")):
        path.rename(path.with_suffix(".JPEG"))
    assert open_source(f"torchvision/Imagenette:train@{tmp_path}", MOST).label(0) == "tench"
    source = open_source(f"torchvision/Imagenette:val@{tmp_path}", MOST)
    assert [source.label(i) for i in range(4)] == ["tench"] * 2 + ["English springer"] * 2


def test_scores_are_those_of_the_data_set(tmp_path: pathlib.Path) -> None:
    write_mnist(tmp_path)
    options = {"transform": transform, "options": EXACT, "settings": QUICK}
    table = score_dataset(Small(), f"torchvision/MNIST:train@{tmp_path}", **options)
    dataset = datasets.MNIST(str(tmp_path), train=True)
    assert table["jepa_score"].equals(score_dataset(Small(), dataset, **options)["jepa_score"])


@pytest.fixture
def eurosat(tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / "eurosat" / "2750"
    make_folder(folder, 8)
    deep = np.full((9, 9), 40_000, dtype=np.uint16)
    Image.fromarray(deep).save(folder / "a" / "deep.png")
    Image.new("CMYK", (9, 9)).save(folder / "a" / "cmyk.jpg")
    Image.new("L", (101, 101)).save(folder / "a" / "huge.png")
    whole = (folder / "a" / "000.png").read_bytes()
    (folder / "a" / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "b" / "empty.png").write_bytes(b"")
    (folder / "b" / "text.png").write_bytes(b"no image")
    return tmp_path


def test_bad_files_are_treated_as_a_folders(eurosat: pathlib.Path) -> None:
    source = open_source(f"torchvision/EuroSAT@{eurosat}", MOST)
    dataset = datasets.EuroSAT(str(eurosat))
    names = [pathlib.Path(path).name for path, _ in dataset.samples]
    found = {name: attempt(source, index) for index, name in enumerate(names)}
    assert found["cmyk.jpg"][1] == "CMYK without its colour profile"
    assert found["deep.png"][1] == "16 bits reduced to 8"
    assert np.asarray(found["deep.png"][0])[0, 0, 0] == round(40_000 / 257)
    for name, reason in (
        ("huge.png", "bomb"),
        ("truncated.png", "cannot be"),
        ("empty.png", "is empty"),
        ("text.png", "cannot identify"),
    ):
        assert reason in found[name], name
    assert sum(isinstance(value, str) for value in found.values()) == 4
    refusing = open_source(f"torchvision/EuroSAT@{eurosat}", MOST, convert=False)
    with pytest.raises(BadImage, match="is not plain 8-bit RGB or grey: CMYK"):
        refusing.load(names.index("cmyk.jpg"))


def test_changed_files_are_refused(eurosat: pathlib.Path) -> None:
    out, name = eurosat / "s.parquet", f"torchvision/EuroSAT@{eurosat}"
    table = score_dataset(Small(), name, out, transform=transform, options=EXACT, settings=QUICK)
    assert len(table) == 10
    again = score_dataset(Small(), name, out, transform=transform, options=EXACT, settings=QUICK)
    assert again.equals(table)
    Image.new("L", (10, 10)).save(eurosat / "eurosat" / "2750" / "a" / "000.png")
    with pytest.raises(RefusedError, match=r"data\.content"):
        score_dataset(Small(), name, out, transform=transform, options=EXACT, settings=QUICK)


def test_changed_arrays_are_told_from_the_old(tmp_path: pathlib.Path) -> None:
    write_mnist(tmp_path)
    name = f"torchvision/MNIST:train@{tmp_path}"
    before = open_source(name, MOST).fingerprint()
    assert open_source(name, MOST).fingerprint() == before
    file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    assert open_source(name, MOST).fingerprint() != before


def test_download_is_asked_for(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.MNIST, "download", lambda self: write_mnist(tmp_path))
    name = f"torchvision/MNIST:test@{tmp_path}"
    with pytest.raises(ValueError, match=r"not found.* Set `download`"):
        score_dataset(Small(), name, transform=transform, settings=QUICK)
    settings = Settings(polarity_samples=0, download=True)
    assert len(score_dataset(Small(), name, transform=transform, settings=settings)) == 8


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision/", r"must be torchvision/NAME\[:SPLIT\]"),
        ("torchvision/NoSuchSet", "torchvision has no data set 'NoSuchSet'"),
        ("torchvision/VisionDataset2", "has no data set"),
        ("torchvision/MNIST", "has several splits: name one, as in torchvision/MNIST:test"),
        ("torchvision/MNIST:val@{root}", "splits of .* are train and test"),
        ("torchvision/Imagenette:test@{root}", "Unknown value 'test' for argument split"),
        ("torchvision/EuroSAT:train@{root}", "names a split, but this data set has none"),
        ("torchvision/CocoDetection@{root}", "cannot be opened: .*annFile"),
    ],
)
def test_names_that_are_none(tmp_path: pathlib.Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_source(name.format(root=tmp_path), MOST)


class Detections(torch.utils.data.Dataset):
    """Images with what is no class, and one that cannot be read."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> tuple[Image.Image, object]:
        if index == 3:
            raise OSError("disk on fire")
        label = [{"boxes": []}, torch.tensor([1, 2]), torch.tensor(7), None, np.int64(4)][index]
        return Image.fromarray(PIXELS[index]), label


def test_any_data_set_of_images(tmp_path: pathlib.Path) -> None:
    table = score_dataset(
        Small(),
        Detections(),
        tmp_path / "s.csv",
        transform=transform,
        options=EXACT,
        settings=QUICK,
    )
    assert table["label"].to_pylist() == [None, None, "7", "4"]
    assert "disk on fire" in (tmp_path / "s.errors.jsonl").read_text()
