"""Pairs of texts for training: in go descriptions and expressions, out come batches of ids with both views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from jepa_monitor.recipes.datasets import processes
from jepa_monitor.recipes.decoders import Codec, HubCodec, WordCodec
from jepa_monitor.recipes.expressions import Pair, draw_pairs

Ids = list[int]


def build_codec(decoder: str | None) -> Codec:
    """Find out how a decoder reads and writes.

    Args:
        decoder: ``hf/NAME`` or ``hf/FOLDER``; None for the small one of words.

    Returns:
        The codec.

    Raises:
        ValueError: If the name is of no such kind.
    """
    if decoder is None:
        return WordCodec()
    if not decoder.startswith("hf/"):
        raise ValueError(f"decoder={decoder!r} must be hf/NAME or hf/FOLDER.")
    return HubCodec(decoder.removeprefix("hf/"))


class EncodedPairs(Dataset[dict[str, Ids]]):
    """Pairs as ids.

    Args:
        pairs: Descriptions and expressions.
        codec: How the decoder reads them.
        predictors: Tokens that are appended to a description where it is a view.
    """

    def __init__(self, pairs: Sequence[Pair], codec: Codec, predictors: int) -> None:
        self.prompts = [codec.description(pair) for pair in pairs]
        self.answers = [codec.expression(pair) for pair in pairs]
        self.added = codec.predictors[:predictors]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> dict[str, Ids]:
        return {
            "input_ids": [*self.prompts[index], *self.added],
            "prompt": self.prompts[index],
            "expression": self.answers[index],
        }


def collate(items: Sequence[dict[str, Ids]]) -> dict[str, Tensor]:
    """Pad a batch.

    Args:
        items: Of :class:`EncodedPairs`.

    Returns:
        ``input_ids`` and ``attention_mask`` of the descriptions with their predictors; the same of the
        expressions, ``expression_ids`` and ``expression_mask``; and of both in one text, ``pair_ids`` and
        ``pair_mask``, with ``pair_answer``, which of its tokens are the expression's.
    """
    both = [[*item["prompt"], *item["expression"]] for item in items]
    ids, mask = _padded([item["input_ids"] for item in items])
    answer_ids, answer_mask = _padded([item["expression"] for item in items])
    pair_ids, pair_mask = _padded(both)
    begins = torch.tensor([len(item["prompt"]) for item in items])
    answer = pair_mask.bool() & (torch.arange(pair_ids.shape[1]) >= begins[:, None])
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "expression_ids": answer_ids,
        "expression_mask": answer_mask,
        "pair_ids": pair_ids,
        "pair_mask": pair_mask,
        "pair_answer": answer,
    }


def _padded(texts: Sequence[Ids]) -> tuple[Tensor, Tensor]:
    ids = pad_sequence([torch.tensor(text) for text in texts], batch_first=True)
    lengths = torch.tensor([len(text) for text in texts])
    return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()


class PairDataModule(LightningDataModule):
    """Descriptions and expressions of the grammar, always the same; the held-out ones are in no training pair.

    Args:
        train_pairs: Pairs to train on.
        held_out: Pairs to test on.
        watched: How many of these the monitor watches.
        batch_size: Pairs in a batch.
        decoder: Whose tokens; None for words. The model says it.
        predictors: Tokens that are appended to a description where it is a view. The model says it.
        num_workers: Processes that make batches.
        seed: Of the order of training pairs.

    Raises:
        ValueError: If a number is out of its range.
    """

    def __init__(
        self,
        train_pairs: int = 8000,
        held_out: int = 2000,
        watched: int = 256,
        batch_size: int = 64,
        decoder: str | None = None,
        predictors: int = 0,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        numbers = {"held_out": held_out, "watched": watched, "batch_size": batch_size}
        for name, value in numbers.items():
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        if train_pairs < batch_size:
            raise ValueError(f"batch_size={batch_size} exceeds the {train_pairs} training pairs.")
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.codec = build_codec(decoder)
        drawn = draw_pairs(held_out + train_pairs)
        self.held_out, self.pairs = drawn[:held_out], drawn[held_out:]
        self.train_set = EncodedPairs(self.pairs, self.codec, predictors)
        self.val_set = EncodedPairs(self.held_out, self.codec, predictors)
        items = [self.val_set[index] for index in range(min(watched, held_out))]
        # Both views of the first held-out pairs, as the monitor takes them.
        self.text_pairs: tuple[dict[str, list[Ids]], dict[str, list[Ids]]] = (
            {"input_ids": [item["input_ids"] for item in items]},
            {"input_ids": [item["expression"] for item in items]},
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """Training pairs in an order that seed and epoch decide on.

        Returns:
            A loader of batches of :func:`collate`, the last incomplete one left out.
        """
        sampler: DistributedSampler[Any] = DistributedSampler(
            self.train_set, *processes(self.trainer), seed=self.seed, drop_last=True
        )
        return self._loader(self.train_set, sampler=sampler, drop_last=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Held-out pairs in a fixed order.

        Returns:
            A loader of batches of :func:`collate`.
        """
        return self._loader(self.val_set)

    def _loader(self, dataset: EncodedPairs, **options: Any) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            self.batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=collate,
            generator=torch.Generator().manual_seed(self.seed),
            **options,
        )
