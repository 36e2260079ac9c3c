"""What may be said of a run, in frozen records: how to load the encoder, how to go through the data."""

from __future__ import annotations

import dataclasses
import math
import os

from jepa_monitor._checks import check_positive, check_positive_int

__all__ = ["ModelSettings", "ReplaySettings", "Settings"]

_WORKERS_A_CPU = 16  # more only take each other's memory


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """How to load the encoder.

    Args:
        encoder: Of a Lightning checkpoint, the dotted path of the encoder in the module, such as
            teacher.backbone; default: what the recipe's monitor watches, or else what has a usual
            name, EMA targets first.
        module: Of a Lightning checkpoint, the module's class, package.module:Class; default: that
            of the recipe which the checkpoint is of.
        image_size: Side in pixels to which images are resized; default: what the model says, or
            else 224.
        mean: Mean of each channel in [0, 1] to normalise with, such as 0.485 0.456 0.406; default:
            what the model says, or else ImageNet's.
        std: Standard deviation of each channel, likewise; default: as for ``mean``.
        random_weights: Leave a timm/, hf/ or open_clip/ model untrained: how much of a score is the
            architecture's own?
        trust_pickle: Load a checkpoint by unpickling it, which runs whatever code is in it.

    Raises:
        TypeError: If ``image_size`` is no integer.
        ValueError: If a value is out of range, or only one of mean and std is given.
    """

    encoder: str | None = None
    module: str | None = None
    image_size: int | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    random_weights: bool = False
    trust_pickle: bool = False

    def __post_init__(self) -> None:
        if self.image_size is not None:
            check_positive_int(self.image_size, "image_size")
        if (self.mean is None) != (self.std is None):
            raise ValueError("`mean` and `std` must be given together.")
        if self.mean is not None and self.std is not None:
            if not self.mean or len(self.mean) != len(self.std):
                raise ValueError(
                    f"`mean` and `std` must have one number a channel, got {self.mean} and {self.std}."
                )
            if not all(math.isfinite(number) for number in self.mean):
                raise ValueError(f"`mean` must be finite, got {self.mean}.")
            if not all(math.isfinite(number) and number > 0 for number in self.std):
                raise ValueError(f"`std` must be above 0, got {self.std}.")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to go through the data.

    Args:
        limit: Number of images to score, spread evenly over the data; default: all.
        batch_size: Images that are read, scored and kept at a time; at most so many are lost by a
            crash. What fits into memory does not depend on it, but on ``max_memory``. ``auto`` is
            16 on a CPU and 128 elsewhere.
        workers: Processes that read images; 0 reads in the main one.
        device: cpu, cuda, cuda:1, …; ``auto`` takes a GPU if there is one.
        reference_scored: How many images of the reference to score, at most half of it: detectors
            such as combined learn from the first half of them, and thresholds are set on the
            second. Each costs as much as an image of the data, once a run; 0 leaves them and these
            detectors out.
        rank_by: The score that quantiles and the least likely images are of: combined, jepa_score,
            log_density, log_prior, knn, mahalanobis or a detector that you have named.
        outlier_by: The score that tells outliers, one of the same. Where the reference is too small
            for it, the next of combined, log_density and knn takes its place, here and in
            ``rank_by``, and the closing table says so.
        fence: Scores so many robust standard deviations below the median are outliers; default: 5
            (docs/scoring.md).
        polarity_samples: How many images to score again in corrupted versions (the worst of three
            kinds), which tells whether the score is inverted; 0 for none.
        leverage_maps: For how many of the least likely images and outliers to map on which pixels
            their JEPA-SCORE rests, for the page; each costs as much as its score, 0 for none.
        max_pixels: Images of more pixels are refused as decompression bombs.
        convert: Convert images that are not plain 8-bit RGB or grey (CMYK, 16 bits, a palette,
            transparency, several frames), with a note in the table, or skip them.
        download: Fetch a data set of torchvision if it is not there.

    Raises:
        TypeError: If a value is of the wrong type.
        ValueError: If a value is out of range.
    """

    limit: int | None = None
    batch_size: int | str = "auto"
    workers: int = 0
    device: str = "auto"
    reference_scored: int = 128
    rank_by: str = "combined"
    outlier_by: str = "combined"
    fence: float | None = None
    polarity_samples: int = 16
    leverage_maps: int = 16
    max_pixels: int = 89_478_485
    convert: bool = True
    download: bool = False

    def __post_init__(self) -> None:
        if self.limit is not None:
            check_positive_int(self.limit, "limit")
        if isinstance(self.batch_size, str):
            if self.batch_size != "auto":
                raise ValueError(
                    f"`batch_size` must be a number of images or auto, got {self.batch_size!r}."
                )
        else:
            check_positive_int(self.batch_size, "batch_size")
        for name in ("workers", "reference_scored", "polarity_samples", "leverage_maps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"`{name}` must be an integer, got {value!r}.")
            if value < 0:
                raise ValueError(f"`{name}` must be at least 0, got {value}.")
        _check_most(self.workers)
        if self.fence is not None:
            check_positive(self.fence, "fence")
        check_positive_int(self.max_pixels, "max_pixels")


@dataclasses.dataclass(frozen=True)
class ReplaySettings:
    """How to look at each checkpoint: the defaults are those of the callback.

    Args:
        ood: Images that should look unlikely, each NAME=DATA, where DATA is named as ``data`` is;
            default: none.
        insights: What else to measure: alignment, tasks, separation (these two by the labels of the
            data), neighbors; default: nothing.
        detectors: What tells outliers: names of the registry, or package.module:Class of a detector of
            your own; default: all that have a name.
        max_probe_samples: How many images of each set to score.
        max_embedding_samples: How many images of each set to embed.
        polarity_samples: How many images to score again in corrupted versions; 0 for none.
        pool: How outputs become an embedding an image: auto, mean, cls or flatten.
        shuffle: Draw the probe at random by this number, as one does with files that are sorted by
            class; default: the first images.
        patience_steps: Steps that a first, early collapse may last before it is an alarm; default: a
            tenth of the steps of the last checkpoint, and at least 1000.
        steps_per_epoch: Makes steps of epochs, for checkpoints that count these; default: epochs are
            counted.
        workers: Processes that look at checkpoints, each at one; 1 looks in the main one. The numbers
            do not depend on it.
        device: cpu, cuda, cuda:1, …; ``auto`` takes a GPU if there is one, each worker the next.
        pictures: Draw the figures of each look, which takes time and room.
        max_pixels: Images of more pixels are refused as decompression bombs.

    Raises:
        TypeError: If a value is of the wrong type.
        ValueError: If a value is out of range.
    """

    ood: list[str] | None = None
    insights: list[str] | None = None
    detectors: list[str] | None = None
    max_probe_samples: int = 64
    max_embedding_samples: int = 512
    polarity_samples: int = 8
    pool: str = "auto"
    shuffle: int | None = None
    patience_steps: int | None = None
    steps_per_epoch: int | None = None
    workers: int = 1
    device: str = "auto"
    pictures: bool = True
    max_pixels: int = 89_478_485

    def __post_init__(self) -> None:
        for name in ("max_probe_samples", "max_embedding_samples", "workers", "max_pixels"):
            check_positive_int(getattr(self, name), name)
        for name in ("patience_steps", "steps_per_epoch"):
            if getattr(self, name) is not None:
                check_positive_int(getattr(self, name), name)
        if self.shuffle is not None and not 0 <= self.shuffle < 2**63:
            raise ValueError(f"`shuffle` must be from 0 to 2**63 - 1, got {self.shuffle}.")
        _check_most(self.workers)
        for named in self.ood or ():
            name, _, data = named.partition("=")
            if not (name and data):
                raise ValueError(f"`ood` must be NAME=DATA, got {named!r}.")


def _check_most(workers: int) -> None:
    most = _WORKERS_A_CPU * (os.cpu_count() or 1)
    if workers > most:
        raise ValueError(
            f"`workers` must be at most {most} on this machine of {os.cpu_count()} CPUs, "
            f"got {workers}."
        )
