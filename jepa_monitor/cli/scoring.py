"""Score a data set: in go an encoder and images, out comes a table, a batch at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from jepa_monitor._checks import check_choice
from jepa_monitor._files import check_place, write_bytes
from jepa_monitor.cli.errors import RefusedError
from jepa_monitor.cli.fits import fit_all
from jepa_monitor.cli.leverage import write_maps
from jepa_monitor.cli.loaded import LoadedEncoder
from jepa_monitor.cli.models import load_encoder
from jepa_monitor.cli.phases import check_rows, read_polarity, score_corrupted, score_images
from jepa_monitor.cli.reference import (
    embed_reference,
    nothing_read,
    precondition,
    read_examples,
    read_law,
    score_examples,
)
from jepa_monitor.cli.runs import Run, check_same
from jepa_monitor.cli.settings import Settings
from jepa_monitor.cli.sketching import read_settled, settle_rows
from jepa_monitor.cli.sources import Source, open_source
from jepa_monitor.cli.tables import (
    LOG_PRIOR,
    check_format,
    info_of,
    read_table,
    side_file,
    with_info,
    write_table,
)
from jepa_monitor.cli.task import Progress, Task
from jepa_monitor.cli.torchvision_sets import download_torchvision
from jepa_monitor.cli.verdict import Verdict, compared, table_of
from jepa_monitor.detectors import Detector, choose_detectors
from jepa_monitor.encoders.embedder import Embedder
from jepa_monitor.encoders.processes import Processes
from jepa_monitor.jacobian.memory import default_budget
from jepa_monitor.jacobian.options import ScoreOptions

__all__ = ["check_request", "find_device", "score_dataset"]

_REFERENCE_IMAGES = 4096  # as of `log_density`
_LEAST_IMAGES = 2  # of a reference, whose law has a variance
_NOT_DECIDING = ("workers", "device", "download", "leverage_maps")
_FORMAT = 4  # of the unfinished work; a change of what is kept must not meet older files


def score_dataset(
    encoder: Any,
    data: Any,
    out: str | Path | None = None,
    *,
    transform: Callable[[Any], Tensor] | None = None,
    reference: Any = None,
    options: ScoreOptions | None = None,
    settings: Settings | None = None,
    detectors: Iterable[str | Detector] = (),
    strict: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> pa.Table:
    """Score every image of a data set.

    With ``out`` it can be interrupted at any point and called again: it goes on where it was. The
    processes of ``torch.distributed``, where that is initialised, share the work, and the rows do
    not depend on their number.

    Args:
        encoder: A name (see :func:`~jepa_monitor.cli.models.load_encoder`), what that returns, or
            any encoder.
        data: A path (see :func:`~jepa_monitor.cli.sources.open_source`) or a map-style data set.
        out: Where the table goes, ``.parquet``, ``.csv`` or ``.jsonl``; images that could not be
            read go to ``NAME.errors.jsonl`` beside it.
        transform: Makes a tensor of an RGB Pillow image; by default what comes with the name.
        reference: Data that the images are compared with; by default they themselves.
        options: How to score; default ``ScoreOptions(method="auto")``.
        settings: How to go through the data.
        detectors: What to score by too: names in :data:`~jepa_monitor.detectors.DETECTORS`, and
            detectors of your own; each has a column.
        strict: Raise at the first image that cannot be read.
        overwrite: Begin again if there is a table, or unfinished work, of other settings.
        progress: Called with the phase, the number of images done and that of all.

    Returns:
        A row for every image that could be read: ``path``, ``label``, scores (all of them higher
        for what is more usual), ``below_noise_floor``, ``quantile``, ``outlier``, ``p_value``,
        ``q_value`` and ``note`` (docs/scoring.md has all columns).
        :func:`~jepa_monitor.cli.tables.info_of` tells what is known of the run.

    Raises:
        BadImage: If an image cannot be read and ``strict`` is set.
        RefusedError: If there are results of other settings under ``out``.
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of range, or the encoder cannot be scored.
    """
    options = options or ScoreOptions(method="auto")
    settings = settings or Settings()
    processes = Processes(together=True)
    source, other, device = check_request(data, out, reference, settings)
    chosen = _chosen(detectors)
    names = (*(each.name for each in chosen), LOG_PRIOR)
    for argument in ("rank_by", "outlier_by"):
        check_choice(getattr(settings, argument), argument, names)
    loaded = load_encoder(encoder) if isinstance(encoder, str) else encoder
    if not isinstance(loaded, LoadedEncoder):
        loaded = LoadedEncoder(type(loaded).__name__, loaded, transform)
    elif transform is not None:
        loaded = dataclasses.replace(loaded, transform=transform)
    embedder = Embedder(loaded.encoder, dtype=options.dtype)
    _check_weights(embedder)
    if hasattr(loaded.encoder, "to"):
        loaded.encoder.to(device)
    check_rows(embedder, source, loaded.transform, options, device)
    identity = {
        "format": _FORMAT,
        "model": loaded.fingerprint(),
        "data": {"name": source.name, "images": len(source), "content": source.fingerprint()},
        "reference": other and {"name": other.name, "content": other.fingerprint()},
        "options": dataclasses.asdict(options),
        "settings": _deciding(settings),
        "detectors": [f"{each.name} {type(each).__qualname__}" for each in chosen],
    }
    with contextlib.ExitStack() as stack:
        if out is None:
            if processes.count > 1:
                raise ValueError("`out` must be given where several processes share the work.")
            place = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "scores.parquet"
        else:
            place = Path(out)
        run = Run(side_file(place, ".unfinished"))
        if processes.rank == 0:
            stack.enter_context(run.locked())
        if (done := processes.agree(lambda: _finished(place, identity, overwrite))) is not None:
            if processes.rank == 0:
                run.remove()
            return done
        begin = functools.partial(_claim, run, identity, settings, options, device)
        processes.agree(lambda: begin(overwrite) if processes.rank == 0 else None)
        planned = processes.agree(lambda: begin(False))  # the first one's, in every process
        task = Task(
            run,
            processes,
            embedder,
            loaded.transform,
            device,
            dataclasses.replace(options, max_memory=planned["max_memory"]),
            chosen,
            settings.workers,
            planned["batch_size"],
            strict,
            progress,
        )
        table = _work(task, source, other, settings, identity, loaded.assumed, place)
        if processes.rank == 0:
            run.remove()
        return table


def check_request(
    data: Any, out: str | Path | None, reference: Any, settings: Settings
) -> tuple[Source, Source | None, torch.device]:
    """Refuse what cannot be done before any work, such as loading a model.

    Args:
        data: See :func:`score_dataset`.
        out: Likewise.
        reference: Likewise.
        settings: How to go through the data.

    Returns:
        The images, those that they are compared with (``None`` for themselves) and the device.

    Raises:
        ValueError: If the images are none or too few, nothing can be written to ``out``, or there
            is no such device.
    """
    if out is not None:
        check_place(check_format(out), "out")
    device = find_device(settings.device)
    if settings.download:  # by one process, before the others look
        processes = Processes(together=True)
        names = (data, reference) if processes.rank == 0 else ()
        processes.agree(lambda: download_torchvision(*names))
    source = open_source(data, settings.max_pixels, settings.convert)
    if reference is not None:
        other = open_source(reference, settings.max_pixels, settings.convert, "reference")
        return source, other, device
    if len(source) < _LEAST_IMAGES:
        raise ValueError(
            f"`data` must hold at least {_LEAST_IMAGES} images to compare with each other, got "
            f"{len(source)}: name others as `reference`."
        )
    if settings.limit is not None and settings.limit < _LEAST_IMAGES:
        raise ValueError(
            f"`limit` must be at least {_LEAST_IMAGES} without `reference`, got {settings.limit}."
        )
    return source, None, device


def _chosen(detectors: Iterable[str | Detector]) -> tuple[Detector, ...]:
    """Find the detectors that are always there, and those that were asked for beside them."""
    usual = choose_detectors()
    names = {each.name for each in usual}
    return choose_detectors([*usual, *(each for each in detectors if each not in names)])


def _check_weights(embedder: Embedder) -> None:
    for module in embedder.modules:
        for name, parameter in module.named_parameters():
            if not bool(torch.isfinite(parameter.detach()).all()):
                raise ValueError(
                    f"`model` has parameters that are NaN or infinite, the first in {name!r}: "
                    "its training has failed, or its file is damaged."
                )


def _deciding(settings: Settings) -> dict[str, Any]:
    """Leave out what does not decide the rows."""
    record = dataclasses.asdict(settings)
    return {key: value for key, value in record.items() if key not in _NOT_DECIDING}


def _finished(place: Path, identity: dict[str, Any], overwrite: bool) -> pa.Table | None:
    if not place.exists() or overwrite:
        return None
    table = read_table(place)
    before = info_of(table).get("identity")
    if before is None:
        raise RefusedError(f"`out`: {place} exists and is not of this program: name another.")
    # What was asked for is compared as it comes back from a file: tuples are lists there.
    check_same(before, json.loads(json.dumps(identity)), f"the table {place}")
    return table


def _claim(
    run: Run,
    identity: dict[str, Any],
    settings: Settings,
    options: ScoreOptions,
    device: torch.device,
    overwrite: bool,
) -> dict[str, Any]:
    """Decide what depends on the machine once, so that a resumed run computes the same."""
    size = settings.batch_size
    planned = {
        "batch_size": (16 if device.type == "cpu" else 128) if size == "auto" else size,
        "max_memory": options.max_memory or default_budget(device),
    }
    if overwrite:
        run.clear()
    return run.claim(json.loads(json.dumps(identity)), planned)


def find_device(name: str) -> torch.device:
    """Find a device by name.

    Args:
        name: Such as ``cuda:1``; ``auto`` for a GPU if there is one.

    Returns:
        The device.

    Raises:
        ValueError: If it cannot be used.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)  # a name that is known need not be there
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"`device` {name!r} cannot be used: {reason}") from error
    return device


