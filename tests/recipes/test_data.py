"""Images by every name, from files written here or shipped with scikit-learn."""

import os
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits as sklearn_digits
from torch.utils.data import DataLoader

from jepa_monitor.recipes.arrays import as_arrays
from jepa_monitor.recipes.data import ImageDataModule
from jepa_monitor.recipes.datasets import mixed_seed
from jepa_monitor.recipes.views import Views


def prepared(name, rank=0, world=1, **options):
    data = ImageDataModule(name, **options)
    data.trainer = SimpleNamespace(world_size=world, global_rank=rank)
    data.setup()
    return data


def write_npz(path: Path, shape=(8, 8, 3), dtype=np.uint8, **changes) -> Path:
    rng = np.random.default_rng(0)
    arrays = {
        "train_images": rng.integers(0, 256, (20, *shape)).astype(dtype),
        "train_labels": np.arange(20) % 4,
        "test_images": rng.integers(0, 256, (6, *shape)).astype(dtype),
        "test_labels": np.arange(6) % 4,
    }
    arrays.update(changes)
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return path


def test_digits_are_split_and_normalised() -> None:
    data = prepared("digits", image_size=8)
    assert data.channels == 1
    assert (len(data.train_set), len(data.val_set)) == (1437, 360)
    images = torch.stack([image for image, _ in data.plain_train_set])
    assert images.shape == (1437, 1, 8, 8)
    assert images.mean().item() == pytest.approx(0, abs=1e-4)
    assert images.std().item() == pytest.approx(1, abs=1e-3)
    # Train and test together are scikit-learn's digits, each once: compare ink sums of uint8 images.
    both = torch.cat([part[0] for part in data._load_arrays()])
    expected = np.round(sklearn_digits().images * (255 / 16)).sum((1, 2))
    assert sorted(both.long().sum((1, 2, 3)).tolist()) == sorted(expected.astype(int).tolist())


def test_split_does_not_depend_on_the_seed() -> None:
    first, second = (prepared("digits", seed=seed) for seed in (0, 1))
    assert torch.equal(first.val_set[7][0], second.val_set[7][0])


@pytest.mark.parametrize(
    ("shape", "channels"), [((8, 8), 1), ((8, 8, 1), 1), ((6, 9, 3), 3), ((8, 8, 5), 5)]
)
def test_npz(tmp_path: Path, shape, channels) -> None:
    path = write_npz(tmp_path / "a.npz", shape)
    data = prepared(f"npz:{path}", image_size=12, batch_size=4)
    assert data.channels == channels
    images, labels = next(iter(data.val_dataloader()))
    assert images.shape == (4, channels, 12, 12)
    assert labels.tolist() == [0, 1, 2, 3]
    assert data.train_set[3][0].shape == (channels, 12, 12)


