"""The monitor for any training loop: in goes an encoder, out comes a report on fixed images."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jepa_monitor._settings import takes
from jepa_monitor._warnings import warn
from jepa_monitor.detectors import choose_detectors
from jepa_monitor.encoders import Embedder
from jepa_monitor.encoders.pretrained import Generalist, is_timm_name
from jepa_monitor.encoders.processes import Processes
from jepa_monitor.encoders.texts import is_texts
from jepa_monitor.encoders.token_encoder import encoder_for
from jepa_monitor.insights import (
    CONTRASTED,
    LABELS,
    Gatherer,
    Insight,
    Sources,
    default_insights,
)
from jepa_monitor.insights._drawing import is_drawable
from jepa_monitor.insights.asking import ask, parts_of
from jepa_monitor.insights.parts import are_classes, check_labels
from jepa_monitor.insights.polarity import Polarity
from jepa_monitor.insights.text_pairs import check_text_pairs
from jepa_monitor.insights.views import VIEWS
from jepa_monitor.jacobian.prepared import embed, fitting_threads
from jepa_monitor.jacobian.sketch import row_count
from jepa_monitor.jacobian.trust import LEAST, TRIED
from jepa_monitor.monitor.alarm import MIN_SAMPLES, CollapseState, collapse_state
from jepa_monitor.monitor.loop import DensityWatch
from jepa_monitor.monitor.report import Report
from jepa_monitor.monitor.settings import MonitorArguments, MonitorSettings
from jepa_monitor.probes.corruptions import CORRUPTIONS
from jepa_monitor.probes.groups import check_groups
from jepa_monitor.probes.labels import Labels, collect_classes, without_repeats
from jepa_monitor.probes.sources import Source, may_share_images

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["DensityMonitor"]

_OF_TEXTS = (
    " Of texts there are no corruptions, crops, contrast or pixels: density/polarity and /order, views/*, contrast*/*, "
    "data/* and quality/knn_pixels are absent."
)


@takes(MonitorSettings)
class DensityMonitor:
    """Measures, on fixed sets of images, what density an encoder has learned.

    The images are read once, at construction. Jacobians are dear, so the first
    ``max_probe_samples`` images of each set are scored; embeddings are cheap, so up to
    ``max_embedding_samples`` images of each set (the scored ones among them) are embedded.

    Args:
        probe: Held-out images: a tensor (N, ...), a Dataset, a DataLoader or an iterable of batches.
        shuffle_seed: Draws the probe at random instead of taking the first images.
        distributed: Share the work among the processes of ``torch.distributed``. Then every process
            must make its monitor and call :meth:`evaluate` when the others do, and every one gets
            the whole report; a failure in one is an error in all.
        **settings: See :class:`~jepa_monitor.monitor.settings.MonitorSettings`.

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
        shuffle_seed: int | None = None,
        distributed: bool = False,
        **settings: Unpack[MonitorArguments],
    ) -> None:
        given = MonitorSettings(**settings)
        self.options = given.score_options
        self.settled = self.options  # what `auto` came to: its rows never become fewer
        self.pool = given.pool
        self.max_probe_samples = given.max_probe_samples
        self.polarity_samples = given.polarity_samples
        self.insights: tuple[Insight, ...] = tuple(given.insights)
        self.detectors = choose_detectors(given.detectors)
        self.batch_to_images = given.batch_to_images
        self.distributed = distributed
        processes = Processes(distributed)

        def collect(
            data: Any, name: str, seed: int | None = None, labels: Labels = None
        ) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
            # They differ where a stream of data gives each process a part of its own.
            images, classes, numbers = processes.same(
                lambda: collect_classes(
                    data,
                    max(given.max_probe_samples, given.max_embedding_samples),
                    labels,
                    name=name,
                    batch_to_images=given.batch_to_images,
                    shuffle_seed=seed,
                    groups={} if name.startswith(("ood", "text_pairs")) else groups,
                )
            )
            apart = name == "probe" or name.startswith("text_pairs")  # checked elsewhere
            texts = is_texts(images) and not apart and is_texts(self.images)
            if not (apart or texts) and images.shape[1:] != self.images.shape[1:]:
                raise ValueError(
                    f"`{name}` must hold images of the probe's shape, "
                    f"{tuple(self.images.shape[1:])}, got {tuple(images.shape[1:])}."
                )
            by_name = dict(zip(groups, numbers.unbind(1), strict=False))
            return images, classes if len(classes) else None, by_name

        groups = check_groups(given.groups)
        self.images, self.labels, self.groups = collect(probe, "probe", shuffle_seed, given.labels)
        self.reference_groups: dict[str, Tensor] = {}
        self.reference: Tensor | None = None
        self.reference_labels: Tensor | None = None
        if given.reference is not None:
            shared = may_share_images(probe, given.reference)
            changed = isinstance(given.reference, Source) and given.reference.for_training
            changed = changed and not is_texts(self.images)  # no transform changes a text
            wanted = None if shared or changed else given.labels
            self.reference, self.reference_labels, found = collect(
                given.reference, "reference", 1, wanted
            )
            self._know_groups(found)
            if self.reference_labels is not None:
                self.reference_labels = without_repeats(
                    self.reference_labels, self.reference, self.images
                )
            if len(self.reference) < 3:
                raise ValueError(
                    f"`reference` must hold at least 3 images, got {len(self.reference)}."
                )
        self.ood = {
            name: collect(data, f"ood[{name!r}]")[0] for name, data in (given.ood or {}).items()
        }
        self.compare_with = given.compare_with
        if is_timm_name(given.compare_with):
            raw = bool((self.images.amin() >= 0) & (self.images.amax() <= 1))
            self.compare_with = Generalist(given.compare_with, raw)
        self.text_pairs: tuple[Tensor, Tensor] | None = None
        if given.text_pairs is not None:
            first, second = (
                collect(data, f"text_pairs[{number}]")[0]
                for number, data in enumerate(given.text_pairs)
            )
            self.text_pairs = check_text_pairs(self.images, first, second)
        if given.labels is not None and given.labels != "auto":
            stated = given.labels if isinstance(given.labels, Tensor) else self.labels
            assert stated is not None
            self.labels = check_labels(stated, len(self.images))
        for insight in self.insights:
            if LABELS in insight.needs and (self.labels is None or not are_classes(self.labels)):
                raise ValueError(
                    f"`insights` names {insight.name!r}, which needs {LABELS.source}: `probe` "
                    "does not yield them."
                )
        self.online = given.online
        self.world = given.world
        self.memory: dict[str, Any] = {}  # what looks remember for later ones of the run
        self._told: set[str] = set()  # failures that the user has been told of

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
            self.reference_labels,
            self.groups,
            self.reference_groups,
            self.compare_with,
            self.text_pairs,
            self.world,
            self.online,
            _state,
            self.memory,
        )
        defaults = default_insights(self.polarity_samples)
        insights = (*defaults, *self.insights)
        gatherer = Gatherer(encoder, sources, self.settled, self.pool, processes)
        with fitting_threads(gatherer.embedder, self.images, gatherer.device, processes):
            # What scores images fails as the look itself does; what is made beside may be missing.
            musts = parts_of(found for found in defaults if isinstance(found, Polarity))
            look, broken = gatherer.look(musts, self.detectors, optional=parts_of(insights))
            self.settled = look.options
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

    def _know_groups(self, found: dict[str, Tensor]) -> None:
        """Keep the groups of the reference, and say which are not known there."""
        for name, numbers in found.items():
            if bool((numbers >= 0).any()):
                self.reference_groups[name] = numbers
            else:
                warn(
                    f"`groups` names {name!r}, which the reference does not have: whether the probe "
                    "is of other groups than the training images is not told."
                )

    def _tell(self, failed: Mapping[str, str]) -> None:
        """Warn of every insight that fails, once."""
        for name in failed.keys() - self._told:
            self._told.add(name)
            warn(
                f"DensityMonitor goes without {name!r}: {failed[name]}. The others go on; further "
                "failures of it are only counted, in monitor/failed_insights."
            )

    def watch(
        self,
        *,
        every_n_steps: int = 1,
        max_overhead: float | None = 0.05,
        patience_steps: int | None = None,
        strict: bool = False,
    ) -> DensityWatch:
        """Watch a run in a training loop of your own: the callback's judgement, without Lightning.

        What it returns is called with the encoder and the number of steps done, as often as you like.
        It decides whether to look, looks, counts and warns, and never raises unless ``strict``.

        Args:
            every_n_steps: Look when so many steps have passed since; 1 for every call.
            max_overhead: Largest share of the wall time to spend, once a first minute of looks has
                been spent; a look that would exceed it is put off and counted in
                ``monitor/skipped``. ``None`` for no limit.
            patience_steps: Steps that a first, early collapse may last; default 1000
                (:func:`~jepa_monitor.monitor.alarm.default_patience` knows better for long runs).
            strict: Raise when a look fails, instead of warning once.

        Returns:
            The watch of one run. It has a ``state_dict`` for runs that are resumed.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If an argument is out of range.

        Example:
            >>> import torch
            >>> from jepa_monitor import DensityMonitor
            >>> encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))
            >>> watch = DensityMonitor(torch.rand(32, 3, 2, 2)).watch(every_n_steps=10)
            >>> looks = [watch(encoder, step) for step in range(21)]
            >>> [look.step for look in looks if look], looks[20].scalars["collapse/state"]
            ([0, 10, 20], 0.0)
        """
        return DensityWatch(
            self,
            every_n_steps=every_n_steps,
            max_overhead=max_overhead,
            patience_steps=patience_steps,
            strict=strict,
        )

    def plan(self, encoder: Any) -> str:
        """Say what an evaluation takes, for whoever waits for it; embeds one image to find out.

        Args:
            encoder: As :meth:`evaluate` takes it.

        Returns:
            A sentence.
        """
        processes = Processes(self.distributed)
        texts = is_texts(self.images)
        encoder, pool = encoder_for(self.images, encoder, self.pool)
        embedder = Embedder(encoder, pool, self.options.dtype, processes=processes)
        device = embedder.device or torch.device("cpu")
        one = embedder.run(lambda: embed(embedder, self.images[:1], device), device)
        width, inputs = one.shape[1], embedder.input_count(self.images)
        rows = row_count(self.settled, width, inputs, self.reference is not None)
        sets = [self.images, *self.ood.values()]
        sets += [] if self.reference is None else [self.reference]
        scored = sum(min(len(images), self.max_probe_samples) for images in sets)
        most = min(self.max_probe_samples, len(self.images))
        changed = min(self.polarity_samples, most) * is_drawable(self.images)
        changed *= len(CORRUPTIONS)
        changed += min(CONTRASTED.samples, most) * (self.images.ndim == 4)
        paired = 0 if self.text_pairs is None else 2 * len(self.text_pairs[0])
        views = VIEWS.views * min(VIEWS.samples, len(self.images)) * is_drawable(self.images)
        seen = f" and {views} views" if views else ""
        few = min(TRIED, most)
        exactly = 0 if rows is None or few < LEAST else few * width
        checked = f", and {exactly} to check the sketch" if exactly else ""
        passes, kind = rows or width, "backward passes"
        if rows is not None and self.settled.method == "lanczos":
            passes, kind = 2 * rows - rows // self.settled.depth, "backward passes and products J v"
        return (
            f"a look embeds {sum(map(len, sets)) + paired} {'texts' if texts else 'images'}{seen}, and scores "
            f"{scored} of them and {changed} changed ones with {passes} {kind} each{checked}, "
            f"{passes * (scored + changed) + exactly} in all.{_OF_TEXTS if texts else ''}"
        )


def _state(embeddings: Tensor) -> CollapseState:
    """Tell the state of collapse; of too few embeddings the worst, since they may hide any."""
    enough = len(embeddings) >= MIN_SAMPLES
    return collapse_state(embeddings) if enough else CollapseState.COMPLETE
