"""Two runs side by side: in go the looks of both, out come the numbers that may be compared.

What can be compared has no scale of its own. The levels of scores, densities and singular values depend on the
scale of inputs and embeddings, so of these there is only what has happened to them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

__all__ = ["CHANGE", "compared_rows", "is_comparable", "value_of"]

CHANGE = "jepa_score/mean, change since the first look"
_COMPARED = re.compile(
    r"advice/.*|quality/.*|views/.*|clusters/.*|lidar/.*|dimension/.*|ema/.*|data/.*|collapse/.*"
    r"|density/(?!normality_statistic).*|outliers/.*|ood/.*|contrast/(share|spearman|outliers).*"
    r"|neighbors/.*|separation/.*|tasks/.*|alignment/.*|tokens/.*|monitor/(failures|nonfinite)"
)
_ENDS = re.compile(r".*_(low|high)|collapse/steps_in_state")

Looks = Sequence[Mapping[str, float]]
Row = tuple[str, list[float | None]]


def is_comparable(tag: str) -> bool:
    """Say whether two runs may be compared by a tag.

    Args:
        tag: Without prefix.

    Returns:
        Whether it has no scale of its own.
    """
    return tag == CHANGE or _COMPARED.fullmatch(tag) is not None


def value_of(looks: Looks, look: Mapping[str, float] | None, tag: str) -> float | None:
    """Read a number of a look.

    Args:
        looks: All of its run, in order.
        look: The one; ``None`` for none.
        tag: Its tag, or :data:`CHANGE`.

    Returns:
        The number; ``None`` if there is none.
    """
    if look is None:
        return None
    if tag != CHANGE:
        return look.get(tag)
    begin = next((one["jepa_score/mean"] for one in looks if "jepa_score/mean" in one), None)
    now = look.get("jepa_score/mean")
    return None if begin is None or now is None else now - begin


def compared_rows(runs: Sequence[tuple[Looks, int | None]]) -> list[Row]:
    """Lay out the numbers of two runs.

    Args:
        runs: Looks, one at least, and the step of the checkpoint to keep, of either.

    Returns:
        The tag, and its numbers: of the first run at the checkpoint to keep and at the last look; of the second
        likewise. ``None`` where there is none.
    """
    (first, kept), (second, also) = runs
    places = [
        (first, _at(first, kept)),
        (first, first[-1]),
        (second, _at(second, also)),
        (second, second[-1]),
    ]
    others = set(_tags(second))
    common = [tag for tag in _tags(first) if tag in others]
    return [(tag, [value_of(looks, look, tag) for looks, look in places]) for tag in common]


def _at(looks: Looks, step: int | None) -> Mapping[str, float] | None:
    return next((look for look in looks if look["step"] == step), None)


def _tags(looks: Looks) -> list[str]:
    seen = dict.fromkeys(tag for look in looks for tag in look)
    compared = [t for t in seen if is_comparable(t) and not _ENDS.fullmatch(t)]
    return [*compared, CHANGE] if "jepa_score/mean" in seen else compared
