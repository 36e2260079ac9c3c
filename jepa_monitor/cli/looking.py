"""Look at the checkpoints of a run: in go files and images, out come kept looks, in any number of processes.

Two things pass from look to look of a monitor: how many rows a sketch was found to need, which never become
fewer, and the embeddings of the first look. So the first checkpoint is looked at alone, all others at once
with what it settled; and where one of these settles on more, those after it are looked at again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jepa_monitor.cli.images import file_state
from jepa_monitor.cli.kept_looks import keep_look, read_look
from jepa_monitor.cli.loaded import import_from
from jepa_monitor.cli.run_order import Saved
from jepa_monitor.cli.series import Series
from jepa_monitor.cli.settings import ModelSettings, ReplaySettings
from jepa_monitor.insights import FIRST_EMBEDDINGS
from jepa_monitor.jacobian.options import ScoreOptions
from jepa_monitor.monitor.monitor import DensityMonitor

__all__ = ["Failure", "Plan", "look_at_all", "look_path", "monitor_of"]


class Failure(NamedTuple):
    """What went wrong with a checkpoint.

    Args:
        reason: In words.
        loaded: Whether its encoder was there, and the look failed.
    """

    reason: str
    loaded: bool


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that the looks at a run have in common; it can be sent to another process.

    Args:
        folder: Where looks are kept.
        model: See :class:`~jepa_monitor.cli.series.Series`.
        model_settings: Likewise.
        options: How to score.
        settings: How to look.
        images: Of the probe, (N, ...).
        preprocessing: How these were prepared, in words.
        reference: Training images, (M, ...).
        ood: Other images by name.
        labels: Classes of the probe, (N,).
    """

    folder: Path
    model: str | None
    model_settings: ModelSettings
    options: ScoreOptions
    settings: ReplaySettings
    images: Tensor
    preprocessing: str
    reference: Tensor | None = None
    ood: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    labels: Tensor | None = None


class _Job(NamedTuple):
    saved: Saved
    begun: dict[str, Any]
    first: Path | None  # the look whose embeddings are the first ones


def monitor_of(plan: Plan) -> DensityMonitor:
    """Make the monitor that the callback would have.

    Args:
        plan: What to look at, and how.

    Returns:
        The monitor.

    Raises:
        TypeError: If a detector or an insight is none.
        ValueError: Likewise, or if a set of images is too small.
    """
    settings = plan.settings
    named: list[Any] = [
        import_from(name, "detectors") if ":" in name else name for name in settings.detectors or ()
    ]
    detectors: list[Any] = [found() if inspect.isclass(found) else found for found in named]
    return DensityMonitor(
        plan.images,
        reference=plan.reference,
        ood=plan.ood or None,
        max_probe_samples=settings.max_probe_samples,
        max_embedding_samples=settings.max_embedding_samples,
        polarity_samples=settings.polarity_samples,
        pool=settings.pool,
        options=plan.options,
        insights=settings.insights or (),
        detectors=detectors or None,
        labels=plan.labels,
    )


def look_path(plan: Plan, saved: Saved) -> Path:
    """Say where the look at a checkpoint is kept: elsewhere once its file has changed.

    Args:
        plan: What to look at.
        saved: The checkpoint.

    Returns:
        The path.
    """
    files = sorted(saved.path.iterdir()) if saved.path.is_dir() else [saved.path]
    states = [(file.name, file_state(str(file))) for file in files if file.is_file()]
    digest = hashlib.sha256(repr((str(saved.path), states)).encode()).hexdigest()[:16]
    return plan.folder / f"{saved.path.name}-{digest}.npz"


