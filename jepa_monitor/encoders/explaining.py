"""What is wrong with an encoder: in goes an error of its forward pass, out comes one that says what to do."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from jepa_monitor._warnings import warn

__all__ = ["explained", "tell_of_randomness"]

_TOLD: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()  # encoders warned of


def tell_of_randomness(encoder: Any, moved: float | None) -> None:
    """Warn of an encoder that does not repeat itself, once in its life.

    Args:
        encoder: It, or its module.
        moved: How far a second pass moves its embeddings, relative to their length.
    """
    if _TOLD.get(id(encoder)) is encoder:
        return
    with suppress(TypeError):  # an object that cannot be referred to weakly is told of again
        _TOLD[id(encoder)] = encoder
    warn(
        f"`encoder` gives other embeddings at every pass, in eval mode too: a second one moved "
        f"them by {moved:.1%} of their length. It masks, drops or samples at random, or "
        "counts its passes. Looks use the same seed for every image, so that they can be compared; "
        "their numbers hold for this seed only. Pass a function that turns the randomness off."
    )


@contextmanager
def explained(images: Tensor) -> Iterator[None]:
    """Have errors of a forward pass say what the encoder was called with.

    Args:
        images: What it is given.

    Yields:
        Nothing.

    Raises:
        RuntimeError: If the encoder kept a tensor from an earlier pass in inference mode.
        TypeError: If it takes integers.
        KeyError: As the encoder does, like whatever else it raises.
        MemoryError: Likewise.
        OutOfMemoryError: Likewise.
        Exception: Likewise, with what it was given.
    """
    try:
        yield
    except (KeyError, MemoryError, torch.OutOfMemoryError):
        raise  # a key is no message, and memory is not a matter of the kind of input
    except RuntimeError as error:
        if "Inference tensors cannot be saved" in str(error):
            raise RuntimeError(
                "`encoder` keeps a tensor that it made in inference mode (a cached position "
                "table or mask, say), through which no gradient can be taken. Build it in "
                "__init__, or validate with Trainer(inference_mode=False)."
            ) from error
        if "argument #1 'indices'" in str(error):
            raise TypeError(
                "`encoder` takes token ids, which have no gradient. Score it with respect to "
                "their embeddings: pass TokenEncoder(model), and texts in the place of images."
            ) from error
        _explain(error, images)
        raise
    except Exception as error:
        _explain(error, images)
        raise


def _explain(error: Exception, images: Tensor) -> None:
    """Add to an error's message what the encoder was given, and what to do if it takes another kind."""
    if not error.args or isinstance(error.args[0], str):
        said = f"{error.args[0]}\n" if error.args else ""
        given = (
            f"{said}`encoder` was given a {images.dtype} tensor of shape {tuple(images.shape)}. If it "
            "takes a list, a dict or several views, pass a function that makes them of a batch of "
            "images, such as lambda x: encoder([x])[0]."
        )
        error.args = (given, *error.args[1:])
