"""The quantities of :mod:`jepa_monitor.functional` as torchmetrics metrics.

They accumulate over batches and processes; each result equals the function's on all data.
"""

from jepa_monitor.metrics.calibration import DensityCalibration as DensityCalibration
from jepa_monitor.metrics.cluster_learnability import ClusterLearnability as ClusterLearnability
from jepa_monitor.metrics.dictionaries import DictionaryGeometry as DictionaryGeometry
from jepa_monitor.metrics.dictionaries import TokenGeometry as TokenGeometry
from jepa_monitor.metrics.gaussianity import Gaussianity as Gaussianity
from jepa_monitor.metrics.hypersphere import Alignment as Alignment
from jepa_monitor.metrics.hypersphere import CollapseLevel as CollapseLevel
from jepa_monitor.metrics.hypersphere import Uniformity as Uniformity
from jepa_monitor.metrics.intrinsic_dimension import MSTDimension as MSTDimension
from jepa_monitor.metrics.intrinsic_dimension import TwoNN as TwoNN
from jepa_monitor.metrics.jacobian_alignment import JacobianAlignment as JacobianAlignment
from jepa_monitor.metrics.jepa_score import JepaScore as JepaScore
from jepa_monitor.metrics.jepa_score import LogDensity as LogDensity
from jepa_monitor.metrics.lidar import LiDAR as LiDAR
from jepa_monitor.metrics.mutual_neighbors import MutualKNN as MutualKNN
from jepa_monitor.metrics.neighbor_consistency import NeighborConsistency as NeighborConsistency
from jepa_monitor.metrics.next_token import NextTokenPerception as NextTokenPerception
from jepa_monitor.metrics.outliers import OODDetection as OODDetection
from jepa_monitor.metrics.outliers import OutlierFraction as OutlierFraction
from jepa_monitor.metrics.ranks import AlphaReQ as AlphaReQ
from jepa_monitor.metrics.ranks import EffectiveRank as EffectiveRank
from jepa_monitor.metrics.ranks import ParticipationRatio as ParticipationRatio
from jepa_monitor.metrics.ranks import RankMe as RankMe
from jepa_monitor.metrics.ranks import StableRank as StableRank
from jepa_monitor.metrics.self_clustering import SelfClustering as SelfClustering
from jepa_monitor.metrics.separation import Separation as Separation
from jepa_monitor.metrics.task_priors import TaskPriors as TaskPriors
