"""One group of tags a file: what it needs, how it is computed, drawn, laid out and explained.

:data:`INSIGHTS` has those that are asked for by name; the rest are always there.
"""

from jepa_monitor.insights.base import Insight as Insight
from jepa_monitor.insights.base import Panel as Panel
from jepa_monitor.insights.base import Row as Row
from jepa_monitor.insights.gathering import Gatherer as Gatherer
from jepa_monitor.insights.gathering import Sources as Sources
from jepa_monitor.insights.look import Look as Look
from jepa_monitor.insights.metric import MetricInsight as MetricInsight
from jepa_monitor.insights.parts import CONTRASTED as CONTRASTED
from jepa_monitor.insights.parts import FIRST_EMBEDDINGS as FIRST_EMBEDDINGS
from jepa_monitor.insights.parts import LABELS as LABELS
from jepa_monitor.insights.parts import OTHER_EMBEDDINGS as OTHER_EMBEDDINGS
from jepa_monitor.insights.parts import Contrasted as Contrasted
from jepa_monitor.insights.parts import Corrupted as Corrupted
from jepa_monitor.insights.parts import Part as Part
from jepa_monitor.insights.registry import INSIGHTS as INSIGHTS
from jepa_monitor.insights.registry import choose_insights as choose_insights
from jepa_monitor.insights.registry import default_insights as default_insights
from jepa_monitor.insights.world_parts import Clips as Clips
