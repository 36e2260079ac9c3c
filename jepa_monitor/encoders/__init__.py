"""Any encoder → a pure function images → (B, K), evaluated without leaving a trace."""

from jepa_monitor.encoders.embedder import Embedder
from jepa_monitor.encoders.isolation import undisturbed
from jepa_monitor.encoders.pooling import Pool, check_pool, pool_output
from jepa_monitor.encoders.processes import Processes
from jepa_monitor.encoders.sharding import check_whole
from jepa_monitor.encoders.token_encoder import TokenEncoder

__all__ = [
    "Embedder",
    "Pool",
    "Processes",
    "TokenEncoder",
    "check_pool",
    "check_whole",
    "pool_output",
    "undisturbed",
]
