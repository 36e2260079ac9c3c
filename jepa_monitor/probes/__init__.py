"""Any source of data → fixed images, and worse versions of them."""

from jepa_monitor.probes.finding import batch_images, batch_labels
from jepa_monitor.probes.images import collect_images, visit_images

__all__ = ["batch_images", "batch_labels", "collect_images", "visit_images"]
