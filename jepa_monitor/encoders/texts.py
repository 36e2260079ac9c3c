"""Texts as tensors: in goes what a tokenizer gives, out come ids and kinds of tokens, padding last.

A set of texts is one tensor (B, T, 2) of int64: the id of each token, and its kind, which is 0 for padding
and 1 + its token type for a real one. Padding is always last, whatever side a tokenizer puts it on, so that
a token has the position that it has in the text alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["as_texts", "is_texts", "join_texts", "pack_texts", "text_lengths", "trim_texts"]


def is_texts(data: Any) -> bool:
    """Tell texts from images, which are never integers.

    Args:
        data: Anything.

    Returns:
        Whether it is a tensor (B, T, 2) of int64.
    """
    return isinstance(data, Tensor) and data.dtype == torch.int64 and data.shape[2:] == (2,)


def text_lengths(texts: Tensor) -> Tensor:
    """Count the tokens of texts.

    Args:
        texts: (B, T, 2).

    Returns:
        (B,), int64.
    """
    return (texts[..., 1] > 0).sum(1)


def trim_texts(texts: Tensor) -> Tensor:
    """Cut off what is padding of all texts.

    Args:
        texts: (B, T, 2).

    Returns:
        (B, t, 2), t the length of the longest.
    """
    return texts[:, : int(text_lengths(texts).max())]


def join_texts(parts: Sequence[Tensor]) -> Tensor:
    """Put batches of texts together, each padded to the longest.

    Args:
        parts: (b, t, 2) each, one at least.

    Returns:
        (B, T, 2).
    """
    longest = max(part.shape[1] for part in parts)
    pad = torch.nn.functional.pad
    return torch.cat([pad(part, (0, 0, 0, longest - part.shape[1])) for part in parts])


def as_texts(batch: Any, name: str = "texts") -> Tensor:
    """Take texts as a tokenizer or a collate function gives them.

    Args:
        batch: A dict or ``BatchEncoding`` with ``input_ids`` and, where texts are padded,
            ``attention_mask``; ``token_type_ids`` count if they are there. Or a tensor of this function's.
        name: What the texts are called in errors.

    Returns:
        (B, T, 2), int64, on the device of the ids.

    Raises:
        TypeError: If it is neither.
    """
    if is_texts(batch):
        checked: Tensor = batch
        return checked
    if not isinstance(batch, Mapping) or "input_ids" not in batch:
        got = f"keys {sorted(map(str, batch))}" if isinstance(batch, Mapping) else type(batch)
        raise TypeError(
            f"`{name}` must be a dict with `input_ids`, as a tokenizer returns it, got {got}."
        )
    return pack_texts(
        batch["input_ids"], batch.get("attention_mask"), batch.get("token_type_ids"), name
    )


def pack_texts(ids: Any, mask: Any = None, token_types: Any = None, name: str = "texts") -> Tensor:
    """Put ids and what goes with them into one tensor, padding last.

    Args:
        ids: (B, T) whole numbers, or a list of texts, each a list of ids: these need no padding, and so
            no tokenizer with a padding token.
        mask: 1 where a token is real, 0 where it is padding, of the shape of ``ids``; ``None``: all real.
        token_types: The segment of each token, of the same shape; ``None``: all 0.
        name: What the texts are called in errors.

    Returns:
        (B, T, 2), int64.

    Raises:
        TypeError: If ids are no whole numbers.
        ValueError: If there is no text, a text has no token, shapes differ, padding is in the middle of
            a text, or an id is negative.
    """
    numbers, listed = _matrix(ids, f"{name}['input_ids']")
    real = listed
    if mask is not None:
        given, _ = _matrix(mask, f"{name}['attention_mask']")
        _require_shape(given, numbers, f"{name}['attention_mask']")
        real = listed & (given != 0)
    kinds = torch.ones_like(numbers)
    if token_types is not None:
        given, _ = _matrix(token_types, f"{name}['token_type_ids']")
        _require_shape(given, numbers, f"{name}['token_type_ids']")
        kinds = 1 + given
    _check_padding(real, name)
    packed = torch.stack([numbers, kinds], 2).masked_fill(~real[..., None], 0)
    if bool((packed < 0).any()):
        row = int((packed < 0).flatten(1).any(1).nonzero()[0])
        raise ValueError(f"`{name}` must hold ids of at least 0, text {row} has a negative one.")
    order = torch.argsort((~real).long(), dim=1, stable=True)
    return trim_texts(packed.gather(1, order[..., None].expand_as(packed)))


def _matrix(rows: Any, name: str) -> tuple[Tensor, Tensor]:
    """Make (B, T) of rows that may differ in length, and say which numbers were there."""
    if not isinstance(rows, Tensor):
        try:
            texts = [torch.as_tensor(row) for row in rows]
        except (TypeError, ValueError) as error:
            raise TypeError(f"`{name}` must hold lists of whole numbers: {error}") from None
        if not texts or any(text.ndim != 1 for text in texts):
            raise ValueError(f"`{name}` must be a list of texts, each a list of numbers.")
        lengths = torch.tensor([len(text) for text in texts])
        # An empty list is a tensor of floats.
        rows = torch.nn.utils.rnn.pad_sequence(
            [text if len(text) else text.long() for text in texts], batch_first=True
        )
        there = torch.arange(rows.shape[1]) < lengths[:, None]
    else:
        there = torch.ones_like(rows, dtype=torch.bool)
    if rows.is_floating_point() or rows.is_complex():
        raise TypeError(f"`{name}` must hold whole numbers, got {rows.dtype}.")
    if rows.ndim != 2 or len(rows) == 0:
        raise ValueError(
            f"`{name}` must have shape (B, T) with at least one text, got {tuple(rows.shape)}."
        )
    return rows.detach().long(), there.to(rows.device)


def _require_shape(given: Tensor, ids: Tensor, name: str) -> None:
    if given.shape != ids.shape:
        raise ValueError(
            f"`{name}` must have the shape of the ids, {tuple(ids.shape)}, got "
            f"{tuple(given.shape)}."
        )


def _check_padding(real: Tensor, name: str) -> None:
    """Refuse texts without a token, and padding between tokens, which would get other positions."""
    empty = ~real.any(1)
    if bool(empty.any()):
        row = int(empty.nonzero()[0])
        raise ValueError(
            f"`{name}` must have at least one token in each text, text {row} has none: it is empty, "
            "or all padding."
        )
    begins = real & ~torch.nn.functional.pad(real, (1, 0))[:, :-1]
    torn = begins.sum(1) > 1
    if bool(torn.any()):
        row = int(torn.nonzero()[0])
        raise ValueError(
            f"`{name}` must be padded before or after each text, text {row} has padding in its middle."
        )
