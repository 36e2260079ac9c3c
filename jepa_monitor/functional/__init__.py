"""Stateless functions on tensors: collapse, Gaussianity, calibration and outliers.

All compute in float64 and return float64 tensors.
"""

from jepa_monitor.functional._intervals import paired_interval as paired_interval
from jepa_monitor.functional._intervals import wilson_interval as wilson_interval
from jepa_monitor.functional.archetypes import archetypal_analysis as archetypal_analysis
from jepa_monitor.functional.atom_use import atom_use as atom_use
from jepa_monitor.functional.atom_use import footprint_entropy as footprint_entropy
from jepa_monitor.functional.calibration import calibration_error as calibration_error
from jepa_monitor.functional.calibration import coverage_curve as coverage_curve
from jepa_monitor.functional.calibration import coverage_gap as coverage_gap
from jepa_monitor.functional.calibration import density_agreement as density_agreement
from jepa_monitor.functional.calibration import hdr_pit as hdr_pit
from jepa_monitor.functional.calibration import kolmogorov_smirnov as kolmogorov_smirnov
from jepa_monitor.functional.calibration import rank_pit as rank_pit
from jepa_monitor.functional.calibration import (
    two_sample_kolmogorov_smirnov as two_sample_kolmogorov_smirnov,
)
from jepa_monitor.functional.cluster_agreement import cluster_agreement as cluster_agreement
from jepa_monitor.functional.cluster_learnability import (
    cluster_learnability as cluster_learnability,
)
from jepa_monitor.functional.collapse import alpha_req as alpha_req
from jepa_monitor.functional.collapse import collapse_level as collapse_level
from jepa_monitor.functional.collapse import effective_rank as effective_rank
from jepa_monitor.functional.collapse import normalized_std as normalized_std
from jepa_monitor.functional.collapse import participation_ratio as participation_ratio
from jepa_monitor.functional.collapse import rankme as rankme
from jepa_monitor.functional.collapse import stable_rank as stable_rank
from jepa_monitor.functional.conformal import benjamini_hochberg as benjamini_hochberg
from jepa_monitor.functional.conformal import conformal_p_values as conformal_p_values
from jepa_monitor.functional.contrast import change_contrast as change_contrast
from jepa_monitor.functional.contrast import contrast_free as contrast_free
from jepa_monitor.functional.contrast import contrast_slope as contrast_slope
from jepa_monitor.functional.contrast import log_contrast as log_contrast
from jepa_monitor.functional.correlation import pearson as pearson
from jepa_monitor.functional.correlation import spearman as spearman
from jepa_monitor.functional.dense_structure import dense_structure as dense_structure
from jepa_monitor.functional.detection import AurocGain as AurocGain
from jepa_monitor.functional.detection import auroc as auroc
from jepa_monitor.functional.detection import auroc_gain as auroc_gain
from jepa_monitor.functional.detection import average_precision as average_precision
from jepa_monitor.functional.detection import fpr_at_tpr as fpr_at_tpr
from jepa_monitor.functional.dictionaries import dictionary_coherence as dictionary_coherence
from jepa_monitor.functional.dictionaries import dictionary_stability as dictionary_stability
from jepa_monitor.functional.dictionaries import gaussian_hoyer as gaussian_hoyer
from jepa_monitor.functional.dictionaries import hoyer_sparsity as hoyer_sparsity
from jepa_monitor.functional.dictionaries import welch_bound as welch_bound
from jepa_monitor.functional.ema_lag import ema_lag as ema_lag
from jepa_monitor.functional.ema_lag import ema_straightness as ema_straightness
from jepa_monitor.functional.ema_lag import functional_lag as functional_lag
from jepa_monitor.functional.flip_rate import FlipRate as FlipRate
from jepa_monitor.functional.flip_rate import flip_rate as flip_rate
from jepa_monitor.functional.gaussianity import epps_pulley as epps_pulley
from jepa_monitor.functional.gaussianity import henze_zirkler as henze_zirkler
from jepa_monitor.functional.gaussianity import sliced_epps_pulley as sliced_epps_pulley
from jepa_monitor.functional.gram_drift import gram_drift as gram_drift
from jepa_monitor.functional.gram_drift import token_gram as token_gram
from jepa_monitor.functional.grouping import GroupLeak as GroupLeak
from jepa_monitor.functional.grouping import GroupNeighbors as GroupNeighbors
from jepa_monitor.functional.grouping import group_leak as group_leak
from jepa_monitor.functional.grouping import group_neighbors as group_neighbors
from jepa_monitor.functional.hypersphere import alignment as alignment
from jepa_monitor.functional.hypersphere import mean_cosine as mean_cosine
from jepa_monitor.functional.hypersphere import mean_squared_cosine as mean_squared_cosine
from jepa_monitor.functional.hypersphere import uniformity as uniformity
from jepa_monitor.functional.identifiability import map_agreement as map_agreement
from jepa_monitor.functional.identifiability import mean_correlation as mean_correlation
from jepa_monitor.functional.identifiability import unbiased_cka as unbiased_cka
from jepa_monitor.functional.isotropic import isotropic_baseline as isotropic_baseline
from jepa_monitor.functional.jacobian_alignment import centroid_alignment as centroid_alignment
from jepa_monitor.functional.jacobian_alignment import jacobian_alignment as jacobian_alignment
from jepa_monitor.functional.jacobian_alignment import (
    jacobian_frobenius_norm as jacobian_frobenius_norm,
)
from jepa_monitor.functional.jacobian_alignment import rank_one_share as rank_one_share
from jepa_monitor.functional.lidar import lidar as lidar
from jepa_monitor.functional.locality import locality as locality
from jepa_monitor.functional.lora import lora_top_share as lora_top_share
from jepa_monitor.functional.lora import random_lora_top_share as random_lora_top_share
from jepa_monitor.functional.mst_dimension import mst_dimension as mst_dimension
from jepa_monitor.functional.mutual_neighbors import mutual_knn as mutual_knn
from jepa_monitor.functional.neighbor_consistency import (
    neighbor_consistency as neighbor_consistency,
)
from jepa_monitor.functional.neighbors import knn_distance as knn_distance
from jepa_monitor.functional.neighbors import knn_score as knn_score
from jepa_monitor.functional.next_token import Perception as Perception
from jepa_monitor.functional.next_token import next_token_perception as next_token_perception
from jepa_monitor.functional.next_token import predictive_overlap as predictive_overlap
from jepa_monitor.functional.normality import Normality as Normality
from jepa_monitor.functional.normality import normality as normality
from jepa_monitor.functional.outliers import outlier_fraction as outlier_fraction
from jepa_monitor.functional.outliers import robust_fence as robust_fence
from jepa_monitor.functional.pair_agreement import PairGap as PairGap
from jepa_monitor.functional.pair_agreement import Retrieval as Retrieval
from jepa_monitor.functional.pair_agreement import common_share as common_share
from jepa_monitor.functional.pair_agreement import pair_gap as pair_gap
from jepa_monitor.functional.pair_agreement import pair_retrieval as pair_retrieval
from jepa_monitor.functional.patch_neighbors import crop_places as crop_places
from jepa_monitor.functional.patch_neighbors import patch_neighbors as patch_neighbors
from jepa_monitor.functional.polarity import paired_polarity as paired_polarity
from jepa_monitor.functional.polarity import severity_order as severity_order
from jepa_monitor.functional.position_share import position_share as position_share
from jepa_monitor.functional.probing import FewShot as FewShot
from jepa_monitor.functional.probing import few_shot_accuracy as few_shot_accuracy
from jepa_monitor.functional.probing import knn_predict as knn_predict
from jepa_monitor.functional.probing import ridge_predict as ridge_predict
from jepa_monitor.functional.self_clustering import self_clustering as self_clustering
from jepa_monitor.functional.separation import separation as separation
from jepa_monitor.functional.sequential import predictive_pit as predictive_pit
from jepa_monitor.functional.sparse_codes import Decoder as Decoder
from jepa_monitor.functional.sparse_codes import LocalPca as LocalPca
from jepa_monitor.functional.sparse_codes import batch_topk_codes as batch_topk_codes
from jepa_monitor.functional.sparse_codes import kmeans_pca as kmeans_pca
from jepa_monitor.functional.sparse_codes import pam_decoder_step as pam_decoder_step
from jepa_monitor.functional.sparse_codes import power_cells as power_cells
from jepa_monitor.functional.sparse_codes import topk_codes as topk_codes
from jepa_monitor.functional.task_priors import prior_kernel as prior_kernel
from jepa_monitor.functional.task_priors import sample_tasks as sample_tasks
from jepa_monitor.functional.task_priors import task_prior_performance as task_prior_performance
from jepa_monitor.functional.token_cosines import class_token_cosines as class_token_cosines
from jepa_monitor.functional.token_cosines import other_image_cosine as other_image_cosine
from jepa_monitor.functional.token_geometry import geodesics as geodesics
from jepa_monitor.functional.token_geometry import matched_gaussian as matched_gaussian
from jepa_monitor.functional.token_geometry import pca_dimensions as pca_dimensions
from jepa_monitor.functional.token_geometry import position_axes as position_axes
from jepa_monitor.functional.token_geometry import token_geometry as token_geometry
from jepa_monitor.functional.token_norms import token_norms as token_norms
from jepa_monitor.functional.token_paths import draw_spans as draw_spans
from jepa_monitor.functional.token_paths import path_curvature as path_curvature
from jepa_monitor.functional.token_paths import tube_loss as tube_loss
from jepa_monitor.functional.token_rank import token_rank as token_rank
from jepa_monitor.functional.token_screen import TokenFinding as TokenFinding
from jepa_monitor.functional.token_screen import screen_tokens as screen_tokens
from jepa_monitor.functional.token_screen import token_shape as token_shape
from jepa_monitor.functional.two_nn import two_nn as two_nn
from jepa_monitor.functional.variety import duplicate_share as duplicate_share
from jepa_monitor.functional.variety import view_variety as view_variety
from jepa_monitor.functional.world_model import action_share as action_share
from jepa_monitor.functional.world_model import prediction_error as prediction_error
from jepa_monitor.functional.world_model import surprise as surprise
