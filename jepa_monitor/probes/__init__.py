"""Any source of data → fixed images, and worse versions of them."""

from jepa_monitor.probes.images import batch_images, collect_images, visit_images

__all__ = ["batch_images", "collect_images", "visit_images"]
