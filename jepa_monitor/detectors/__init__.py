"""One detector of outliers a file: fit on reference images, score others, higher is more normal.

:data:`DETECTORS` has all of them by name. Whatever detects outliers (the monitor, the metrics, the
command line, the benchmarks) takes names of it, or objects of one's own.
"""

from jepa_monitor.detectors.bands import Bands as Bands
from jepa_monitor.detectors.base import Detector as Detector
from jepa_monitor.detectors.combined import Combined as Combined
from jepa_monitor.detectors.contrast import Contrast as Contrast
from jepa_monitor.detectors.inputs import Reference as Reference
from jepa_monitor.detectors.inputs import ScoredSet as ScoredSet
from jepa_monitor.detectors.inputs import most_scored as most_scored
from jepa_monitor.detectors.jepa_score import JepaScore as JepaScore
from jepa_monitor.detectors.jepa_score_two_sided import TwoSidedJepaScore as TwoSidedJepaScore
from jepa_monitor.detectors.knn import KNN as KNN
from jepa_monitor.detectors.knn_normalized import NormalizedKNN as NormalizedKNN
from jepa_monitor.detectors.log_density import LogDensity as LogDensity
from jepa_monitor.detectors.mahalanobis import Mahalanobis as Mahalanobis
from jepa_monitor.detectors.mahalanobis_normalized import (
    NormalizedMahalanobis as NormalizedMahalanobis,
)
from jepa_monitor.detectors.mahalanobis_radial import RadialMahalanobis as RadialMahalanobis
from jepa_monitor.detectors.registry import DETECTORS as DETECTORS
from jepa_monitor.detectors.registry import choose_detectors as choose_detectors
from jepa_monitor.detectors.registry import detect as detect
from jepa_monitor.detectors.registry import fit_detectors as fit_detectors
from jepa_monitor.detectors.registry import score_reference as score_reference
from jepa_monitor.detectors.registry import score_with as score_with
from jepa_monitor.detectors.spectrum_shape import SpectrumShape as SpectrumShape
