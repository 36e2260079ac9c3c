"""Maps of the images that look odd: in go an encoder and a table of scores, out comes a file beside it.

The page shows them without the encoder.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import zipfile
from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from jepa_monitor._files import write_atomically
from jepa_monitor.cli.sources import Source
from jepa_monitor.cli.tables import info_of, side_file
from jepa_monitor.cli.task import Prepared, Task
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.insights._drawing import for_display, is_drawable
from jepa_monitor.jacobian.leverage import leverages

__all__ = ["Maps", "read_maps", "write_maps"]

_SUFFIX = ".maps.npz"
_SIDE = 96  # pixels of a picture at most
_BRIGHT = 0.995  # quantile of all pixels that is as bright as can be
_LEVELS = 255
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


class Maps(NamedTuple):
    """What a page shows of them.

    Args:
        pairs: Of each image its ``row`` in the table, a picture of what the encoder saw, ``seen``,
            and one of the ``map``, as data URIs.
        scale: Picture of the colours, from none to most; empty without maps.
        top: What the brightest colour stands for, as a multiple of an even map's share.
        note: Why there are none, in words; empty where that needs no words.
    """

    pairs: list[dict[str, Any]]
    scale: str = ""
    top: float = 0.0
    note: str = ""


def write_maps(
    task: Task, source: Source, law: Gaussian, table: pa.Table, count: int, place: Path
) -> None:
    """Map the pixels on which the scores of the oddest images rest, in a file beside the table.

    A map that fails is no reason to lose the scores: the file then says why.

    Args:
        task: The run.
        source: Where the images are.
        law: What they are compared with.
        table: Their scores, with what is known of the run.
        count: Of how many; 0 for none.
        place: Path of the table.
    """
    out = side_file(place, _SUFFIX)
    paths = _oddest(table, count)
    if not paths:
        out.unlink(missing_ok=True)  # of an earlier table
        return
    run = hashlib.sha256(json.dumps([info_of(table)["identity"], paths]).encode()).hexdigest()
    if _of(out) == run:  # interrupted between these maps and the table
        return
    try:
        arrays = {**_mapped(task, source, law, paths), "run": np.array(run)}
    except Exception as error:  # noqa: BLE001 - memory, or an encoder that fails on this batch
        arrays = {"reason": np.array(f"{type(error).__name__}: {error}")}
    write_atomically(out, lambda path: np.savez_compressed(path, **arrays), task.run.folder)


def _of(place: Path) -> str:
    """Tell which run made a file of maps; empty if none did, or it is damaged."""
    try:
        with np.load(place, allow_pickle=False) as arrays:
            return str(arrays["run"])
    except _UNREADABLE:
        return ""


def _oddest(table: pa.Table, count: int) -> list[str]:
    """Take by turns the least likely images and the outliers, the furthest out first."""
    info = info_of(table)
    lowest = _ascending(table, info["rank_by"])
    odd = [path for path, outlier in zip(*_columns(table, "outlier"), strict=True) if outlier]
    flagged = [path for path in _ascending(table, info["outlier_by"]) if path in set(odd)]
    turns = (path for pair in zip_longest(lowest, flagged) for path in pair if path is not None)
    return list(dict.fromkeys(turns))[:count]


def _columns(table: pa.Table, name: str) -> tuple[list[str], list[Any]]:
    return table["path"].to_pylist(), table[name].to_pylist()


def _ascending(table: pa.Table, name: str) -> list[str]:
    pairs = zip(*_columns(table, name), strict=True)
    known = [(value, path) for path, value in pairs if value is not None and np.isfinite(value)]
    return [path for _, path in sorted(known)]


def _mapped(task: Task, source: Source, law: Gaussian, paths: list[str]) -> dict[str, Any]:
    """Compute the maps, and keep them with small pictures of what the encoder saw."""
    wanted = set(paths)
    indices = {key: i for i in range(len(source)) if (key := source.key(i)) in wanted}
    prepared = Prepared(source, task.transform)
    read = [(path, prepared[indices[path]].image) for path in paths]
    known = [(path, image) for path, image in read if image is not None]
    images = torch.stack([image for _, image in known])
    if not is_drawable(images):
        shape = tuple(images.shape[1:])
        return {"reason": np.array(f"inputs of shape {shape} are no images of 1 or 3 channels")}
    found: list[Tensor] = []
    for part in torch.split(images, task.batch_size):
        task.report("maps", len(found) * task.batch_size, len(images))
        found.append(leverages(task.embedder, part.to(task.device), task.options, law).leverage)
    task.report("maps", len(images), len(images))
    maps = torch.cat(found).cpu()
    shares = maps / maps.mean((1, 2), keepdim=True).clamp_min(1e-300)
    return {
        "paths": np.array([path for path, _ in known], dtype=np.str_),
        "seen": (255 * _small(for_display(images).movedim(-1, 1))).round().byte().numpy(),
        "shares": _small(shares[:, None])[:, 0].float().numpy(),
    }


def _small(images: Tensor) -> Tensor:
    """Shrink images (B, C, H, W) by averaging, so that none is wider or higher than a picture."""
    height, width = images.shape[-2:]
    scale = min(1.0, _SIDE / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return images if scale == 1.0 else F.adaptive_avg_pool2d(images, size)


def read_maps(scores: str | Path, table: pa.Table, order: Iterable[int]) -> Maps:
    """Read what :func:`write_maps` wrote, and draw it.

    Args:
        scores: Path of the table.
        table: The scores.
        order: Rows, in the order in which to show them; others are left out.

    Returns:
        The pictures; none, and a note, if there are none to be had.
    """
    place = side_file(Path(scores), _SUFFIX)
    if not place.is_file():
        return Maps([])
    try:
        with np.load(place, allow_pickle=False) as arrays:
            if "reason" in arrays:
                return Maps([], note=f"No maps of pixels: {arrays['reason']}.")
            paths, seen, shares = (arrays[name] for name in ("paths", "seen", "shares"))
    except _UNREADABLE as error:
        return Maps([], note=f"No maps of pixels: {place.name} cannot be read: {error}.")
    at = {path: i for i, path in enumerate(paths.tolist())}
    rows = [(row, at[path]) for row, path in _listed(table, order) if path in at]
    rows = [(row, i) for row, i in rows if np.isfinite(shares[i]).all()]
    if not rows:
        return Maps([])
    top = max(2.0, float(np.quantile(shares[[i for _, i in rows]], _BRIGHT)))
    pairs = [
        {"row": row, "seen": _photo(seen[i]), "map": _coloured(shares[i] / top)} for row, i in rows
    ]
    return Maps(pairs, _coloured(np.linspace(0, 1, _LEVELS + 1)[None]), top)


def _listed(table: pa.Table, order: Iterable[int]) -> Iterable[tuple[int, str]]:
    paths = table["path"].to_pylist()
    return ((row, paths[row]) for row in order)


def _photo(pixels: np.ndarray[Any, Any]) -> str:
    grey = len(pixels) == 1
    image = Image.fromarray(pixels[0] if grey else np.moveaxis(pixels, 0, -1))
    return _uri(image, "JPEG", quality=88, subsampling=0)


def _coloured(levels: np.ndarray[Any, Any]) -> str:
    """Draw numbers (H, W), of which 1 and more are brightest, in a palette."""
    from matplotlib import colormaps

    image = Image.fromarray((_LEVELS * np.clip(levels, 0, 1)).round().astype(np.uint8), mode="P")
    palette = colormaps["viridis"](np.arange(_LEVELS + 1))[:, :3]  # lighter at every step
    image.putpalette((_LEVELS * palette).round().astype(np.uint8).tobytes())
    return _uri(image, "PNG", optimize=True)


def _uri(image: Image.Image, kind: str, **how: Any) -> str:
    stream = io.BytesIO()
    image.save(stream, kind, **how)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"
