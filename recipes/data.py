"""Images by name for the recipes: one data module for arrays and for folders of images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets
from torchvision.transforms import v2

from jepa_monitor.recipes.arrays import as_arrays, load_digits, load_npz, load_textures
from jepa_monitor.recipes.curriculum import (
    NOISES,
    DenoisedImages,
    NoisyImages,
    PairedImages,
    StagedImages,
    check_copies,
    parse_level,
)
from jepa_monitor.recipes.datasets import (
    NOT_SET_UP,
    ArrayImages,
    EpochSampler,
    PlainImages,
    TrainImages,
    in_memory,
    normalisation,
    processes,
    resize_and_normalise,
)
from jepa_monitor.recipes.folders import channel_statistics, split_folder
from jepa_monitor.recipes.views import GaussianNoisePatch, Inject, MultiCrop, crop_and_flip, distort

if TYPE_CHECKING:
    from torch import Tensor

    from jepa_monitor.recipes.datasets import Arrays, Labelled

NAMES = ("textures", "digits", "cifar10", "fashion_mnist", "imagefolder:PATH", "npz:PATH")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImageDataModule(LightningDataModule):
    """Serve labelled images by name, augmented for training and plain for evaluation.

    The training images come in an order, and with augmentations, that depend on nothing but
    ``(seed, epoch, index)``: a resumed run sees what an uninterrupted one would have seen, whatever
    the number of workers. The labels are only for evaluation.

    Args:
        name: ``textures`` (ten kinds, drawn at ``image_size``), ``digits`` (scikit-learn's, 1797),
            ``cifar10``, ``fashion_mnist``, ``imagefolder:PATH`` (``PATH/train`` and ``PATH/val``, or
            ``PATH`` alone, split 4:1; images or NumPy files of bytes, in one subfolder per class or
            without classes) or ``npz:PATH`` (arrays ``train_images`` uint8 (N, H, W, C) or
            (N, H, W), ``train_labels``, ``test_images``, ``test_labels``).
        batch_size: Images in a batch, at least 1.
        image_size: Side in pixels to which the images are resized, at least 1.
        crop_scale: Smallest share of the area that a random crop keeps, in (0, 1]; 1 turns
            cropping off.
        flip: Whether to mirror at random; by default for everything but digits.
        global_views: Large crops of a training image, at least 1. With more than one view, global
            or local, the images of a training batch are ``Views`` instead of one tensor.
        local_views: Small crops of a training image.
        local_size: Side of the small crops in pixels; half of ``image_size`` by default.
        local_crop_scale: Smallest and largest share of the area that a small crop keeps.
        distortion: Strength of the changes of colour and sharpness, at least 0: 0 for none, 1 as
            DINOv2's. Its second global view is blurred seldom and solarised sometimes.
        noise: Noise that is part of the data, held-out images included, and never changes:
            ``gaussian:SIGMA`` (of 255), ``shot:PHOTONS`` or ``speckle:STRENGTH``; None for none.
        first_epochs: Epochs of the first stage of a curriculum, which ``first_scale`` and
            ``denoised`` change; 0 for none.
        first_scale: Size of the crops of the first stage as a share of their size, in (0, 1].
        denoised: Training images of the first stage: ``blur:SIGMA`` (in pixels) smooths them with a
            Gaussian; the name of a data set takes that one, which holds the same images in the same
            order. None leaves them as they are.
        paired: Whether training views of the second stage come with the global crops of the denoised
            copies, cut and distorted alike.
        noise_patch: Largest standard deviation, in [0, 1], of noise on a random square of each
            training image of the second stage; of all epochs without a first; 0 for none.
        inject: Corruption of each view, ``fog:1``, see ``Inject``; None for none.
        folder_mode: What images of a folder are converted to, a mode of Pillow: ``L`` for grey,
            ``RGB``, ``RGBA``, ... NumPy files keep their channels.
        num_workers: Processes that load images and make views; 0 leaves it to the one that trains.
        root: Folder that downloads go to.
        download: Whether ``cifar10`` and ``fashion_mnist`` may be downloaded.
        seed: Seed of the order and of the augmentations. The split of a data set that has none is
            the same for every seed.

    Raises:
        ValueError: If ``name`` is none of the above, or a number is out of its range.
    """

    def __init__(
        self,
        name: str = "textures",
        batch_size: int = 64,
        image_size: int = 24,
        crop_scale: float = 0.4,
        flip: bool | None = None,
        global_views: int = 1,
        local_views: int = 0,
        local_size: int | None = None,
        local_crop_scale: tuple[float, float] = (0.05, 0.4),
        distortion: float = 0.0,
        noise: str | None = None,
        first_epochs: int = 0,
        first_scale: float = 1.0,
        denoised: str | None = None,
        paired: bool = False,
        noise_patch: float = 0.0,
        inject: str | None = None,
        folder_mode: str = "RGB",
        num_workers: int = 0,
        root: str = "data",
        download: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        kind, _, path = name.partition(":")
        known = [n.partition(":")[0] for n in NAMES]
        if kind not in known or bool(path) != (kind in ("imagefolder", "npz")):
            raise ValueError(f"name={name!r} is no data set; expected one of {', '.join(NAMES)}.")
        local_size = max(image_size // 2, 1) if local_size is None else local_size
        counts = {"batch_size": batch_size, "image_size": image_size, "local_size": local_size}
        for argument, value in {**counts, "global_views": global_views}.items():
            if value < 1:
                raise ValueError(f"{argument}={value} must be at least 1.")
        least = {"local_views": local_views, "distortion": distortion, "noise_patch": noise_patch}
        for argument, number in {**least, "first_epochs": first_epochs}.items():
            if number < 0:
                raise ValueError(f"{argument}={number} must be at least 0.")
        for argument, share in {"crop_scale": crop_scale, "first_scale": first_scale}.items():
            if not 0 < share <= 1:
                raise ValueError(f"{argument}={share} must be in (0, 1].")
        if (denoised or first_scale < 1) and not first_epochs:
            raise ValueError(
                f"first_scale={first_scale} and denoised={denoised!r} are of a first stage; "
                "expected first_epochs of at least 1 with them."
            )
        if paired and not denoised:
            raise ValueError("paired=True needs copies to pair with; expected denoised with it.")
        if noise:
            parse_level(noise, "noise", NOISES)
        if denoised and denoised.partition(":")[0] not in known:
            parse_level(denoised, "denoised", ("blur",))
        if not 0 < local_crop_scale[0] <= local_crop_scale[1] <= 1:
            raise ValueError(f"local_crop_scale={local_crop_scale} must rise within (0, 1].")
        self.name: str = name
        self.batch_size = batch_size
        self.image_size = image_size
        self.crop_scale = crop_scale
        self.flip = kind != "digits" if flip is None else flip
        self.global_views = global_views
        self.local_views = local_views
        self.local_size = local_size
        self.local_crop_scale = local_crop_scale
        self.distortion = distortion
        self.noise = noise
        self.first_epochs = first_epochs
        self.first_scale = first_scale
        self.denoised = denoised
        self.paired = paired
        self.noise_patch = noise_patch
        self.injected = [Inject(inject)] if inject else []
        self.folder_mode = folder_mode
        self.num_workers = num_workers
        self.root = Path(root)
        self.download = download
        self.seed = seed
        self._kind, self._path = kind, Path(path)
        self._arrays: tuple[Arrays, Arrays] | None = None
        self._split: tuple[Labelled, Labelled] | None = None
        self._statistics: tuple[list[float], list[float]] | None = None
        self.train_set: TrainImages | StagedImages | None = None
        self.plain_train_set: Labelled | None = None
        self.val_set: Labelled | None = None

    @property
    def channels(self) -> int:
        """Colour channels of the images; reads the data where the name does not tell."""
        known = {"textures": 1, "digits": 1, "fashion_mnist": 1, "cifar10": 3}
        if self._kind == "imagefolder":
            return int(self._folders()[0][0][0].shape[0])
        return known.get(self._kind) or self._load_arrays()[0][0].shape[1]

    def prepare_data(self) -> None:
        """Download what is missing; runs in one process only."""
        if self._kind in ("cifar10", "fashion_mnist"):
            self._torchvision(train=True)

    def setup(self, stage: str | None = None) -> None:
        """Build ``train_set`` (augmented), ``plain_train_set`` and ``val_set`` (not augmented).

        Args:
            stage: Ignored.
        """
        if self.train_set is not None:
            return
        train, val = self._images()
        if self._statistics is None:
            measured = self._measure(train)
            self._statistics = measured[0].tolist(), measured[1].tolist()
        mean, std = self._statistics
        normalise = normalisation(mean, std)
        plain = v2.Compose([v2.ToImage(), *resize_and_normalise(self.image_size, mean, std)])
        self.plain_train_set = PlainImages(train, plain)
        self.val_set = PlainImages(val, plain)
        copies = self._copies(train)
        images = PairedImages(train, copies) if self.paired else train
        patch = GaussianNoisePatch(self.noise_patch) if self.noise_patch else None
        self.train_set = TrainImages(images, self.augmentation(normalise, whole=patch), self.seed)
        if self.first_epochs:
            easy = self.augmentation(normalise, self.first_scale)
            first = TrainImages(copies, easy, self.seed)
            self.train_set = StagedImages(first, self.train_set, self.first_epochs)

    def state_dict(self) -> dict[str, list[float]]:
        """Say how images are normalised, so that a checkpoint alone tells it.

        Returns:
            ``mean`` and ``std`` of each channel in [0, 1]; empty before ``setup``.
        """
        if self._statistics is None:
            return {}
        mean, std = self._statistics
        return {"mean": mean, "std": std}

    def load_state_dict(self, state_dict: dict[str, list[float]]) -> None:
        """Normalise as the run of a checkpoint did, whatever the images are now.

        Args:
            state_dict: What :meth:`state_dict` returned.
        """
        statistics = state_dict["mean"], state_dict["std"]
        if statistics == self._statistics:
            return
        self._statistics = statistics
        if self.train_set is not None:
            self.train_set = None
            self.setup()

    def augmentation(
        self,
        normalise: list[v2.Transform],
        size_factor: float = 1.0,
        whole: v2.Transform | None = None,
    ) -> MultiCrop:
        """Decide what the training views of an image look like.

        Args:
            normalise: What turns bytes into the numbers that the encoder sees.
            size_factor: What the sides of the crops are multiplied with.
            whole: What is done to the whole image before it is cropped.

        Returns:
            A function of an image that draws its views at random.
        """

        def view(local: bool, blur: float, solarize: float = 0.0) -> v2.Transform:
            size = round(size_factor * (self.local_size if local else self.image_size))
            scale = self.local_crop_scale if local else (self.crop_scale, 1.0)
            cut = crop_and_flip(size, scale, self.flip)
            changes = distort(self.distortion, self.channels, size, blur, solarize)
            return v2.Compose([*cut, *changes, v2.ToImage(), *self.injected, *normalise])

        first, second = view(local=False, blur=1.0), view(local=False, blur=0.1, solarize=0.2)
        large = [(first, second)[i % 2] for i in range(self.global_views)]
        busy = bool(self.distortion or self.local_views or self.crop_scale < 1)
        small = [view(local=True, blur=0.5)] * self.local_views
        return MultiCrop(large, small, whole, pillow=busy)

    def train_dataloader(self) -> DataLoader[Any]:
        """Augmented training images in a seeded order.

        Returns:
            A loader of (images (B, C, H, W), labels (B,)), the last incomplete batch left out;
            ``Views`` instead of images if there is more than one view.

        Raises:
            RuntimeError: Before ``setup``.
            ValueError: If there are fewer images than one batch.
        """
        if self.train_set is None:
            raise RuntimeError(NOT_SET_UP)
        n, (world, rank) = len(self.train_set), processes(self.trainer)
        if n // world < self.batch_size:
            raise ValueError(
                f"batch_size={self.batch_size} exceeds the {n // world} training images "
                f"that {self.name!r} has for each of {world} processes."
            )
        sampler = EpochSampler(self.train_set, world, rank, seed=self.seed, drop_last=True)
        return self._loader(self.train_set, sampler=sampler, drop_last=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Held-out images, not augmented, in a fixed order.

        Returns:
            A loader of (images (B, C, H, W), labels (B,)).

        Raises:
            RuntimeError: Before ``setup``.
        """
        if self.val_set is None:
            raise RuntimeError(NOT_SET_UP)
        return self._loader(self.val_set)

    def _loader(self, dataset: Dataset[Any], **options: Any) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            self.batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(self.seed),
            **options,
        )

    def _images(self) -> tuple[Labelled, Labelled]:
        if self._kind == "imagefolder":
            return self._folders()
        train, val = self._load_arrays()
        return self._enlarged(*train), self._enlarged(*val)

    def _measure(self, train: Labelled) -> tuple[Tensor, Tensor]:
        """Find mean and standard deviation of each channel in [0, 1]."""
        if self._kind != "imagefolder":
            pixels = self._load_arrays()[0][0].double() / 255
            return pixels.mean((0, 2, 3)).float(), pixels.std((0, 2, 3)).clamp_min(1e-3).float()
        if self.folder_mode == "RGB" and self.channels == 3:
            return torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
        return channel_statistics([train[i][0] for i in order[:256].tolist()])

    def _load_arrays(self) -> tuple[Arrays, Arrays]:
        if self._arrays is None:
            if self._kind == "textures":
                self._arrays = load_textures(self.image_size)
            elif self._kind == "digits":
                self._arrays = load_digits()
            elif self._kind == "npz":
                self._arrays = load_npz(self._path)
            else:
                sets = [self._torchvision(train) for train in (True, False)]
                train, val = [as_arrays(np.asarray(s.data), s.targets, "data") for s in sets]
                self._arrays = train, val
            if self.noise:
                self._arrays = self._noisy(self._arrays[0], 0), self._noisy(self._arrays[1], 1)
        return self._arrays

    def _noisy(self, arrays: Arrays, split: int) -> Arrays:
        assert self.noise is not None
        return in_memory(NoisyImages(ArrayImages(*arrays), self.noise, split)), arrays[1]

    def _copies(self, train: Labelled) -> Labelled:
        """Find the training images of the first stage."""
        if not self.denoised:
            return train
        if self.denoised.partition(":")[0] == "blur":
            sigma = parse_level(self.denoised, "denoised", ("blur",))[1]
            if self._kind == "imagefolder":
                return DenoisedImages(train, sigma)
            arrays = self._load_arrays()[0]  # before they are enlarged: sigma is in their pixels
            return self._enlarged(in_memory(DenoisedImages(ArrayImages(*arrays), sigma)), arrays[1])
        other = ImageDataModule(
            self.denoised,
            image_size=self.image_size,
            folder_mode=self.folder_mode,
            root=str(self.root),
            download=self.download,
        )
        copies = other._images()[0]
        check_copies(train, copies)
        return copies

    def _enlarged(self, images: Tensor, labels: Tensor) -> Labelled:
        # Before cropping, or crops of 8x8 digits could only move by whole pixels.
        if min(images.shape[2:]) < self.image_size:
            images = v2.functional.resize(images, [self.image_size, self.image_size])
        return ArrayImages(images, labels)

    def _torchvision(self, train: bool) -> Any:
        cls = datasets.CIFAR10 if self._kind == "cifar10" else datasets.FashionMNIST
        return cls(str(self.root), train=train, download=self.download)

    def _folders(self) -> tuple[Labelled, Labelled]:
        if self._split is None:  # listing a large folder takes minutes
            train, val = split_folder(self._path, self.folder_mode)
            if self.noise:
                train, val = NoisyImages(train, self.noise, 0), NoisyImages(val, self.noise, 1)
            self._split = train, val
        return self._split
