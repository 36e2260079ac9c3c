"""Where a moving average is watched: how far it trails the encoder that is trained."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from jepa_monitor.encoders.modules import unwrap
from jepa_monitor.functional import ema_lag, functional_lag
from jepa_monitor.insights.base import Insight, Panel, Row
from jepa_monitor.insights.look import Look
from jepa_monitor.insights.parts import Part

if TYPE_CHECKING:
    from jepa_monitor.insights.gathering import Gatherer

__all__ = ["Ema", "Lag", "Lags"]


class Lags(NamedTuple):
    """How far the average trails; NaN where it cannot be said.

    Args:
        weights: Distance of the weights over their length.
        functional: Mean squared distance of the embeddings over their variance.
    """

    weights: float
    functional: float


@dataclass(frozen=True)
class Lag(Part[Lags]):
    """Distances of the watched encoder from the one that it averages.

    Args:
        samples: Of the probe, to be embedded by both.
    """

    samples: int = 32

    source = "`online`"

    def gather(self, at: Gatherer) -> Lags | None:
        """Measure them.

        Args:
            at: What the monitor has.

        Returns:
            The distances, or ``None`` where the trained encoder is not known.
        """
        online = at.sources.online
        if online is None:
            return None
        weights, functional = _lag_of_weights(at.encoder, online), torch.nan
        images = at.sources.images[: self.samples]
        averaged = at.probe.embeddings[: len(images)]
        trained = averaged[:0]
        with suppress(Exception):  # a context encoder may want masks; it fails in all processes
            trained = at.other(online).embeddings(images)
        if trained.shape == averaged.shape:
            finite = torch.isfinite(trained).all(1) & torch.isfinite(averaged).all(1)
            if int(finite.sum()) > 1:
                functional = functional_lag(trained[finite], averaged[finite]).item()
        return Lags(weights, functional)


def _lag_of_weights(average: Any, online: Any) -> float:
    """Distance of the weights that both have by the same name, if this process has them whole."""
    average, online = unwrap(average), unwrap(online)
    if not (isinstance(average, nn.Module) and isinstance(online, nn.Module)):
        return torch.nan
    theirs = dict(online.named_parameters())
    pairs = [
        (_resolved(theirs[name], mine), _resolved(mine, mine))
        for name, mine in average.named_parameters()
        if name in theirs and theirs[name].shape == mine.shape
    ]
    if not pairs or any(_is_part(p) for module in (average, online) for p in module.parameters()):
        return torch.nan
    return ema_lag((trained for trained, _ in pairs), (mine for _, mine in pairs)).item()


def _resolved(parameter: Tensor, beside: Tensor) -> Tensor:
    """Where both can be taken in float64, which Apple's GPUs do not have."""
    device = beside.device if beside.device.type != "mps" else torch.device("cpu")
    return parameter.detach().to(device)


def _is_part(parameter: nn.Parameter) -> bool:
    """Tell a parameter of which other processes have the rest: FSDP's, DeepSpeed's, lazy ones."""
    marks = ("_fsdp_flattened", "ds_id", "to_local")
    return is_lazy(parameter) or any(hasattr(parameter, mark) for mark in marks)


_LAG = Lag()


class Ema(Insight):
    """``ema/*``, where the watched encoder is the moving average of one that is trained."""

    name = "ema"
    wants = (_LAG,)
    rows = (
        Row(
            ("ema/lag",),
            "distance of the trained encoder's weights from the moving average that is watched, over the "
            "length of the average's",
            "≥ 0",
            "no level; 0 is a copy. Growing: the encoder moves faster than the average follows",
            "learning rate, momentum: a steady step u gives ‖u‖m/(1−m), a random one ‖u‖m/√(1−m²), over "
            "‖θ̄‖",
            "O(parameters)",
            "[SdOYmP67a2](https://openreview.net/forum?id=SdOYmP67a2)",
        ),
        Row(
            ("ema/functional_lag",),
            "mean squared distance of both encoders' embeddings of 32 probe images over the variance of "
            "the average's",
            "≥ 0",
            "well under 2, which unrelated embeddings of one law have",
            "the same, but for weights that do not matter",
            "32 images, forward",
            "the same",
        ),
    )
    panels = (Panel("ema", "lag of the moving average", ("ema/lag", "ema/functional_lag")),)

    def scalars(self, look: Look) -> dict[str, float]:
        """Say how far the average trails.

        Args:
            look: What was gathered.

        Returns:
            ``ema/*``; nothing where no trained encoder is known, and no lag of the weights where they
            are spread over processes.
        """
        if _LAG not in look.parts:
            return {}
        found = look[_LAG]
        scalars = {"ema/lag": found.weights, "ema/functional_lag": found.functional}
        return {tag: value for tag, value in scalars.items() if math.isfinite(value)}
