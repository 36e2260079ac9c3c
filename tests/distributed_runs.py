"""The monitor of tests in two processes: shared by both, or alone."""

from __future__ import annotations

from typing import Any

import torch
from helpers import images

from jepa_monitor import DensityMonitor, ScoreOptions


def monitor(shared: bool, **options: Any) -> DensityMonitor:
    """A monitor of odd numbers of images, which two processes cannot halve."""
    return DensityMonitor(
        images(21, 3),
        reference=images(63, 4),
        ood={"noise": torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(5))},
        max_probe_samples=13,
        max_embedding_samples=63,
        polarity_samples=3,
        options=ScoreOptions(**options),
        distributed=shared,
    )
