"""Write a report: in go loggers, a report and a step, out come curves, histograms and pictures."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
from torch import Tensor

from jepa_monitor.insights import Insight
from jepa_monitor.insights.dashboard import dashboard

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "current_step",
    "log_dashboard",
    "log_folder",
    "log_pictures",
    "log_scalars",
    "log_text",
    "page_writers",
    "png_summary",
    "takes_pictures",
]

_BINS = 64


def current_step(trainer: pl.Trainer) -> int:
    """Say where on the x-axis Lightning puts its own values now.

    Lightning counts a batch after its own hooks, but before those of the end of the epoch, where it
    subtracts one.

    Args:
        trainer: The Trainer.

    Returns:
        Number of optimizer steps taken before this batch.
    """
    return int(getattr(trainer.fit_loop.epoch_loop, "_batches_that_stepped", trainer.global_step))


def log_folder(loggers: Iterable[Any]) -> Path | None:
    """Find the folder that belongs to this run alone.

    Args:
        loggers: Lightning's loggers.

    Returns:
        ``log_dir`` of the first that has one on this machine, as TensorBoard's and CSV's do; ``None`` if
        none has.
    """
    for logger in loggers:
        folder = getattr(logger, "log_dir", None)
        if any(kind.__module__.startswith("swanlab.") for kind in type(logger).__mro__):
            folder = getattr(_writer(logger), "dir", None)  # its `log_dir` is that of all runs
        if isinstance(folder, (str, Path)) and "://" not in str(folder):
            return Path(folder)
    return None


def _add_histogram(writer: Any, tag: str, values: Tensor, step: int) -> None:
    numbers = values.double().cpu().numpy()
    if len(numbers):
        # Linear bins: TensorBoard's own are exponential and put scores around −300 into one.
        low, high = numbers.min(), numbers.max()
        width = max(high - low, 1e-6 * max(1.0, abs(high)))
        writer.add_histogram(tag, numbers, step, bins=np.linspace(low, low + width, _BINS + 1))


def _takes(thing: Any, method: str, *arguments: str) -> bool:
    """Say whether a method has arguments of these names."""
    # The name of a method says little: Comet's `log_figure` is not MLflow's, and a `log_image` of
    # somebody's own need not be that of Weights & Biases.
    try:
        parameters = inspect.signature(getattr(thing, method)).parameters
    except (AttributeError, TypeError, ValueError):
        return False
    return set(arguments) <= set(parameters)


def _writer(logger: Any) -> Any:
    """What writes for a logger; one of somebody's own may have no such thing."""
    return getattr(logger, "experiment", None)


def _named(logger: Any, tag: str) -> str:
    """Put a logger's own prefix before a tag, as Lightning does with scalars."""
    own = getattr(logger, "_prefix", "")
    return f"{own}{logger.LOGGER_JOIN_CHAR}{tag}" if own else tag


def _image(png: bytes) -> Image:
    """Read a picture as pixels, which every logger understands."""
    from PIL.Image import open as read

    with BytesIO(png) as file:
        return read(file).convert("RGB")


def png_summary(tag: str, png: bytes) -> Any:
    """Pack a picture as TensorBoard stores it, without taking it apart.

    Args:
        tag: Its tag.
        png: A PNG file.

    Returns:
        TensorBoard's ``Summary``.
    """
    from PIL.Image import open as read
    from tensorboard.compat.proto.summary_pb2 import Summary

    with BytesIO(png) as file:
        width, height = read(file).size  # its head says it
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
    return Summary(value=[Summary.Value(tag=tag, image=image)])


def _add_png(writer: Any, tag: str, png: bytes, step: int) -> None:
    """Write a picture to TensorBoard as it is: its own methods take pixels and compress them again."""
    events: Any = getattr(writer, "file_writer", None)
    if not _takes(events, "add_summary", "summary", "global_step"):  # somebody's own SummaryWriter
        writer.add_image(tag, np.asarray(_image(png)), step, dataformats="HWC")
        return
    events.add_summary(png_summary(tag, png), step)


