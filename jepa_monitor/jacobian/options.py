"""How to score: one frozen record of settings that every entry point shares."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypedDict

from jepa_monitor._checks import check_choice, check_positive, check_positive_int

if TYPE_CHECKING:
    import torch

__all__ = ["ScoreArguments", "ScoreOptions"]


class ScoreArguments(TypedDict, total=False):
    """The keyword arguments that become :class:`ScoreOptions`, for type checkers."""

    method: str
    rows: int | None
    steps: int | None
    tolerance: float | None
    correlation: float | None
    eps: float
    precision: str
    max_memory: int | None
    seed: int


@dataclass(frozen=True)
class ScoreOptions:
    """Settings of the score engine.

    Args:
        method: ``"exact"`` computes all K rows of the Jacobian; ``"sketch"`` R of them, of the
            embeddings whitened by a reference set (plain where there is none), which keeps the
            order of most encoders at R/K of the cost; ``"lanczos"`` estimates the exact score itself from
            R rows, in ``steps`` blocks, and R (1 - 1/``steps``) products J v: 12 + 6 for K ≤ 192. It
            suits backbones (docs/sketching.md). ``"auto"`` sketches
            where a reference is given and 32 < K ≤ D; a monitor and the command then take more rows, or
            all, where sketched and exact scores of a few images correlate below 0.9. Sketched and exact
            scores differ by far: never compare the two. Functions sketch texts
            (docs/text.md) unless a method is named.
        rows: R, rows of a sketch (default: K/16, at least 16) or of ``"lanczos"`` (default: a start
            for every 32 of K, at least 6, times ``steps``).
        steps: Blocks of rows of ``"lanczos"``, each of R/``steps`` rows; default: 2.
        tolerance: Error that is good enough, in nats after an offset. With ``"auto"`` and
            ``"lanczos"`` the cheapest of sketches and estimates is taken whose standard deviation from
            exact scores of 16 images is at most that; all rows where none is. It costs the exact
            scores of these images; default: none is asked for.
        correlation: Likewise, the least correlation with these exact scores, between 0 and 1; default:
            none is asked for.
        eps: Singular values below it count as it (the paper's clipping; arXiv 2510.05949, app. B).
        precision: ``"float32"`` runs the encoder in float32 (float64 if its parameters are), and
            everything after it in float64; ``"float64"`` runs the encoder in float64 too. ``"tf32"``
            is float32 with the backward passes in TF32, on CUDA devices that have it, for ``"exact"``
            and sketches: what that blurs is refined in float64, and ``audit_precision`` says how far
            it is off.
        max_memory: Bytes to use at most beyond the model; default: a quarter of what is free, on a
            CPU at most 1 GiB.
        seed: Of the sketch; the same for all images, evaluations and processes.

    Raises:
        TypeError: If a value is of the wrong type.
        ValueError: If a value is out of range.
    """

    method: str = "exact"
    rows: int | None = None
    steps: int | None = None
    tolerance: float | None = None
    correlation: float | None = None
    eps: float = 1e-6
    precision: str = "float32"
    max_memory: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice(self.method, "method", ("exact", "sketch", "lanczos", "auto"))
        if self.rows is not None:
            check_positive_int(self.rows, "rows")
            if self.method == "exact":
                raise ValueError(
                    f"`rows` is for `method='sketch'`, 'lanczos' or 'auto', got {self.rows}."
                )
        self._check_depth()
        check_positive(self.eps, "eps")
        check_choice(self.precision, "precision", ("float32", "tf32", "float64"))
        if self.precision == "tf32" and self.may_be_deep:
            raise ValueError(
                "`precision='tf32'` is for rows: neither `method='lanczos'` nor a `tolerance` or "
                "`correlation`, which may choose it."
            )
        if self.max_memory is not None:
            check_positive_int(self.max_memory, "max_memory")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise TypeError(f"`seed` must be an integer, got {self.seed!r}.")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"`seed` must be from 0 to 2**63 - 1, got {self.seed}.")

    def _check_depth(self) -> None:
        if self.steps is not None:
            check_positive_int(self.steps, "steps")
            if self.method != "lanczos":
                raise ValueError(f"`steps` is for `method='lanczos'`, got {self.steps}.")
        if self.method == "lanczos" and self.rows is not None and self.rows % self.depth:
            raise ValueError(
                f"`rows` must be a multiple of `steps`, {self.depth}, got {self.rows}."
            )
        for name, value in (("tolerance", self.tolerance), ("correlation", self.correlation)):
            if value is None:
                continue
            check_positive(value, name)
            if self.method not in ("auto", "lanczos"):
                raise ValueError(
                    f"`{name}` is for `method='auto'` or 'lanczos', got {self.method!r}."
                )
        if self.correlation is not None and self.correlation >= 1:
            raise ValueError(f"`correlation` must be below 1, got {self.correlation}.")

    def turned(self, method: str, rows: int | None = None) -> ScoreOptions:
        """Give the same settings with another method.

        Args:
            method: Which.
            rows: How many, for it.

        Returns:
            New settings, without what the method does not take.
        """
        return replace(self, method=method, rows=rows, steps=None, tolerance=None, correlation=None)

    @property
    def depth(self) -> int:
        """Blocks of rows of ``"lanczos"``."""
        return self.steps or 2

    @property
    def demanding(self) -> bool:
        """Whether it is said what is good enough."""
        return self.tolerance is not None or self.correlation is not None

    @property
    def may_be_deep(self) -> bool:
        """Whether scores may come to be estimated by ``"lanczos"``."""
        return self.method == "lanczos" or (self.method == "auto" and self.demanding)

    @property
    def dtype(self) -> torch.dtype | None:
        """The type to run the encoder in; ``None`` leaves it to the encoder's parameters."""
        import torch

        return torch.float64 if self.precision == "float64" else None
