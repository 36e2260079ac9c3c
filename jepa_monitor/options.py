"""How to score: one frozen record of settings that every entry point shares."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from jepa_monitor._checks import check_choice, check_positive, check_positive_int

__all__ = ["ScoreOptions"]


@dataclass(frozen=True)
class ScoreOptions:
    """Settings of the score engine.

    Args:
        eps: Singular values below it count as it (the paper's clipping; arXiv 2510.05949, app. B).
        precision: ``"float32"`` runs the encoder in float32 (float64 if its parameters are), and
            everything after it in float64; ``"float64"`` runs the encoder in float64 too.
        max_memory: Bytes to use at most beyond the model; default: a quarter of what is free, on a
            CPU at most 1 GiB.

    Raises:
        TypeError: If a value is of the wrong type.
        ValueError: If a value is out of range.
    """

    eps: float = 1e-6
    precision: str = "float32"
    max_memory: int | None = None

    def __post_init__(self) -> None:
        check_positive(self.eps, "eps")
        check_choice(self.precision, "precision", ("float32", "float64"))
        if self.max_memory is not None:
            check_positive_int(self.max_memory, "max_memory")

    @property
    def dtype(self) -> torch.dtype | None:
        """The type to run the encoder in; ``None`` leaves it to the encoder's parameters."""
        return torch.float64 if self.precision == "float64" else None