def _is_of(thing: Any, package: str) -> bool:
    """Say whether a thing is of a package, which is imported then."""
    return type(thing).__module__.partition(".")[0] == package


def _picture_writer(logger: Any) -> Callable[[str, bytes, int], Any] | None:
    """Find out how a logger takes a picture under a tag and a step; ``None`` if it takes none."""
    writer = _writer(logger)
    if _takes(writer, "add_png", "tag", "png", "global_step"):
        return lambda tag, png, step: writer.add_png(_named(logger, tag), png, step)
    if _takes(
        writer, "add_image", "tag", "img_tensor", "global_step", "dataformats"
    ):  # TensorBoard
        return lambda tag, png, step: _add_png(writer, _named(logger, tag), png, step)
    # Weights & Biases, and who follows it: SwanLab, stable-pretraining's registry.
    if _takes(logger, "log_image", "key", "images", "step"):
        return lambda tag, png, step: logger.log_image(tag, [_image(png)], step=step)
    if _takes(writer, "log_image", "run_id", "image", "artifact_file"):  # MLflow
        return lambda tag, png, step: writer.log_image(
            logger.run_id, _image(png), f"{_named(logger, tag)}/{step:08d}.png"
        )
    if _is_of(writer, "trackio"):
        picture = import_module("trackio").Image
        return lambda tag, png, step: writer.log({tag: picture(_image(png))}, step=step)
    if _is_of(writer, "aim"):
        kind = import_module("aim").Image
        return lambda tag, png, step: writer.track(kind(_image(png)), name=tag, step=step)
    return None


def _text_writer(logger: Any) -> Callable[[str, str, int], Any] | None:
    """Find out how a logger takes words under a tag and a step; ``None`` if it takes none."""
    writer = _writer(logger)
    if _takes(writer, "add_text", "tag", "text_string", "global_step"):  # TensorBoard
        return lambda tag, text, step: writer.add_text(_named(logger, tag), text, step)
    if _takes(logger, "log_text", "key", "texts", "step"):  # SwanLab
        return lambda tag, text, step: logger.log_text(tag, [text], step=step)
    if _takes(logger, "log_text", "key", "columns", "data", "step"):  # Weights & Biases: a table
        return lambda tag, text, step: logger.log_text(
            tag, columns=["step", tag.rpartition("/")[2]], data=[[step, text]], step=step
        )
    if _takes(writer, "log_text", "run_id", "text", "artifact_file"):  # MLflow
        return lambda tag, text, step: writer.log_text(
            logger.run_id, text, f"{_named(logger, tag)}/{step:08d}.md"
        )
    if _is_of(writer, "trackio"):
        words = import_module("trackio").Markdown
        return lambda tag, text, step: writer.log({tag: words(text)}, step=step)
    if _is_of(writer, "aim"):
        kind = import_module("aim").Text
        return lambda tag, text, step: writer.track(kind(text), name=tag, step=step)
    return None


def _write_text(logger: Any, tag: str, text: str, step: int) -> None:
    write = _text_writer(logger)
    if write is not None:
        write(tag, text, step)


def _takes_histograms(logger: Any) -> bool:
    return _takes(_writer(logger), "add_histogram", "tag", "values", "global_step", "bins")


def _for_each(loggers: Iterable[Any], write: Callable[[Any], Any]) -> None:
    """Write to every logger, also when one of them fails; its error is raised at the end."""
    with ExitStack() as every:  # which calls all, whatever one of them raises
        for logger in reversed(list(loggers)):
            every.callback(write, logger)


def log_scalars(loggers: Iterable[Any], scalars: Mapping[str, float], step: int) -> None:
    """Write numbers to all loggers, also when one of them fails, and raise its error then.

    Args:
        loggers: Lightning's loggers.
        scalars: Finite numbers by tag.
        step: The x-coordinate.
    """
    _for_each(loggers, lambda logger: logger.log_metrics(dict(scalars), step=step))


