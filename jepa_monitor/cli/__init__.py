"""Score data sets, replay runs: the command ``jepa-monitor`` and the functions beneath it."""

from typing import TYPE_CHECKING

from jepa_monitor._lazy import imported_on_use

if TYPE_CHECKING:
    from jepa_monitor.cli.comparison import Comparison, compare
    from jepa_monitor.cli.curation import curate, select
    from jepa_monitor.cli.errors import BadImage, RefusedError, UnreachableError
    from jepa_monitor.cli.loaded import LoadedEncoder
    from jepa_monitor.cli.models import load_encoder
    from jepa_monitor.cli.replaying import Replay, read_replay, replay_run
    from jepa_monitor.cli.reporting import report
    from jepa_monitor.cli.scoring import score_dataset
    from jepa_monitor.cli.settings import ModelSettings, ReplaySettings, Settings
    from jepa_monitor.cli.tables import info_of, read_table

__all__ = [
    "BadImage",
    "Comparison",
    "LoadedEncoder",
    "ModelSettings",
    "RefusedError",
    "Replay",
    "ReplaySettings",
    "Settings",
    "UnreachableError",
    "compare",
    "curate",
    "info_of",
    "load_encoder",
    "read_replay",
    "read_table",
    "replay_run",
    "report",
    "score_dataset",
    "select",
]

__getattr__ = imported_on_use(
    __name__,
    {
        "BadImage": "jepa_monitor.cli.errors",
        "Comparison": "jepa_monitor.cli.comparison",
        "LoadedEncoder": "jepa_monitor.cli.loaded",
        "ModelSettings": "jepa_monitor.cli.settings",
        "RefusedError": "jepa_monitor.cli.errors",
        "Replay": "jepa_monitor.cli.replaying",
        "ReplaySettings": "jepa_monitor.cli.settings",
        "Settings": "jepa_monitor.cli.settings",
        "UnreachableError": "jepa_monitor.cli.errors",
        "compare": "jepa_monitor.cli.comparison",
        "curate": "jepa_monitor.cli.curation",
        "info_of": "jepa_monitor.cli.tables",
        "load_encoder": "jepa_monitor.cli.models",
        "read_replay": "jepa_monitor.cli.replaying",
        "read_table": "jepa_monitor.cli.tables",
        "replay_run": "jepa_monitor.cli.replaying",
        "report": "jepa_monitor.cli.reporting",
        "score_dataset": "jepa_monitor.cli.scoring",
        "select": "jepa_monitor.cli.curation",
    },
    extra="cli",
)
