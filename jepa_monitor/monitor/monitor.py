"""The monitor for any training loop: in goes an encoder, out comes a report on fixed images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from jepa_monitor._checks import check_positive_int
from jepa_monitor.encoders.embedder import Embedder, Pool, check_pool
from jepa_monitor.encoders.processes import Processes
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.insights import (
    alignment_of,
    alignment_scalars,
    check_insights,
    check_labels,
    label_scalars,
    neighbour_agreement,
)
from jepa_monitor.jacobian.engine import Spectra, spectra
from jepa_monitor.jacobian.options import ScoreOptions
from jepa_monitor.jacobian.score import density_terms, embed
from jepa_monitor.jacobian.spectrum import log_volume
from jepa_monitor.monitor.alarm import collapse_scalars
from jepa_monitor.monitor.pictures import is_drawable
from jepa_monitor.monitor.report import Report
from jepa_monitor.probes.corruptions import CORRUPTIONS, SEVERITIES
from jepa_monitor.probes.images import collect_images
from jepa_monitor.summary import (
    ScoredSet,
    density_scalars,
    detectors,
    ood_scalars,
    outlier_scalars,
    polarity_scalars,
    score_scalars,
)

__all__ = ["DensityMonitor", "check_settings"]

_ALIGNED = 16  # images whose Jacobians are compared with their inputs


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
        batch_to_images: A function or ``None``.
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
    if batch_to_images is not None and not callable(batch_to_images):
        raise TypeError(
            f"`batch_to_images` must be callable, got {type(batch_to_images).__name__}."
        )
    if options is not None and not isinstance(options, ScoreOptions):
        raise TypeError(f"`options` must be ScoreOptions, got {type(options).__name__}.")
    if ood is None:
        return
    if not isinstance(ood, Mapping):
        raise TypeError(f"`ood` must be a dict of data by name, got {type(ood).__name__}.")
    for name in ood:
        if not isinstance(name, str) or not name:
            raise TypeError(f"`ood` must have names for keys, got {name!r}.")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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
        pool: How outputs become (B, K); see :func:`~jepa_monitor.encoders.embedder.pool_output`.
        batch_to_images: Finds the images in a batch; default
            :func:`~jepa_monitor.probes.batch_images`.
        options: How to score; default ``ScoreOptions(method="auto")``: a sketch where a reference
            is given, all rows otherwise.
        shuffle_seed: Draws the probe at random instead of taking the first images.
        insights: What else to measure, of ``"alignment"`` (of the Jacobians of 16 probe images with
            their inputs), ``"tasks"``, ``"separation"`` (both need ``labels``) and ``"neighbors"``
            (agreement with the first evaluation, and with ``compare_with``).
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
        batch_to_images: Callable[[Any], Tensor] | None = None,
        options: ScoreOptions | None = None,
        shuffle_seed: int | None = None,
        insights: Iterable[str] = (),
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
        self.polarity_samples = polarity_samples if is_drawable(self.images) else 0
        self.insights = check_insights(insights, labels)
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
        embedder = Embedder(
            encoder, self.pool, self.options.dtype, processes=Processes(self.distributed)
        )
        device = embedder.device or torch.device("cpu")
        law, base = self._law(embedder, device)
        probe, method = self._score(embedder, self.images, law, device)
        for stored in sorted(embedder.parameter_dtypes - {embedder.dtype}, key=str):
            method += f", {_short(embedder.dtype)} copies of {_short(stored)} parameters"
        scalars = score_scalars(probe, self.options.eps) | collapse_scalars(probe.embeddings)
        images, reference, tells = len(probe.scores), None, None
        of_probe = detectors(probe, base, law)
        if self.reference is not None and law is not None:
            reference, _ = self._score(embedder, self.reference, law, device)
            images += len(reference.scores)
            tells = detectors(reference, base, law)
            scalars |= density_scalars(probe, reference, law)
        scalars |= outlier_scalars(of_probe, tells)
        ood = {}
        for name, data in self.ood.items():
            ood[name], _ = self._score(embedder, data, law, device)
            images += len(ood[name].scores)
            scalars |= ood_scalars(name, of_probe, detectors(ood[name], base, law))
        if self.polarity_samples:
            scalars |= self._polarity(embedder, probe, law, device)
        scalars |= self._insights(embedder, probe, device)
        sets = [probe, *([reference] if reference else []), *ood.values()]
        nonfinite = sum(int((~torch.isfinite(data.scores)).sum()) for data in sets)
        scalars |= {"monitor/images": float(images), "monitor/nonfinite": float(nonfinite)}
        scalars["monitor/seconds"] = time.perf_counter() - started
        return Report(scalars, method, probe, reference, ood, law)

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

    def _insights(
        self, embedder: Embedder, probe: ScoredSet, device: torch.device
    ) -> dict[str, float]:
        scalars: dict[str, float] = {}
        if "alignment" in self.insights:
            images = self.images[:_ALIGNED]
            measured = Processes(self.distributed).map(
                lambda part: alignment_of(embedder, part.to(device), images.to(device)), images
            )
            scalars |= alignment_scalars(measured)
        if self.labels is not None:
            scalars |= label_scalars(self.insights, probe.embeddings, self.labels)
        if "neighbors" in self.insights:
            if self.first_embeddings is None:
                self.first_embeddings = probe.embeddings
            others = {"drift": self.first_embeddings}
            if self.compare_with is not None:
                other = Embedder(
                    self.compare_with, self.pool, processes=Processes(self.distributed)
                )
                others["reference"] = self._embeddings(
                    other, self.images, other.device or torch.device("cpu")
                )
            for name, embeddings in others.items():
                agreement = neighbour_agreement(probe.embeddings, embeddings)
                if agreement is not None:
                    scalars[f"neighbors/{name}"] = agreement
        return scalars

    def _law(
        self, embedder: Embedder, device: torch.device
    ) -> tuple[Gaussian | None, Tensor | None]:
        """Fit the law to reference images that are not scored: to others it is out of sample."""
        if self.reference is None:
            return None, None
        apart = self.reference[self.max_probe_samples :]
        images = apart if len(apart) > 1 else self.reference
        embeddings = self._embeddings(embedder, images, device).double()
        base = embeddings[torch.isfinite(embeddings).all(1)]
        return (Gaussian.fit(base), base) if len(base) > 1 else (None, None)

    def _embeddings(self, embedder: Embedder, images: Tensor, device: torch.device) -> Tensor:
        (embeddings,) = Processes(self.distributed).map(
            lambda part: (embedder.run(lambda: embed(embedder, part, device), device),), images
        )
        return embeddings

    def _spectra(
        self, embedder: Embedder, images: Tensor, law: Gaussian | None, device: torch.device
    ) -> Spectra:
        basis: Tensor | None = None

        def work(part: Tensor) -> tuple[Tensor, ...]:
            nonlocal basis
            *found, basis = spectra(embedder, part.to(device), self.options, law)
            return tuple(found)

        embeddings, values, floors, under = Processes(self.distributed).map(work, images)
        return Spectra(embeddings, values, floors, under, None if basis is None else basis.cpu())

    def _score(
        self, embedder: Embedder, images: Tensor, law: Gaussian | None, device: torch.device
    ) -> tuple[ScoredSet, str]:
        scored = images[: self.max_probe_samples]
        found = self._spectra(embedder, scored, law, device)
        rest = images[len(scored) :]
        embeddings = [found.embeddings]
        if len(rest):
            embeddings.append(self._embeddings(embedder, rest, device))
        scores = log_volume(found.singular_values, self.options.eps)
        density = torch.full_like(scores, torch.nan)
        if law is not None:
            density = density_terms(found, law, self.options.eps).log_density
        width = found.embeddings.shape[1]
        method = f"exact, {width} rows"
        if found.basis is not None:
            kind = "plain" if law is None else "whitened"
            method = f"sketch, {len(found.basis)} of {width} rows, {kind}"
        data = ScoredSet(
            scored,
            torch.cat(embeddings),
            scores,
            density,
            found.singular_values,
            found.noise_floors,
        )
        return data, method

    def _polarity(
        self, embedder: Embedder, probe: ScoredSet, law: Gaussian | None, device: torch.device
    ) -> dict[str, float]:
        images = probe.images[: self.polarity_samples]
        scores: dict[str, dict[int, Tensor]] = {}
        for name, corrupt in CORRUPTIONS.items():
            scores[name] = {}
            for severity in SEVERITIES:
                found = self._spectra(embedder, corrupt(images, severity), law, device)
                scores[name][severity] = log_volume(found.singular_values, self.options.eps)
        return polarity_scalars(probe.scores[: len(images)], scores)
