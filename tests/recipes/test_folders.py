"""Folders of images and of arrays as data of a recipe, from files written here."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jepa_monitor.recipes.data import ImageDataModule
from jepa_monitor.recipes.folders import FolderImages, channel_statistics


def prepared(name, **options):
    data = ImageDataModule(name, **options)
    data.setup()
    return data


def write_folder(root: Path, mode: str, count: int = 5) -> None:
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (root / label).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(root / label / f"{i}.png")


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("split", [True, False])
def test_imagefolder(tmp_path: Path, mode, split) -> None:
    for folder in ("train", "val") if split else (".",):
        write_folder(tmp_path / folder, mode)
    data = prepared(f"imagefolder:{tmp_path}", image_size=16, batch_size=2)
    assert data.channels == 3
    assert (len(data.train_set), len(data.val_set)) == ((10, 10) if split else (8, 2))
    image, label = data.val_set[0]
    assert image.shape == (3, 16, 16)
    assert label in (0, 1)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("LA", 2), ("RGBA", 4)])
def test_imagefolder_in_another_mode(tmp_path: Path, mode, channels) -> None:
    write_folder(tmp_path, mode)
    data = prepared(
        f"imagefolder:{tmp_path}", image_size=10, folder_mode=mode, batch_size=2, distortion=1.0
    )
    assert data.channels == channels
    images = torch.stack([image for image, _ in data.plain_train_set])
    assert images.shape == (8, channels, 10, 10)
    # Normalised by the statistics of the training images; resizing 10x12 changes them a little.
    # Random pixels: a mode's opaque alpha channel is constant, and so has no deviation to divide by.
    varied = [c for c in range(channels) if images[:, c].std() > 0.1]
    assert len(varied) >= 1
    assert images[:, varied].mean((0, 2, 3)).abs().max() < 0.1
    assert data.train_set[0][0].shape == (channels, 10, 10)


@pytest.mark.parametrize("channels", [1, 2, 7])
def test_imagefolder_of_arrays_has_any_number_of_channels(tmp_path: Path, channels) -> None:
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / label / "deeper").mkdir(parents=True)
        for i in range(5):
            pixels = rng.integers(0, 256, (9, 8, channels), dtype=np.uint8)
            np.save(
                tmp_path / label / "deeper" / f"{i}.npy", pixels if channels > 1 else pixels[..., 0]
            )
    data = prepared(f"imagefolder:{tmp_path}", image_size=8, distortion=1.0, global_views=2)
    assert data.channels == channels
    views, label = data.train_set[(1, 0)]
    assert [tuple(crop.shape) for crop in views.global_crops] == [(channels, 8, 8)] * 2
    assert label in (0, 1)


def test_classes_are_the_first_subfolders_and_files_without_one_have_none(tmp_path: Path) -> None:
    write_folder(tmp_path / "classes", "RGB", 3)
    images = FolderImages(tmp_path / "classes")
    assert images.classes == ["cat", "dog"]
    assert [images[i][1] for i in range(6)] == [0, 0, 0, 1, 1, 1]
    expected = np.array(Image.open(tmp_path / "classes" / "dog" / "1.png"))
    np.testing.assert_array_equal(images[4][0].permute(1, 2, 0), expected)
    flat = FolderImages(tmp_path / "classes" / "cat")
    assert flat.classes == []
    assert {flat[i][1] for i in range(3)} == {-1}


def test_statistics_are_those_of_all_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    images = [
        torch.randint(0, 256, (2, h, 5), dtype=torch.uint8, generator=generator) for h in (3, 8)
    ]
    pixels = np.concatenate([i.flatten(1).numpy() for i in images], axis=1) / 255
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, pixels.mean(1), rtol=1e-6)
    np.testing.assert_allclose(std, pixels.std(1, ddof=1), rtol=1e-6)
    assert channel_statistics([torch.zeros(1, 2, 2)])[1].item() == pytest.approx(1e-3)


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no image"):
        FolderImages(tmp_path)
    with pytest.raises(ValueError, match="is no folder"):
        FolderImages(tmp_path / "none")
    with pytest.raises(ValueError, match="is no folder"):
        prepared(f"imagefolder:{tmp_path / 'none'}")
    with pytest.raises(ValueError, match="mode='grey' must be one of L, LA, RGB"):
        FolderImages(tmp_path, "grey")
    np.save(tmp_path / "a.npy", np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"a\.npy' holds float64 of shape \(2, 3\)"):
        FolderImages(tmp_path)[0]
