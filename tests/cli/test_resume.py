"""Killed at any moment and started again, a run ends in the table of an undisturbed one."""

from __future__ import annotations

import multiprocessing
import os
import pathlib
import random
import signal
import time

import numpy as np
import pyarrow as pa
import pytest
from cli_helpers import Small, make_folder, transform

from jepa_monitor import ScoreOptions
from jepa_monitor.cli import RefusedError, Settings, info_of, read_table, score_dataset

SETTINGS = Settings(batch_size=3, polarity_samples=4)

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def run(folder: pathlib.Path, out: pathlib.Path) -> pa.Table:
    return score_dataset(
        Small(), str(folder), out, transform=transform, settings=SETTINGS,
        options=ScoreOptions(method="exact", max_memory=2**28),
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("data")
    make_folder(root, 20)
    (root / "a" / "broken.png").write_bytes(b"no image")
    return root


@pytest.fixture(scope="module")
def undisturbed(folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    out = tmp_path_factory.mktemp("out") / "scores.parquet"
    run(folder, out)
    return out


def dying_at(write: int, after: bool, folder: pathlib.Path, out: pathlib.Path) -> None:
    """Run until a file is about to appear, or just has."""
    replace, left = pathlib.Path.replace, [write]

    def deadly(self: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
        left[0] -= 1
        if left[0] < 0 and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(self, target)
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return target

    pathlib.Path.replace = deadly  # type: ignore[assignment,method-assign]
    run(folder, out)


def check(out: pathlib.Path, undisturbed: pathlib.Path) -> None:
    assert read_table(out).equals(read_table(undisturbed), check_metadata=True)
    errors = [path.with_name("scores.errors.jsonl").read_text() for path in (out, undisturbed)]
    assert errors[0] == errors[1]
    names = sorted(p.name for p in out.parent.iterdir())
    assert names == ["scores.errors.jsonl", "scores.maps.npz", "scores.parquet"]
    one, other = (np.load(path.with_name("scores.maps.npz")) for path in (out, undisturbed))
    for name in ("paths", "shares", "seen"):
        assert np.array_equal(one[name], other[name]), name


def test_dying_at_every_single_write(
    folder: pathlib.Path, undisturbed: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    context, out = multiprocessing.get_context("fork"), tmp_path / "scores.parquet"
    deaths = kept = 0
    for turn in range(100):  # each run gets one or no file further, then dies
        child = context.Process(target=dying_at, args=(turn % 2, turn % 3 == 0, folder, out))
        child.start()
        child.join(60)
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        deaths += 1
        before, kept = kept, len(list(tmp_path.rglob("[0-9]*.npz")))
        assert kept >= before  # nothing that was finished is lost
    assert deaths > 20  # manifest, 7 + 1 + 7 + 9 batches, errors, table
    check(out, undisturbed)


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_random_moments(
    kills: int, folder: pathlib.Path, undisturbed: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    context, generator, done = multiprocessing.get_context("fork"), random.Random(0), 0
    started = time.perf_counter()
    child = context.Process(target=run, args=(folder, tmp_path / "whole" / "scores.parquet"))
    child.start()
    child.join()
    whole = time.perf_counter() - started  # on this machine, as busy as it is
    for number in range(200):
        out = tmp_path / str(number) / "scores.parquet"
        while not out.exists():
            child = context.Process(target=run, args=(folder, out))
            child.start()
            # An exponential law hits early and late moments alike; a lucky run ends by itself.
            child.join(generator.expovariate(3 / whole))
            if child.is_alive():
                child.kill()
                done += 1
            child.join()
        run(folder, out)  # died between the table and the end of the cleaning-up, perhaps
        check(out, undisturbed)
        if done >= kills:
            break
    assert done >= kills


def test_a_damaged_batch_is_done_again(
    folder: pathlib.Path, undisturbed: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "scores.parquet"
    context = multiprocessing.get_context("fork")
    child = context.Process(target=dying_at, args=(12, True, folder, out))
    child.start()
    child.join()
    shards = sorted((tmp_path / "scores.unfinished").rglob("*.npz"))
    assert len(shards) > 3
    for shard, content in zip(shards, (b"", b"PK", shards[2].read_bytes()[:-40]), strict=False):
        shard.write_bytes(content)
    run(folder, out)
    check(out, undisturbed)


def test_changed_settings_are_refused_with_the_reason(
    folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "scores.parquet"
    context = multiprocessing.get_context("fork")
    child = context.Process(target=dying_at, args=(6, True, folder, out))
    child.start()
    child.join()

    def changed(options: ScoreOptions, settings: Settings = SETTINGS, scale: float = 1.0) -> None:
        encoder = Small()
        encoder.second.data *= scale
        score_dataset(
            encoder, str(folder), out, transform=transform, settings=settings, options=options
        )

    same = ScoreOptions(method="exact", max_memory=2**28)
    for finished in (False, True):  # an unfinished run, then its table
        if finished:
            changed(same)
        with pytest.raises(RefusedError, match=r"`eps`: 1e-06 → 1e-08"):
            changed(ScoreOptions(method="exact", max_memory=2**28, eps=1e-8))
        with pytest.raises(RefusedError, match=r"`limit`: None → 5"):
            changed(same, Settings(batch_size=3, polarity_samples=4, limit=5))
        with pytest.raises(RefusedError, match=r"model\.weights"):
            changed(same, scale=1.001)
    before = read_table(out)
    added = folder / "b" / "new.png"
    added.write_bytes((folder / "b" / "001.png").read_bytes())
    try:
        with pytest.raises(RefusedError, match=r"data\.images: 21 → 22"):
            changed(same)
    finally:
        added.unlink()
    assert read_table(out).equals(before)


def test_overwrite_begins_again(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "scores.parquet"
    run(folder, out)
    settings = Settings(limit=4, polarity_samples=0)
    table = score_dataset(
        Small(), str(folder), out, transform=transform, settings=settings, overwrite=True
    )
    assert len(table) + info_of(table)["skipped"] == 4
    assert read_table(out).equals(table)


def test_two_runs_at_once_are_refused(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    def again(phase: str, done: int, total: int) -> None:
        with pytest.raises(RefusedError, match="another process is at work"):
            run(folder, tmp_path / "scores.parquet")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_dataset(
            Small(), str(folder), tmp_path / "scores.parquet", transform=transform, progress=again
        )
