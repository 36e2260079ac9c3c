"""Any encoder → a pure function images → (B, K), evaluated without leaving a trace."""

from jepa_monitor.encoders.embedder import Embedder, Pool, check_pool, check_whole, pool_output
from jepa_monitor.encoders.isolation import undisturbed
from jepa_monitor.encoders.processes import Processes

__all__ = [
    "Embedder",
    "Pool",
    "Processes",
    "check_pool",
    "check_whole",
    "pool_output",
    "undisturbed",
]
