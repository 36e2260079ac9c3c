"""The monitor for any training loop: in goes an encoder, out comes a report on fixed images."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from jepa_monitor._checks import check_positive_int
from jepa_monitor.detectors import Detector, choose_detectors
from jepa_monitor.encoders import Pool, check_pool
from jepa_monitor.encoders.processes import Processes
from jepa_monitor.insights import (
    FIRST_EMBEDDINGS,
    Gatherer,
    Sources,
    choose_insights,
    default_insights,
)
from jepa_monitor.insights.asking import ask, parts_of
from jepa_monitor.insights.parts import check_labels
from jepa_monitor.jacobian.options import ScoreOptions
from jepa_monitor.monitor.report import Report
from jepa_monitor.probes.images import BatchToImages, check_batch_to_images, collect_images

__all__ = ["DensityMonitor", "check_settings"]


def check_settings(
    *,
    max_probe_samples: Any,
    max_embedding_samples: Any,
    polarity_samples: Any,
    ood: Any,
    batch_to_images: Any,
    options: Any,
) -> None:
    """Check what can be checked before any data are read; see :class:`DensityMonitor`.

    Args:
        max_probe_samples: An integer of at least 1.
        max_embedding_samples: An integer of at least 1.
        polarity_samples: An integer of at least 0.
        ood: A mapping whose keys are strings, or ``None``.
        batch_to_images: A function, a dict of functions by set, or ``None``.
        options: :class:`~jepa_monitor.ScoreOptions` or ``None``.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of range.
    """
    check_positive_int(max_probe_samples, "max_probe_samples")
    check_positive_int(max_embedding_samples, "max_embedding_samples")
    if isinstance(polarity_samples, bool) or not isinstance(polarity_samples, int):
        raise TypeError(f"`polarity_samples` must be an integer, got {polarity_samples!r}.")
    if polarity_samples < 0:
        raise ValueError(f"`polarity_samples` must be at least 0, got {polarity_samples}.")
    check_batch_to_images(batch_to_images)
    if options is not None and not isinstance(options, ScoreOptions):
        raise TypeError(f"`options` must be ScoreOptions, got {type(options).__name__}.")
    if ood is None:
        return
    if not isinstance(ood, Mapping):
        raise TypeError(f"`ood` must be a dict of data by name, got {type(ood).__name__}.")
    for name in ood:
        if not isinstance(name, str) or not name:
            raise TypeError(f"`ood` must have names for keys, got {name!r}.")


class DensityMonitor:
    """Measures, on fixed sets of images, what density an encoder has learned.

    The images are read once, at construction. Jacobians are dear, so the first
    ``max_probe_samples`` images of each set are scored; embeddings are cheap, so up to
    ``max_embedding_samples`` images of each set (the scored ones among them) are embedded.

    Args:
        probe: Held-out images: a tensor (N, ...), a Dataset, a DataLoader or an iterable of batches.
        reference: Training images, of the same kinds. With it come the full log-density,
            calibration, outlier fractions and the whitening of a sketch.
        ood: Out-of-distribution images by name.
        max_probe_samples: How many images of each set to score.
        max_embedding_samples: How many images of each set to embed.
        polarity_samples: How many probe images to score again in corrupted versions (three kinds,
            three severities), which tells whether the score is inverted; 0 for none.
        pool: How outputs become (B, K); see :func:`~jepa_monitor.encoders.pooling.pool_output`.
        batch_to_images: Finds the images in a batch; one function, or a dict with one for each of
            ``probe``, ``reference`` and ``ood``. Default: :func:`~jepa_monitor.probes.batch_images`.
        options: How to score; default ``ScoreOptions(method="auto")``: a sketch where a reference
            is given, all rows otherwise.
        shuffle_seed: Draws the probe at random instead of taking the first images.
        insights: What else to measure: ``"alignment"`` (of the Jacobians of 16 probe images with
            their inputs), ``"tasks"``, ``"separation"`` (both need ``labels``), ``"neighbors"``
            (agreement with the first evaluation, and with ``compare_with``), insights of your own
            (:class:`~jepa_monitor.insights.Insight`), and metrics of torchmetrics over embeddings.
            One that fails is counted in ``monitor/failed_insights`` and reported in one warning.
        detectors: What tells outliers: names in :data:`~jepa_monitor.detectors.DETECTORS` and
            detectors of your own; default: all that have a name.
        labels: Classes of the probe images: a tensor (N,), or a function that finds them in a batch
            of the probe, (B,).
        compare_with: Another encoder, whose neighbourhoods to compare with.
        distributed: Share the work among the processes of ``torch.distributed``. Then every process
            must make its monitor and call :meth:`evaluate` when the others do, and every one gets
            the whole report; a failure in one is an error in all.

    Raises:
        TypeError: If an argument is of the wrong type or a set holds no images.
        ValueError: If an argument is out of range, or a set is empty, not finite, or of another
            shape than the probe.

    Example:
        >>> import torch
        >>> from jepa_monitor import DensityMonitor
        >>> encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))
        >>> monitor = DensityMonitor(torch.rand(32, 3, 2, 2))
        >>> report = monitor.evaluate(encoder)
        >>> report.method, report.probe.scores.shape
        ('exact, 4 rows', torch.Size([32]))
    """

    def __init__(
        self,
        probe: Any,
        *,
        reference: Any = None,
        ood: Mapping[str, Any] | None = None,
        max_probe_samples: int = 64,
        max_embedding_samples: int = 512,
        polarity_samples: int = 0,
        pool: Pool = "auto",
        batch_to_images: BatchToImages = None,
        options: ScoreOptions | None = None,
        shuffle_seed: int | None = None,
        insights: Iterable[Any] = (),
        detectors: Iterable[str | Detector] | None = None,
        labels: Tensor | Callable[[Any], Tensor] | None = None,
        compare_with: Any = None,
        distributed: bool = False,
    ) -> None:
        check_settings(
            max_probe_samples=max_probe_samples,
            max_embedding_samples=max_embedding_samples,
            polarity_samples=polarity_samples,
            ood=ood,
            batch_to_images=batch_to_images,
            options=options,
        )
        self.max_probe_samples = max_probe_samples
        self.options = options or ScoreOptions(method="auto")
        self.pool = check_pool(pool)
        self.distributed = distributed
        processes = Processes(distributed)

        def collect(data: Any, name: str, seed: int | None = None) -> Tensor:
            # They differ where a stream of data gives each process a part of its own.
            (images,) = processes.same(
                lambda: (
                    collect_images(
                        data,
                        max(max_probe_samples, max_embedding_samples),
                        name=name,
                        batch_to_images=batch_to_images,
                        shuffle_seed=seed,
                    ),
                )
            )
            if name != "probe" and images.shape[1:] != self.images.shape[1:]:
                raise ValueError(
                    f"`{name}` must hold images of the probe's shape, "
                    f"{tuple(self.images.shape[1:])}, got {tuple(images.shape[1:])}."
                )
            return images

        self.images = collect(probe, "probe", shuffle_seed)
        self.reference = None if reference is None else collect(reference, "reference", 1)
        if self.reference is not None and len(self.reference) < 3:
            raise ValueError(f"`reference` must hold at least 3 images, got {len(self.reference)}.")
        self.ood = {name: collect(data, f"ood[{name!r}]") for name, data in (ood or {}).items()}
        self.polarity_samples = polarity_samples
        self.insights = choose_insights(insights, labels)
        self.detectors = choose_detectors(detectors)
        self._told: set[str] = set()  # failures that the user has been told of
        self.labels: Tensor | None = None
        if labels is not None:
            found = labels
            if not isinstance(found, Tensor):
                found = self._read_labels(probe, found, shuffle_seed)
            self.labels = check_labels(found, len(self.images))
        self.compare_with = compare_with
        self.first_embeddings: Tensor | None = None  # of the probe, for `neighbors/drift`

    def evaluate(self, encoder: Any) -> Report:
        """Score the probe, and the other sets that were given.

        The encoder is left exactly as it was: modes, gradients, buffers, random states.

        Args:
            encoder: A module or callable that maps (B, ...) to (B, K), tokens, maps or structures.

        Returns:
            The report. Scores that are not finite are counted in ``monitor/nonfinite`` and left out
            of all statistics; a statistic without any finite value is absent.

        Raises:
            TypeError: If ``encoder`` is not callable or returns no tensor.
            ValueError: If ``encoder`` does not map each image by itself, differentiably, to one
                embedding.
            MemoryError: If a single image does not fit into memory.
        """
        started = time.perf_counter()
        processes = Processes(self.distributed)
        sources = Sources(
            self.images,
            self.reference,
            self.ood,
            self.max_probe_samples,
            self.labels,
            self.compare_with,
            self.first_embeddings,
        )
        defaults = default_insights(self.polarity_samples)
        insights = (*defaults, *self.insights)
        gatherer = Gatherer(encoder, sources, self.options, self.pool, processes)
        look, broken = gatherer.look(
            parts_of(defaults), self.detectors, optional=parts_of(self.insights)
        )
        if self.first_embeddings is None:
            self.first_embeddings = look.parts.get(FIRST_EMBEDDINGS)
        scalars, failed = ask(insights, look, broken, processes)
        if processes.rank == 0:
            self._tell(failed)
        scores = torch.cat([data.scores for data in look.sets.values()])
        scalars["monitor/images"] = float(len(scores))
        scalars["monitor/nonfinite"] = float((~torch.isfinite(scores)).sum())
        moved = processes.gather(lambda: gatherer.embedder.randomness or 0.0)
        scalars["monitor/random"] = max(moved)
        scalars["monitor/failed_insights"] = float(len(failed))
        scalars["monitor/seconds"] = time.perf_counter() - started
        return Report(scalars, look, insights, failed)

    def _tell(self, failed: Mapping[str, str]) -> None:
        """Warn of every insight that fails, once."""
        for name in failed.keys() - self._told:
            self._told.add(name)
            warnings.warn(
                f"DensityMonitor goes without {name!r}: {failed[name]}. The others go on; further "
                "failures of it are only counted, in monitor/failed_insights.",
                stacklevel=3,
            )

    def _read_labels(
        self, probe: Any, batch_to_labels: Callable[[Any], Tensor], shuffle_seed: int | None
    ) -> Tensor:
        """Read the labels the way the images were read: the same ones, in the same order."""
        if not callable(batch_to_labels):
            raise TypeError(
                f"`labels` must be a tensor or a function, got {type(batch_to_labels).__name__}."
            )
        return collect_images(
            probe,
            len(self.images),
            name="labels",
            batch_to_images=lambda batch: batch_to_labels(batch).double()[:, None],
            shuffle_seed=shuffle_seed,
        )[:, 0]