def test_npz_pixels_arrive_unchanged(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz")
    train = np.load(path)["train_images"] / 255
    image = prepared(f"npz:{path}", image_size=8).val_set[2][0]
    expected = np.load(path)["test_images"][2] / 255
    expected = (expected - train.mean((0, 1, 2))) / train.std((0, 1, 2), ddof=1)
    np.testing.assert_allclose(image.permute(1, 2, 0), expected, atol=1e-5)


@pytest.mark.parametrize(("name", "channels"), [("cifar10", 3), ("fashion_mnist", 1)])
def test_torchvision_names(monkeypatch, name, channels) -> None:
    calls = []

    def fake(root, train, download):
        calls.append((root, train, download))
        shape = (12, 8, 8, 3) if channels == 3 else (12, 8, 8)
        pixels = np.full(shape, 100 if train else 200, dtype=np.uint8)
        pixels[0] = 0
        return SimpleNamespace(data=pixels, targets=list(range(12)))

    for cls in ("CIFAR10", "FashionMNIST"):
        monkeypatch.setattr(f"jepa_monitor.recipes.data.datasets.{cls}", fake)
    data = prepared(name, root="somewhere", download=False)
    assert data.channels == channels
    assert data.val_set[0][0].shape == (channels, 24, 24)
    assert set(calls) == {("somewhere", True, False), ("somewhere", False, False)}


def test_the_real_cifar10_subset() -> None:
    folder = os.environ.get("JEPA_MONITOR_DATA")
    if folder is None:
        pytest.skip("JEPA_MONITOR_DATA names no folder with cifar10_subset.npz")
    data = prepared(f"npz:{Path(folder) / 'cifar10_subset.npz'}")
    assert data.channels == 3
    assert data.flip
    images = torch.stack([data.plain_train_set[i][0] for i in range(500)])
    assert images.std().item() == pytest.approx(1, abs=0.1)


def test_training_images_depend_on_seed_epoch_and_index_only() -> None:
    data = prepared("digits")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = data.train_set[(3, 5)][0]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(first, data.train_set[(3, 5)][0])
    assert not torch.equal(first, data.train_set[(4, 5)][0])
    assert not torch.equal(first, prepared("digits", seed=1).train_set[(3, 5)][0])


def test_validation_images_are_not_augmented() -> None:
    data = prepared("digits", image_size=8)
    test_images = data._load_arrays()[1][0]
    image = data.val_set[3][0]
    scaled = test_images[3].float() / 255
    slope, _ = np.polyfit(scaled.flatten(), image.flatten(), 1)
    assert np.corrcoef(scaled.flatten(), image.flatten())[0, 1] == pytest.approx(1)
    assert slope > 0


def test_crop_scale_one_and_no_flip_mean_no_augmentation() -> None:
    data = prepared("digits", crop_scale=1.0)
    assert torch.equal(data.train_set[(2, 9)][0], data.plain_train_set[9][0])


def test_flip_without_crop(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz")
    data = prepared(f"npz:{path}", image_size=8, crop_scale=1.0)
    plain = data.plain_train_set[0][0]
    seen = [data.train_set[(epoch, 0)][0] for epoch in range(20)]
    kinds = {(torch.equal(x, plain), torch.equal(x, plain.flip(-1))) for x in seen}
    assert kinds == {(True, False), (False, True)}


def test_order_is_shuffled_by_seed_and_epoch_and_shared_out(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz")

    def order(epoch, rank=0, world=1, seed=0):
        data = prepared(f"npz:{path}", rank, world, batch_size=5, seed=seed)
        loader = data.train_dataloader()
        assert isinstance(loader, DataLoader)
        loader.sampler.set_epoch(epoch)
        return list(loader.sampler)

    assert [e for e, _ in order(2)] == [2] * 20
    assert sorted(i for _, i in order(2)) == list(range(20))
    assert order(2) == order(2)
    assert [i for _, i in order(2)] != [i for _, i in order(3)]
    assert order(2) != order(2, seed=1)
    shares = [{i for _, i in order(2, rank, 2)} for rank in (0, 1)]
    assert shares[0] | shares[1] == set(range(20))
    assert not shares[0] & shares[1]


def test_workers_change_nothing() -> None:
    batches = []
    for workers in (0, 1):
        loader = prepared("digits", num_workers=workers, batch_size=700).train_dataloader()
        loader.sampler.set_epoch(4)
        batches.append([images for images, _ in loader])
    assert len(batches[0]) == 2
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))


def test_a_loop_of_ones_own_needs_no_trainer() -> None:
    data = ImageDataModule("digits", batch_size=700)
    for loader in (data.train_dataloader, data.val_dataloader):
        with pytest.raises(RuntimeError, match=r"until its `setup\(\)` is called"):
            loader()
    data.setup()
    given = prepared("digits", batch_size=700)
    for own, trainers in (
        (data.train_dataloader(), given.train_dataloader()),
        (data.val_dataloader(), given.val_dataloader()),
    ):
        for one, other in zip(own, trainers, strict=True):
            assert torch.equal(one[0], other[0])
            assert torch.equal(one[1], other[1])


@pytest.mark.parametrize("workers", [0, 1])
def test_several_views_come_as_batches_of_crops(workers) -> None:
    data = prepared(
        "digits", batch_size=30, image_size=16, global_views=2, local_views=3, num_workers=workers
    )
    loader = data.train_dataloader()
    loader.sampler.set_epoch(4)
    views, labels = next(iter(loader))
    assert isinstance(views, Views)
    assert views.batch_size == 30 == len(labels)
    assert [tuple(crop.shape) for crop in views.global_crops] == [(30, 1, 16, 16)] * 2
    assert [tuple(crop.shape) for crop in views.local_crops] == [(30, 1, 8, 8)] * 3
    assert not torch.equal(*views.global_crops)
    index = next(iter(loader.sampler))
    alone, _ = data.train_set[index]
    for batch, crop in zip(chain(*views), chain(*alone), strict=True):
        assert torch.equal(batch[0], crop)
    assert data.val_set[0][0].shape == (1, 16, 16)


def test_more_views_leave_the_first_as_it_is() -> None:
    single = prepared("digits").train_set[(3, 5)][0]
    several = prepared("digits", global_views=2, local_views=2).train_set[(3, 5)][0]
    assert torch.equal(single, several.global_crops[0])


def test_only_the_second_view_is_solarised(tmp_path: Path) -> None:
    # Two channels would be neither jittered nor greyed; here the image is flat, so that blur and
    # contrast do nothing, and bright, so that solarising makes it dark.
    images = np.full((20, 8, 8), 250, np.uint8)
    images[0] = 0
    path = write_npz(tmp_path / "a.npz", train_images=images)
    data = prepared(
        f"npz:{path}", image_size=16, global_views=2, local_views=1, distortion=0.05, crop_scale=1.0
    )
    dark = [0, 0, 0]
    for epoch in range(60):
        for place, crop in enumerate(chain(*data.train_set[(epoch, 7)][0])):
            dark[place] += bool(crop.mean() < 0)
    assert dark[0] == dark[2] == 0
    assert 3 <= dark[1] <= 25


def test_mixed_seed_separates_neighbours() -> None:
    seeds = {mixed_seed(a, b, c) for a in range(5) for b in range(5) for c in range(5)}
    assert len(seeds) == 125
    assert all(0 <= seed < 2**64 for seed in seeds)


@pytest.mark.parametrize("name", ["mnist", "digits:x", "npz", "npz:", "imagefolder:", ""])
def test_unknown_names_are_refused(name) -> None:
    with pytest.raises(ValueError, match=rf"name='{name}'.*digits, cifar10.*npz:PATH"):
        ImageDataModule(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"image_size": 0}, "image_size=0 must be at least 1"),
        ({"crop_scale": 0.0}, r"crop_scale=0\.0 must be in \(0, 1\]"),
        ({"crop_scale": 1.5}, r"crop_scale=1\.5 must be in"),
        ({"global_views": 0}, "global_views=0 must be at least 1"),
        ({"local_views": -1}, "local_views=-1 must be at least 0"),
        ({"local_size": 0}, "local_size=0 must be at least 1"),
        ({"distortion": -0.5}, r"distortion=-0\.5 must be at least 0"),
        ({"local_crop_scale": (0.5, 0.4)}, r"local_crop_scale=\(0\.5, 0\.4\) must rise"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        ImageDataModule(**options)


def test_bad_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.npz'.*no such file"):
        prepared(f"npz:{tmp_path / 'none.npz'}")
    path = write_npz(tmp_path / "a.npz", test_labels=None)
    with pytest.raises(ValueError, match=r"\['test_labels'\] are missing"):
        prepared(f"npz:{path}")
    path = write_npz(tmp_path / "b.npz", dtype=np.float32)
    with pytest.raises(ValueError, match=r"train_images: got float32 of shape \(20, 8, 8, 3\)"):
        prepared(f"npz:{path}")


def test_bad_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match=r"x: got uint8 of shape \(2, 4\)"):
        as_arrays(np.zeros((2, 4), np.uint8), [0, 1], "x")
    with pytest.raises(ValueError, match=r"x: got 2 images but labels of shape \(3,\)"):
        as_arrays(np.zeros((2, 4, 4), np.uint8), [0, 1, 2], "x")