def takes_pictures(loggers: Iterable[Any]) -> bool:
    """Say whether any logger has a place for histograms or pictures, which are dear to draw.

    Args:
        loggers: Lightning's loggers.

    Returns:
        Whether :func:`log_pictures` would write anything.
    """
    return any(_takes_histograms(logger) or _picture_writer(logger) for logger in loggers)


def log_pictures(
    loggers: Iterable[Any],
    histograms: Mapping[str, Tensor],
    pictures: Mapping[str, bytes],
    step: int,
    prefix: str,
) -> None:
    """Write histograms and pictures to the loggers that take them.

    TensorBoard gets both; Weights & Biases, SwanLab, stable-pretraining's registry, MLflow, Trackio
    and Aim the pictures. A logger is known by the arguments that its methods take, so that one which
    follows the interface of these gets pictures too, and any other is left alone. One that fails
    does not keep the others from theirs; its error is raised at the end.

    Args:
        loggers: Lightning's loggers.
        histograms: Finite values by tag.
        pictures: PNG files by tag.
        step: The x-coordinate.
        prefix: Of all tags.
    """

    def write(logger: Any) -> None:
        if _takes_histograms(logger):
            for tag, values in histograms.items():
                _add_histogram(_writer(logger), _named(logger, prefix + tag), values, step)
        write_picture = _picture_writer(logger)
        if write_picture is not None:
            for tag, png in pictures.items():
                write_picture(prefix + tag, png, step)

    _for_each(loggers, write)


def log_dashboard(
    loggers: Iterable[Any],
    prefix: str,
    settings: str,
    watched: Mapping[str, Iterable[Insight]],
    known: Iterable[str] = (),
    step: int = 0,
) -> None:
    """Write, once, how to arrange the curves and what they depend on.

    Args:
        loggers: Lightning's loggers.
        prefix: Of the callback's tags.
        settings: Shown as text.
        watched: The insights of all callbacks of the run by the prefix of their tags, in the same
            order in each callback: TensorBoard shows only one arrangement a run, so each of them
            writes that of all.
        known: Tags of the first look, without prefix.
        step: The x-coordinate of the settings.
    """
    tags = list(known)

    def write(logger: Any) -> None:
        writer = _writer(logger)
        if _takes(writer, "add_custom_scalars", "layout"):
            layout: dict[str, Any] = {}
            for each, insights in watched.items():
                layout |= dashboard(insights, _named(logger, each), tags)
            writer.add_custom_scalars(layout)
        _write_text(logger, f"{prefix}monitor/settings", settings, step)

    _for_each(loggers, write)


def log_text(loggers: Iterable[Any], tag: str, text: str, step: int) -> None:
    """Write words to the loggers that take them.

    Args:
        loggers: Lightning's loggers.
        tag: Where.
        text: Markdown.
        step: The x-coordinate.
    """
    _for_each(loggers, lambda logger: _write_text(logger, tag, text, step))


def page_writers(loggers: Iterable[Any]) -> list[Callable[[str, str], Any]]:
    """Find the loggers that keep a page with the run and show it: Weights & Biases and MLflow.

    Args:
        loggers: Lightning's loggers.

    Returns:
        One function for each of them, which takes a file's name and its HTML.
    """
    found: list[Callable[[str, str], Any]] = []
    for logger in loggers:
        writer = _writer(logger)
        if _takes(writer, "log_text", "run_id", "text", "artifact_file"):  # MLflow
            found.append(partial(_to_mlflow, writer, logger.run_id))
        elif _is_of(writer, "wandb"):
            found.append(partial(_to_wandb, writer))
    return found


def _to_mlflow(writer: Any, run_id: str, file: str, page: str) -> None:
    writer.log_text(run_id, page, file)


def _to_wandb(writer: Any, file: str, page: str) -> None:
    # Without its stylesheet: the page has its own, and forbids others.
    kind = import_module("wandb").Html
    writer.log({f"monitor/{file.removesuffix('.html')}": kind(page, inject=False)})
