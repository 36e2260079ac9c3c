"""Out-of-distribution sets: how well does each detector tell them from the probe?"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from jepa_monitor.functional.detection import auroc, average_precision, fpr_at_tpr
from jepa_monitor.insights._statistics import finite_only
from jepa_monitor.insights.base import Insight, Row
from jepa_monitor.insights.look import Look

__all__ = ["OutOfDistribution", "ood_scalars"]


class OutOfDistribution(Insight):
    """``ood/<name>/*`` of every set in ``ood``."""

    name = "ood"
    rows = (
        Row(
            tuple(f"ood/<name>/{kind}_<detector>" for kind in ("auroc", "fpr95", "ap")),
            "how well a detector tells the set from the probe (higher score: probe)",
            "0 … 1",
            "auroc, ap high; fpr95 low",
            "",
            "R passes a set",
            "`auroc`, `fpr_at_tpr`, `average_precision`",
        ),
    )

    def scalars(self, look: Look) -> dict[str, float]:
        """Compare every set with the probe.

        Args:
            look: What was gathered.

        Returns:
            ``ood/<name>/*``.
        """
        scalars: dict[str, float] = {}
        for name in look.ood:
            scalars |= ood_scalars(name, look.detected["probe"], look.detected[f"ood/{name}"])
        return scalars


def ood_scalars(
    name: str, probe: Mapping[str, Tensor], ood: Mapping[str, Tensor]
) -> dict[str, float]:
    """Measure how well each detector tells an out-of-distribution set from the probe.

    Args:
        name: What the set is called.
        probe: What each detector says of the probe, (B,) by name.
        ood: The same of the set.

    Returns:
        ``ood/<name>/auroc_<detector>``, ``fpr95_<detector>`` and ``ap_<detector>``.
    """
    scalars: dict[str, float] = {}
    for detector, values in probe.items():
        inside, outside = finite_only(values), finite_only(ood[detector])
        if len(inside) and len(outside):
            scalars[f"ood/{name}/auroc_{detector}"] = auroc(inside, outside).item()
            scalars[f"ood/{name}/fpr95_{detector}"] = fpr_at_tpr(inside, outside).item()
            scalars[f"ood/{name}/ap_{detector}"] = average_precision(inside, outside).item()
    return scalars
