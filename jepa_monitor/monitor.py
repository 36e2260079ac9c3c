"""The monitor for any training loop: in goes an encoder, out comes a report on fixed images."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jepa_monitor._checks import check_positive_int
from jepa_monitor.encoders import Embedder, Pool, check_pool
from jepa_monitor.engine import spectra
from jepa_monitor.functional.collapse import normalized_std, rankme
from jepa_monitor.options import ScoreOptions
from jepa_monitor.probes import collect_images
from jepa_monitor.report import Report
from jepa_monitor.score import embed
from jepa_monitor.spectrum import clipped_count, log_volume

__all__ = ["DensityMonitor"]


def _finite_rows(values: Tensor) -> Tensor:
    return values[torch.isfinite(values).flatten(1).all(1)]


class DensityMonitor:
    """Measures, on a fixed set of held-out images, what density an encoder has learned.

    The images are read once, at construction. Jacobians are dear, so the first
    ``max_probe_samples`` images are scored; embeddings are cheap, so up to
    ``max_embedding_samples`` images (the scored ones among them) go into the collapse measures.

    Args:
        probe: Held-out images: a tensor (N, ...), a Dataset, a DataLoader or an iterable of batches.
        max_probe_samples: How many images to score.
        max_embedding_samples: How many images to embed.
        pool: How outputs become (B, K); see :func:`~jepa_monitor.encoders.pool_output`.
        batch_to_images: Finds the images in a batch; default
            :func:`~jepa_monitor.probes.batch_images`.
        options: How to score.
        shuffle_seed: Draws the images at random instead of taking the first.

    Raises:
        TypeError: If an argument is of the wrong type or the probe holds no images.
        ValueError: If an argument is out of range, or the probe is empty or not finite.

    Example:
        >>> import torch
        >>> from jepa_monitor import DensityMonitor
        >>> encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))
        >>> monitor = DensityMonitor(torch.rand(32, 3, 2, 2))
        >>> report = monitor.evaluate(encoder)
        >>> sorted(report.scalars)[:2]
        ['collapse/normalized_std', 'collapse/rankme']
    """

    def __init__(
        self,
        probe: Any,
        *,
        max_probe_samples: int = 64,
        max_embedding_samples: int = 512,
        pool: Pool = "auto",
        batch_to_images: Callable[[Any], Tensor] | None = None,
        options: ScoreOptions | None = None,
        shuffle_seed: int | None = None,
    ) -> None:
        self.max_probe_samples = check_positive_int(max_probe_samples, "max_probe_samples")
        check_positive_int(max_embedding_samples, "max_embedding_samples")
        if batch_to_images is not None and not callable(batch_to_images):
            raise TypeError(
                f"`batch_to_images` must be callable, got {type(batch_to_images).__name__}."
            )
        if options is not None and not isinstance(options, ScoreOptions):
            raise TypeError(f"`options` must be ScoreOptions, got {type(options).__name__}.")
        self.options = options or ScoreOptions()
        self.pool = check_pool(pool)
        self.images = collect_images(
            probe,
            max(max_probe_samples, max_embedding_samples),
            batch_to_images=batch_to_images,
            shuffle_seed=shuffle_seed,
        )

    def evaluate(self, encoder: Any) -> Report:
        """Score the probe.

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
        embedder = Embedder(encoder, self.pool, self.options.dtype)
        device = embedder.device or torch.device("cpu")
        probe = self.images[: self.max_probe_samples]
        found = spectra(embedder, probe.to(device), self.options)
        embeddings = [found.embeddings.cpu()]
        rest = self.images[len(probe) :]
        if len(rest):
            embeddings.append(embedder.run(lambda: embed(embedder, rest, device), device))
        report = Report(
            scalars={},
            scores=log_volume(found.singular_values, self.options.eps).cpu(),
            singular_values=found.singular_values.cpu(),
            embeddings=torch.cat(embeddings),
            images=probe,
        )
        report.scalars.update(self._scalars(report))
        report.scalars["monitor/seconds"] = time.perf_counter() - started
        return report

    def _scalars(self, report: Report) -> dict[str, float]:
        scores = report.scores[torch.isfinite(report.scores)]
        embeddings = _finite_rows(report.embeddings)
        scalars: dict[str, float] = {}
        if len(scores):
            low, median, high = torch.quantile(
                scores, scores.new_tensor([0.05, 0.5, 0.95])
            ).tolist()
            clipped = clipped_count(_finite_rows(report.singular_values), self.options.eps)
            scalars |= {
                "jepa_score/mean": scores.mean().item(),
                "jepa_score/p05": low,
                "jepa_score/p50": median,
                "jepa_score/p95": high,
                "jepa_score/clipped": clipped.double().mean().item(),
            }
        if len(scores) > 1:
            scalars["jepa_score/std"] = scores.std().item()
        if len(embeddings) > 1:
            scalars["collapse/rankme"] = rankme(embeddings).item()
            scalars["collapse/normalized_std"] = normalized_std(embeddings).item()
        scalars["monitor/images"] = len(report.scores)
        scalars["monitor/nonfinite"] = len(report.scores) - len(scores)
        return scalars