def test_too_few_images_for_a_batch_are_refused(tmp_path: Path) -> None:
    data = prepared(f"npz:{write_npz(tmp_path / 'a.npz')}", world=2, batch_size=11)
    with pytest.raises(ValueError, match="batch_size=11 exceeds the 10 training images"):
        data.train_dataloader()


def test_a_checkpoint_keeps_the_normalisation(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz")
    data = prepared(f"npz:{path}", image_size=8)
    before, order = data.val_set[0][0], data.train_set[(2, 3)][0]
    state = data.state_dict()
    with np.load(path) as archive:
        pixels = archive["train_images"] / 255
    assert state["mean"] == pytest.approx(pixels.mean((0, 1, 2)), rel=1e-6)
    assert state["std"] == pytest.approx(pixels.std((0, 1, 2)), rel=1e-3)  # n - 1 there

    data.load_state_dict(state)
    again = prepared(f"npz:{path}", image_size=8)
    again.load_state_dict(state)
    for module in (data, again):
        assert torch.equal(module.val_set[0][0], before)
        assert torch.equal(module.train_set[(2, 3)][0], order)

    other = write_npz(tmp_path / "b.npz", train_images=np.zeros((20, 8, 8, 3), np.uint8))
    late, early = (
        prepared(f"npz:{other}", image_size=8),
        ImageDataModule(f"npz:{other}", image_size=8),
    )
    assert not torch.allclose(late.val_set[0][0], before)
    assert early.state_dict() == {}
    for module in (late, early):  # the same held-out images
        module.load_state_dict(state)
        module.setup()
        assert torch.equal(module.val_set[0][0], before)
        assert module.state_dict() == state