def look_at_all(
    saved: Sequence[Saved],
    plan: Plan,
    series: Series,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[Saved, Failure]:
    """Look at all checkpoints that have not been looked at.

    Args:
        saved: In order of step.
        plan: How.
        series: Loads their encoders in this process.
        progress: Called with what is done, how many checkpoints of it are, and of how many.

    Returns:
        What went wrong, by checkpoint. All others have a look that is kept.

    Raises:
        MemoryError: If a process was ended from outside, or there is not enough memory.
    """
    failures: dict[Saved, Failure] = {}
    with _crew(plan, series) as look:
        while jobs := _due(saved, plan, failures):
            done = len(saved) - len(jobs)
            for job, failure in look(jobs):
                done += 1
                if failure is not None:
                    failures[job.saved] = failure
                if progress is not None:
                    progress("checkpoints", done, len(saved))
    return failures


def _due(saved: Sequence[Saved], plan: Plan, failures: dict[Saved, Failure]) -> list[_Job]:
    """Find the looks that are missing, or began with something else than their turn asks for."""
    remembers = any(
        FIRST_EMBEDDINGS in (*insight.needs, *insight.wants)
        for insight in monitor_of(plan).insights
    )
    begun: dict[str, Any] = {**_deciding(plan.options), "first": None}
    first: Path | None = None
    left = [one for one in saved if one not in failures]
    for n, one in enumerate(left):
        path = look_path(plan, one)
        kept = read_look(path, whole=False)
        if kept is None or kept.begun != begun:
            turn = left[n:] if n else left[:1]  # what the first settles, the others begin with
            missing = []
            for other in turn:
                found = read_look(look_path(plan, other), whole=False)
                if found is None or found.begun != begun:
                    missing.append(_Job(other, dict(begun), first if remembers else None))
            return missing
        if first is None:
            first = path
        begun = {**kept.settled, "first": first.name if remembers else None}
    return []


def _deciding(options: ScoreOptions) -> dict[str, Any]:
    return {"method": options.method, "rows": options.rows}


class _Looker:
    """Looks at one checkpoint after another, in one process."""

    def __init__(self, plan: Plan, series: Series, device: torch.device) -> None:
        self._plan, self._series, self._device = plan, series, device
        self._monitor = monitor_of(plan)

    def look(self, job: _Job) -> Failure | None:
        """Look at a checkpoint and keep the look.

        Args:
            job: Which.

        Returns:
            What went wrong.

        Raises:
            MemoryError: If there is not enough memory.
        """
        try:
            loaded = self._series.load(job.saved.path)
        except ValueError as error:
            return Failure(str(error), loaded=False)
        if loaded.preprocessing != self._plan.preprocessing:
            other = loaded.preprocessing
            return Failure(f"takes images prepared otherwise than the first one: {other}", False)
        if hasattr(loaded.encoder, "to"):
            loaded.encoder.to(self._device)
        how = {name: job.begun[name] for name in _deciding(self._plan.options)}
        self._monitor.settled = dataclasses.replace(self._plan.options, **how)
        first = None if job.first is None else read_look(job.first)
        self._monitor.memory = {} if first is None else first.memory()
        try:
            report = self._monitor.evaluate(loaded.encoder)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - as the callback, which goes on
            return Failure(f"{type(error).__name__}: {error}", loaded=True)
        keep_look(
            look_path(self._plan, job.saved),
            report,
            job.begun,
            _deciding(self._monitor.settled),
            self._monitor.memory if first is None else {},
            self._plan.settings.pictures,
        )
        return None


_Look = Callable[[Sequence[_Job]], Iterator[tuple[_Job, Failure | None]]]
_looker: _Looker | None = None  # of a process of the crew


def _device(name: str, number: int = 0) -> torch.device:
    if name == "auto":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return torch.device("cuda", number % count) if count else torch.device("cpu")
    return torch.device(name)


@contextlib.contextmanager
def _crew(plan: Plan, series: Series) -> Iterator[_Look]:
    """Give a function that looks at checkpoints in as many processes as were asked for."""
    workers = plan.settings.workers
    if workers == 1:
        looker = _Looker(plan, series, _device(plan.settings.device))
        yield lambda jobs: ((job, looker.look(job)) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // workers)
    number = context.Value("i", 0)
    pool = ProcessPoolExecutor(workers, context, _start, (plan, threads, number))

    def look(jobs: Sequence[_Job]) -> Iterator[tuple[_Job, Failure | None]]:
        futures: dict[Future[Failure | None], _Job] = {pool.submit(_look, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise MemoryError(
                "a process of `workers` was ended, most likely for want of memory: take fewer. What "
                "is done is kept, the same command goes on."
            ) from error

    try:
        yield look
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start(plan: Plan, threads: int, number: Any) -> None:
    global _looker
    torch.set_num_threads(threads)
    with number.get_lock():
        mine, number.value = number.value, number.value + 1
    series = Series(plan.model, plan.model_settings)
    _looker = _Looker(plan, series, _device(plan.settings.device, mine))


def _look(job: _Job) -> Failure | None:
    assert _looker is not None
    return _looker.look(job)
