"""What to look at and how: one frozen record that the monitor and its callback share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypedDict

from torch import Tensor

from jepa_monitor._checks import check_positive_int
from jepa_monitor.detectors import Detector, choose_detectors
from jepa_monitor.encoders import Pool, check_pool
from jepa_monitor.encoders.pretrained import find_timm, is_timm_name
from jepa_monitor.insights import Clips, Insight, choose_insights, default_insights
from jepa_monitor.jacobian.options import ScoreOptions
from jepa_monitor.probes.groups import GroupSource, check_groups
from jepa_monitor.probes.images import BatchToImages, check_batch_to_images
from jepa_monitor.probes.labels import check_label_source

__all__ = ["MonitorArguments", "MonitorSettings"]


class MonitorArguments(TypedDict, total=False):
    """The keyword arguments that become :class:`MonitorSettings`, for type checkers."""

    reference: Any
    ood: Mapping[str, Any] | None
    max_probe_samples: int
    max_embedding_samples: int
    polarity_samples: int
    pool: Pool
    batch_to_images: BatchToImages
    options: ScoreOptions | None
    insights: Iterable[Any]
    detectors: Iterable[str | Detector] | None
    labels: Tensor | Callable[[Any], Tensor] | str | None
    groups: GroupSource
    compare_with: Any
    text_pairs: Any
    world: Any
    online: Any


@dataclass(frozen=True)
class MonitorSettings:
    """What a monitor looks at beside its probe, and how; checked before any data are read.

    Args:
        reference: Training images, of the same kinds as the probe. With it come the full
            log-density, calibration, outlier fractions and the whitening of a sketch.
        ood: Out-of-distribution images by name.
        max_probe_samples: How many images of each set to score.
        max_embedding_samples: How many images of each set to embed.
        polarity_samples: How many probe images to score again in corrupted versions (the worst of
            three kinds), which tells whether the score is inverted; 0 for none.
        pool: How outputs become (B, K); see :func:`~jepa_monitor.encoders.pooling.pool_output`.
        batch_to_images: Finds the images in a batch; one function, or a dict with one for each of
            ``probe``, ``reference`` and ``ood``. Default: :func:`~jepa_monitor.probes.batch_images`.
        options: How to score; default ``ScoreOptions(method="auto")``: a sketch where a reference
            is given, all rows otherwise.
        insights: What else to measure: ``"alignment"`` (of the Jacobians of 16 probe images with
            their inputs), ``"tasks"``, ``"separation"`` (both need ``labels``), ``"neighbors"``
            (agreement with the first evaluation, and with ``compare_with``), ``"identifiability"`` (up to which
            maps the embeddings agree with those of ``compare_with``), ``"generalist"`` (is the run ahead of
            ``compare_with``?), ``"dimension"`` (intrinsic
            dimensions, while nothing has collapsed), ``"lidar"`` (10 views of each image), ``"leverage"`` (a picture
            of the pixels on which the lowest and the highest scores rest), ``"tokens"`` (patch tokens of
            64 probe images and of a crop of each), ``"severity"`` (milder versions too: do scores fall with
            how bad an image is?), ``"perception"`` (of texts with classes: do directions that tell the next
            token tell the class?), insights of your own
            (:class:`~jepa_monitor.insights.Insight`), and metrics of torchmetrics over embeddings.
            One that fails is counted in ``monitor/failed_insights`` and reported in one warning.
        detectors: What tells outliers: names in :data:`~jepa_monitor.detectors.DETECTORS` and
            detectors of your own; default: all that have a name.
        labels: Classes of the images, which tell how good the embeddings are (``quality/*``).
            ``"auto"``: those that stand beside the images of the probe, and of a reference that you pass,
            where there are any; a tensor (N,), of the probe's; a function that finds them in a batch, (B,);
            ``None`` for none. They are only read, and nothing but ``quality/*``, ``"tasks"`` and
            ``"separation"`` depends on them.
        groups: What images have in common beside their class, such as the patient or the scanner
            (``groups/*``): a name in the batches, several, or a dict of functions that find it in a
            batch. The first is what data are split by: no image counts for ``quality/*`` as learned from
            whose group is asked.
        compare_with: Another encoder, with which to compare neighbourhoods and whole embeddings; or
            ``"timm/NAME"``, pretrained and frozen.
        text_pairs: Two views of held-out pairs of texts, such as descriptions and code (``text/*``): a tuple of
            two data sets, in one order, each as a probe of texts. Their first ``max_embedding_samples`` are embedded.
        world: Held-out clips with actions, and how a world model predicts the next embedding
            (:class:`~jepa_monitor.insights.Clips`; ``world/*``).
        online: The encoder that is trained, where its moving average is looked at (``ema/*``); the
            callback finds it by itself.

    Raises:
        TypeError: If a value is of the wrong type.
        ValueError: If a value is out of range.
    """

    reference: Any = None
    ood: Mapping[str, Any] | None = None
    max_probe_samples: int = 64
    max_embedding_samples: int = 512
    polarity_samples: int = 0
    pool: Pool = "auto"
    batch_to_images: BatchToImages = None
    options: ScoreOptions | None = None
    insights: Iterable[Any] = ()
    detectors: Iterable[str | Detector] | None = None
    labels: Tensor | Callable[[Any], Tensor] | str | None = "auto"
    groups: GroupSource = None
    compare_with: Any = None
    text_pairs: Any = None
    world: Any = None
    online: Any = None

    def __post_init__(self) -> None:
        check_positive_int(self.max_probe_samples, "max_probe_samples")
        check_positive_int(self.max_embedding_samples, "max_embedding_samples")
        samples: Any = self.polarity_samples
        if isinstance(samples, bool) or not isinstance(samples, int):
            raise TypeError(f"`polarity_samples` must be an integer, got {samples!r}.")
        if samples < 0:
            raise ValueError(f"`polarity_samples` must be at least 0, got {samples}.")
        check_batch_to_images(self.batch_to_images)
        options: Any = self.options
        if options is not None and not isinstance(options, ScoreOptions):
            raise TypeError(f"`options` must be ScoreOptions, got {type(options).__name__}.")
        check_pool(self.pool)
        check_label_source(self.labels)
        object.__setattr__(self, "groups", check_groups(self.groups))
        _check_other(self.compare_with)
        if self.world is not None and not isinstance(self.world, Clips):
            raise TypeError(f"`world` must be Clips or None, got {type(self.world).__name__}.")
        _check_names(self.ood)
        _check_pairs(self.text_pairs)
        # What was given may be a generator, which is read only once.
        object.__setattr__(self, "insights", choose_insights(self.insights, self.labels))
        object.__setattr__(self, "detectors", choose_detectors(self.detectors))

    @property
    def score_options(self) -> ScoreOptions:
        """How to score, the default where nothing was said."""
        return self.options or ScoreOptions(method="auto")

    @property
    def all_insights(self) -> tuple[Insight, ...]:
        """The insights that are always there, and those that were asked for."""
        return (*default_insights(self.polarity_samples), *self.insights)

    @property
    def arguments(self) -> MonitorArguments:
        """The same as keyword arguments."""
        found: Any = {field.name: getattr(self, field.name) for field in fields(MonitorSettings)}
        return found  # type: ignore[no-any-return]


def _check_other(other: Any) -> None:
    if is_timm_name(other):
        find_timm(other, "compare_with")
    elif other is not None and not callable(other):
        raise TypeError(
            f"`compare_with` must be a module, a function, 'timm/NAME' or None, got {other!r:.80}."
        )


def _check_names(ood: Any) -> None:
    if ood is None:
        return
    if not isinstance(ood, Mapping):
        raise TypeError(f"`ood` must be a dict of data by name, got {type(ood).__name__}.")
    for name in ood:
        if not isinstance(name, str) or not name:
            raise TypeError(f"`ood` must have names for keys, got {name!r}.")


def _check_pairs(pairs: Any) -> None:
    if pairs is not None and not (isinstance(pairs, tuple | list) and len(pairs) == 2):
        got = f"{len(pairs)} of them" if isinstance(pairs, tuple | list) else type(pairs).__name__
        raise TypeError(f"`text_pairs` must be two sets of texts, got {got}.")
