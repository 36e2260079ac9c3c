"""What every benchmark asks and says alike: where results go, and what they were measured with."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch


def parser(doc: str | None, *, out: bool = True) -> argparse.ArgumentParser:
    """Make a parser that prints the script's own account of itself, with `--threads` and `--out`."""
    # Nothing is written unless `--out` names a file: a try does not overwrite what is committed.
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if out:
        made.add_argument("--out", type=Path, help="JSON file for the results (default: none)")
    made.add_argument("--threads", type=int, default=1, help="of torch (default: %(default)s)")
    return made


def processor(device: str = "cpu") -> str:
    """Name what computes."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


def circumstances(threads: int, device: str = "cpu") -> dict[str, Any]:
    """What a figure depends on beside its seed."""
    return {"device": processor(device), "torch": torch.__version__, "threads": threads}


@contextlib.contextmanager
def quiet_training() -> Iterator[str]:
    """Say nothing meanwhile, and give the Trainer a folder that is gone afterwards."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
        tempfile.TemporaryDirectory() as folder,
    ):
        warnings.simplefilter("ignore")
        yield folder


def in_turns(works: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Do some works by turns, so that what else the machine does disturbs all of them alike.

    Returns:
        For each, the median of the processor's seconds, of all threads.
    """
    times: list[list[float]] = [[] for _ in works]
    for _ in range(repeats):
        for seconds, work in zip(times, works, strict=True):
            start = time.process_time()
            work()
            seconds.append(time.process_time() - start)
    return [statistics.median(seconds) for seconds in times]


def table(*heads: str) -> list[str]:
    """Head of a Markdown table."""
    return ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean and, of several, standard deviation."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def points(mean: float, half: float) -> str:
    """A difference of shares in percentage points, with its interval."""
    return f"{100 * mean:+.1f} ({100 * (mean - half):+.1f} to {100 * (mean + half):+.1f})"


def store_runs(out: Path, settings: dict[str, Any], runs: list[Any]) -> None:
    """Write runs as JSON, one a line, with the processor's seconds of all."""
    seconds = round(sum(run["cpu_seconds"] for run in runs))
    rows = ",\n".join(json.dumps(run) for run in runs)
    head = json.dumps(settings | {"cpu_seconds": seconds})
    out.write_text(f'{{"settings": {head},\n"runs": [\n{rows}\n]}}\n')


def kept(out: Path | None, results: dict[str, Any]) -> dict[str, Any]:
    """Give what a file has under the same circumstances, to add to; else these results."""
    found = json.loads(out.read_text()) if out is not None and out.exists() else {}
    same = all(found.get(key) == value for key, value in results.items())
    return found if same else results


def store(out: Path | None, results: dict[str, Any]) -> None:
    """Write results as JSON, if a file was named."""
    if out is not None:
        out.write_text(json.dumps(results, indent=1) + "\n")
