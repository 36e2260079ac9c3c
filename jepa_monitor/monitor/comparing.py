"""Two runs side by side: in go the looks of both, out come the numbers that may be compared.

What can be compared has no scale of its own. The levels of scores, densities and singular values depend on the
scale of inputs and embeddings, so of these there is only what has happened to them. A score that sums fewer
singular values, of a sketch, is on a scale of its own: it is compared with its like, in a run and between runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

__all__ = ["CHANGE", "compared_rows", "is_comparable", "same_terms", "value_of"]

CHANGE = "jepa_score/mean, change since the first look"
_TERMS = "jepa_score/terms"
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
        tag: Its tag, or :data:`CHANGE`: since the first look that sums as many singular values.

    Returns:
        The number; ``None`` if there is none.
    """
    if look is None:
        return None
    if tag != CHANGE:
        return look.get(tag)
    now = look.get("jepa_score/mean")
    if now is None:
        return None
    alike = (one for one in looks if one.get(_TERMS) == look.get(_TERMS))
    return now - next(one["jepa_score/mean"] for one in alike if "jepa_score/mean" in one)


def same_terms(first: Looks, second: Looks) -> bool:
    """Say whether the scores of two runs sum as many singular values in the end.

    Args:
        first: Looks at one.
        second: Looks at the other.

    Returns:
        Whether changes of their scores are on one scale; true where a run does not tell.
    """
    ends = {
        next((look[_TERMS] for look in reversed(looks) if _TERMS in look), None)
        for looks in (first, second)
    }
    return len(ends - {None}) < 2


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
    others = set(_tags(second)) - (set() if same_terms(first, second) else {CHANGE})
    common = [tag for tag in _tags(first) if tag in others]
    return [(tag, [value_of(looks, look, tag) for looks, look in places]) for tag in common]


def _at(looks: Looks, step: int | None) -> Mapping[str, float] | None:
    return next((look for look in looks if look["step"] == step), None)


def _tags(looks: Looks) -> list[str]:
    seen = dict.fromkeys(tag for look in looks for tag in look)
    compared = [t for t in seen if is_comparable(t) and not _ENDS.fullmatch(t)]
    return [*compared, CHANGE] if "jepa_score/mean" in seen else compared