def _spread(total: int, count: int | None) -> list[int]:
    """Take some of many, evenly: the first ones of sorted data are all of one class."""
    if count is None or count >= total:
        return list(range(total))
    return [i * total // count for i in range(count)]


def _work(
    task: Task,
    source: Source,
    other: Source | None,
    settings: Settings,
    identity: dict[str, Any],
    assumed: tuple[str, ...],
    place: Path,
) -> pa.Table:
    """Go through the phases: the reference, the images, worse versions of some of them."""
    indices = _spread(len(source), settings.limit)
    agree = task.processes.agree
    base_source = source if other is None else other
    chosen = indices if other is None else list(range(len(other)))
    chosen = [chosen[i] for i in _spread(len(chosen), _REFERENCE_IMAGES)]
    agree(lambda: embed_reference(task, base_source, chosen))
    law = agree(lambda: read_law(task, chosen, other is None, settings.reference_scored))
    agree(lambda: settle_rows(task, source, indices, base_source, law))
    settled, law = agree(lambda: read_settled(task, law))
    task = dataclasses.replace(task, options=settled.options)
    agree(lambda: score_examples(task, base_source, law))
    known, numbers = agree(lambda: read_examples(task, base_source, law))
    asked = settings.reference_scored
    fits = agree(lambda: fit_all(task.detectors, law, known, numbers, asked))
    agree(lambda: score_images(task, source, indices, law, base_source, fits))
    scored = agree(lambda: task.run.collect("scores", task.count(indices)))
    if not scored.arrays:
        raise ValueError(nothing_read(indices, scored))
    finite = np.flatnonzero(np.isfinite(scored.arrays["jepa_score"]))
    rows = [finite[i] for i in _spread(len(finite), settings.polarity_samples)]
    probe = [int(scored.arrays["index"][row]) for row in rows]
    clean = scored.arrays["jepa_score"][rows]
    agree(lambda: score_corrupted(task, source, probe, law))

    def finish() -> pa.Table:
        verdict = Verdict.of(settings, law, task.detectors, fits)
        table = table_of(source, base_source, scored, verdict, fits.usual)
        info = {
            "identity": identity,
            **verdict._asdict(),
            "assumed": list(assumed),
            "images": len(indices),
            "ignored": source.ignored,
            "skipped": len(indices) - len(table),
            "method": settled.method,
            "agreement": settled.agreement,
            "reference": len(law.embeddings),
            "reference_scored": len(law.scored),
            "width": law.base.shape[1],
            **compared(scored, fits.usual),
            **precondition(law),
            **read_polarity(task, clean),
        }
        table = with_info(table, info)
        if task.processes.rank == 0:
            problems = scored.problems
            if other is not None:
                problems = problems + task.run.collect("reference", task.count(chosen)).problems
            _write_problems(side_file(place, ".errors.jsonl"), problems, task.run.folder)
            write_maps(task, source, law.law, table, settings.leverage_maps, place)
            write_table(table, place, task.run.folder)
        return table

    return agree(finish)


def _write_problems(path: Path, problems: list[dict[str, Any]], scratch: Path) -> None:
    if problems:
        lines = (json.dumps(problem, ensure_ascii=False) for problem in problems)
        write_bytes(path, "".join(f"{line}\n" for line in lines).encode(), scratch)
    else:
        path.unlink(missing_ok=True)  # of an earlier table
