"""Score data sets with any encoder: the command ``jepa-monitor`` and the functions beneath it."""

from jepa_monitor.cli.comparison import Comparison, compare
from jepa_monitor.cli.curation import curate, select
from jepa_monitor.cli.loaded import LoadedEncoder, ModelSettings
from jepa_monitor.cli.models import load_encoder
from jepa_monitor.cli.page import report
from jepa_monitor.cli.runs import RefusedError
from jepa_monitor.cli.scoring import Settings, score_dataset
from jepa_monitor.cli.tables import info_of, read_table

__all__ = [
    "Comparison",
    "LoadedEncoder",
    "ModelSettings",
    "RefusedError",
    "Settings",
    "compare",
    "curate",
    "info_of",
    "load_encoder",
    "read_table",
    "report",
    "score_dataset",
    "select",
]
