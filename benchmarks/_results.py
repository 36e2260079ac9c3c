"""What every benchmark asks and says alike: where results go, and what they were measured with."""

from __future__ import annotations

import argparse
import json
import platform
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


def kept(out: Path | None, results: dict[str, Any]) -> dict[str, Any]:
    """Give what a file has under the same circumstances, to add to; else these results."""
    found = json.loads(out.read_text()) if out is not None and out.exists() else {}
    same = all(found.get(key) == value for key, value in results.items())
    return found if same else results


def store(out: Path | None, results: dict[str, Any]) -> None:
    """Write results as JSON, if a file was named."""
    if out is not None:
        out.write_text(json.dumps(results, indent=1) + "\n")
