"""Every metric, with and without its defaults, its inputs, and the function it must agree with."""

import numpy as np
import torch
from torch import nn

from jepa_monitor import ScoreOptions, functional, jepa_score, log_density
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.functional.gaussianity import slice_directions, summarize_slices
from jepa_monitor.metrics import (
    Alignment,
    AlphaReQ,
    ClusterLearnability,
    CollapseLevel,
    DensityCalibration,
    DictionaryGeometry,
    EffectiveRank,
    Gaussianity,
    JacobianAlignment,
    JepaScore,
    LiDAR,
    LogDensity,
    MSTDimension,
    MutualKNN,
    NeighborConsistency,
    NextTokenPerception,
    OODDetection,
    OutlierFraction,
    ParticipationRatio,
    RankMe,
    SelfClustering,
    Separation,
    StableRank,
    TaskPriors,
    TokenGeometry,
    TwoNN,
    Uniformity,
)

N, K = 120, 16


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


Z = normal(N, K) @ normal(K, K, seed=1) + 0.5
VIEWS = normal(N, 1, K, seed=2) + 0.3 * normal(N, 4, K, seed=3)
SCORES = normal(N, seed=4) - 300
LABELS = torch.arange(N) % 3 > 0
FITTED = normal(200, K, seed=5) @ normal(K, K, seed=1) + 0.5
LAW = Gaussian.fit(FITTED, shrinkage=0.0)
REFERENCE = normal(99, seed=6) - 300
JACOBIANS, INPUTS, OTHERS = normal(N, 5, K, seed=7), normal(N, K, seed=8), normal(9, K, seed=9)
CLASSES = torch.arange(N) % 4
STATES = normal(N, 5, K, seed=12)
STATES = STATES + STATES.cumsum(1) * torch.linspace(0, 1, K)
REAL = (torch.arange(5) < 2 + torch.arange(N)[:, None] % 4).long()
PICTURES, PICTURES_BEFORE = normal(N, 6, seed=10).float(), normal(40, 6, seed=11).float()
ENCODER = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
for _seed, _values in enumerate(ENCODER.parameters()):
    _values.data = normal(*_values.shape, seed=20 + _seed).float() / 2


def perception(hidden, mask, labels, k, how):
    hidden, real = hidden.double(), mask != 0
    order = ((hidden * real[..., None]).sum(1) / real.sum(1, keepdim=True))[:, 0].argsort()
    found = functional.next_token_perception(hidden[order], real[order], labels[order], k=k, **how)
    kept = ("value", "chance", "excess", "null", "null_std")
    return {name: torch.as_tensor(getattr(found, name)).double() for name in kept}


def calibration(z, num_levels=19):
    # In an order that depends on nothing but the rows' bits.
    z = z.double()
    odd = 2 * torch.randint(2**62, (K,), generator=torch.Generator().manual_seed(0)).numpy() + 1
    with np.errstate(over="ignore"):
        order = np.argsort((z.numpy().view(np.int64) * odd).sum(1), kind="stable")
    u = functional.predictive_pit(z[order], FITTED).levels
    test = functional.kolmogorov_smirnov(u)
    return {
        "calibration_error": functional.calibration_error(u, num_levels),
        "coverage_gap": functional.coverage_gap(u),
        "ks_distance": test.distance,
        "ks_p_value": test.p_value,
    }


def against_a_fit(z):
    scaled = LAW.whiten(z) * ((LAW.count - K - 2) / LAW.count) ** 0.5
    statistics = functional.epps_pulley(scaled @ slice_directions(K, 32, 3))
    moments = (1 + len(z) / LAW.count, 1 + len(z) / (LAW.count - K))
    return summarize_slices(statistics, len(z), K, False, moments)._asdict()


def detection(scores, labels, tpr=0.95):
    inside, outside = scores[labels], scores[~labels]
    return {
        "auroc": functional.auroc(inside, outside),
        "fpr_at_tpr": functional.fpr_at_tpr(inside, outside, tpr),
        "average_precision": functional.average_precision(inside, outside),
    }


def alignments(jacobians, inputs):
    others = OTHERS
    centroid = functional.centroid_alignment(jacobians.double().sum(1), inputs, others)
    jacobian = functional.jacobian_alignment(jacobians, inputs, others)
    share = functional.rank_one_share(torch.linalg.svdvals(jacobians.double()))
    return {
        "centroid": centroid.value.mean(),
        "centroid_shuffled": centroid.shuffled.mean(),
        "jacobian": jacobian.value.mean(),
        "jacobian_shuffled": jacobian.shuffled.mean(),
        "rank_one_share": share.mean(),
    }


ATOMS, OTHER_ATOMS = normal(K, 7, seed=12), normal(K + 2, 7, seed=13)


def of_dictionary(codes, places=None, other=None, seed=0):
    flat = codes.double().flatten(0, -2)
    use = functional.atom_use(flat, ATOMS)
    energy = use.energy.sort(descending=True).values
    found = functional.dictionary_coherence(ATOMS, seed=seed)._asdict()
    if other is not None:
        stability = functional.dictionary_stability(ATOMS, other, seed=seed)
        found |= {"stability": stability.cosine, "stability_random": stability.random}
    found |= {"active": use.active, "dead": use.dead}
    found |= {"energy_top_share": energy[0] / energy.sum(), "frequency_max": use.firing.max()}
    if places:
        footprint = functional.footprint_entropy(codes)._asdict()
        found |= {f"footprint_{name}": value for name, value in footprint.items()}
    return found


# Name: how to make it, its inputs, and the function that it must agree with on all data.
CASES = {
    "RankMe": (lambda: RankMe(K), (Z,), functional.rankme),
    "RankMe(eps)": (lambda: RankMe(K, eps=0.01), (Z,), lambda z: functional.rankme(z, 0.01)),
    "EffectiveRank": (lambda: EffectiveRank(K), (Z,), functional.effective_rank),
    "ParticipationRatio": (lambda: ParticipationRatio(K), (Z,), functional.participation_ratio),
    "ParticipationRatio(bias_corrected)": (
        lambda: ParticipationRatio(K, bias_corrected=True),
        (Z,),
        lambda z: functional.participation_ratio(z, bias_corrected=True),
    ),
    "AlphaReQ": (
        lambda: AlphaReQ(K),
        (Z,),
        lambda z: functional.alpha_req(z)._asdict(),
    ),
    "AlphaReQ(fit_ranks)": (
        lambda: AlphaReQ(K, fit_ranks=(2, 12)),
        (Z,),
        lambda z: functional.alpha_req(z, (2, 12))._asdict(),
    ),
    "LiDAR": (lambda: LiDAR(K, num_views=4), (VIEWS,), functional.lidar),
    "LiDAR(delta)": (
        lambda: LiDAR(K, 4, delta=0.3),
        (VIEWS,),
        lambda z: functional.lidar(z, delta=0.3),
    ),
    "LiDAR(correct_noise, eps)": (
        lambda: LiDAR(K, 4, eps=2.0, correct_noise=False),
        (VIEWS,),
        lambda z: functional.lidar(z, eps=2.0, correct_noise=False),
    ),
    "Uniformity": (lambda: Uniformity(K), (Z,), functional.uniformity),
    "Uniformity(t)": (lambda: Uniformity(K, t=0.5), (Z,), lambda z: functional.uniformity(z, 0.5)),
    "Alignment": (Alignment, (VIEWS[:, 0], VIEWS[:, 1]), functional.alignment),
    "Alignment(exponent)": (
        lambda: Alignment(exponent=3),
        (VIEWS[:, 0], VIEWS[:, 1]),
        lambda x, y: functional.alignment(x, y, 3),
    ),
    "CollapseLevel": (lambda: CollapseLevel(K), (Z,), functional.collapse_level),
    "DensityCalibration": (lambda: DensityCalibration(FITTED), (Z,), calibration),
    "DensityCalibration(num_levels)": (
        lambda: DensityCalibration(FITTED, num_levels=6),
        (Z,),
        lambda z: calibration(z, 6),
    ),
    "Gaussianity": (
        lambda: Gaussianity(K),
        (Z,),
        lambda z: functional.sliced_epps_pulley(z, 256, 0)._asdict(),
    ),
    "Gaussianity(num_slices, seed)": (
        lambda: Gaussianity(K, num_slices=32, seed=3),
        (Z,),
        lambda z: functional.sliced_epps_pulley(z, 32, 3)._asdict(),
    ),
    "Gaussianity(gaussian)": (
        lambda: Gaussianity(K, num_slices=32, seed=3, gaussian=LAW),
        (Z,),
        against_a_fit,
    ),
    "OutlierFraction": (
        lambda: OutlierFraction(REFERENCE),
        (SCORES,),
        lambda scores: functional.outlier_fraction(scores, REFERENCE)._asdict(),
    ),
    "OutlierFraction(alpha, confidence)": (
        lambda: OutlierFraction(REFERENCE, alpha=0.2, confidence=0.6),
        (SCORES,),
        lambda scores: functional.outlier_fraction(scores, REFERENCE, 0.2, 0.6)._asdict(),
    ),
    "OODDetection": (OODDetection, (SCORES, LABELS), detection),
    "OODDetection(tpr)": (
        lambda: OODDetection(tpr=0.6),
        (SCORES, LABELS),
        lambda scores, labels: detection(scores, labels, 0.6),
    ),
    "DictionaryGeometry": (lambda: DictionaryGeometry(ATOMS), (VIEWS,), of_dictionary),
    "DictionaryGeometry(places, other, seed)": (
        lambda: DictionaryGeometry(ATOMS, 4, OTHER_ATOMS, seed=1),
        (VIEWS,),
        lambda codes: of_dictionary(codes, 4, OTHER_ATOMS, 1),
    ),
    "TokenGeometry": (
        lambda: TokenGeometry(4, K, 3, 2),
        (VIEWS,),
        lambda z: functional.token_geometry(z, archetypes=3, neighbors=2)._asdict(),
    ),
    "TokenGeometry(archetypes, neighbors, place_axes, share, seed)": (
        lambda: TokenGeometry(4, K, 2, 3, place_axes=1, share=0.6, seed=1),
        (VIEWS,),
        lambda z: functional.token_geometry(
            z, archetypes=2, neighbors=3, place_axes=1, share=0.6, seed=1
        )._asdict(),
    ),
    "JacobianAlignment": (lambda: JacobianAlignment(OTHERS), (JACOBIANS, INPUTS), alignments),
    "TaskPriors": (
        lambda: TaskPriors(K),
        (Z, CLASSES),
        lambda z, labels: functional.task_prior_performance(z, labels)._asdict(),
    ),
    "TaskPriors(temperature)": (
        lambda: TaskPriors(K, temperature=0.5),
        (Z, CLASSES),
        lambda z, labels: functional.task_prior_performance(z, labels, 0.5)._asdict(),
    ),
    "TaskPriors(prior_features)": (
        lambda: TaskPriors(K, prior_features=K),
        (Z, INPUTS),
        lambda z, features: functional.task_prior_performance(z, features)._asdict(),
    ),
    "Separation": (
        lambda: Separation(K),
        (Z, CLASSES),
        lambda z, classes: functional.separation(z, classes)._asdict(),
    ),
    "Separation(merge_below)": (
        lambda: Separation(K, merge_below=0.55),
        (Z, CLASSES),
        lambda z, classes: functional.separation(z, classes, 0.55)._asdict(),
    ),
    **{
        f"NextTokenPerception{name}": (
            lambda k=k, how=how: NextTokenPerception(K, k, **how),
            (STATES, REAL, CLASSES),
            lambda hidden, mask, labels, k=k, how=how: perception(hidden, mask, labels, k, how),
        )
        for name, k, how in (
            ("", 3, {}),
            ("(k, context, order)", 5, {"context": "last", "order": "published"}),
            (
                "(orthonormal, centred, shuffles)",
                3,
                {"orthonormal": False, "centred": False, "shuffles": 4},
            ),
        )
    },
    "MutualKNN": (lambda: MutualKNN(K, 5), (Z, INPUTS[:, :5]), functional.mutual_knn),
    "MutualKNN(k, chance_corrected)": (
        lambda: MutualKNN(K, 5, k=7, chance_corrected=False),
        (Z, INPUTS[:, :5]),
        lambda first, second: functional.mutual_knn(first, second, 7, False),
    ),
    "StableRank": (lambda: StableRank(K), (Z,), functional.stable_rank),
    "SelfClustering": (lambda: SelfClustering(K), (Z,), functional.self_clustering),
    "TwoNN": (lambda: TwoNN(K), (Z,), lambda z: functional.two_nn(z)._asdict()),
    "TwoNN(normalized)": (
        lambda: TwoNN(K, normalized=True),
        (Z,),
        lambda z: functional.two_nn(z, True)._asdict(),
    ),
    "MSTDimension": (
        lambda: MSTDimension(K),
        (Z,),
        lambda z: functional.mst_dimension(z)._asdict(),
    ),
    "MSTDimension(normalized, draws, seed)": (
        lambda: MSTDimension(K, normalized=False, draws=3, seed=1),
        (Z,),
        lambda z: functional.mst_dimension(z, False, draws=3, seed=1)._asdict(),
    ),
    "MSTDimension(sizes)": (
        lambda: MSTDimension(K, sizes=(6, 20, 60)),
        (Z,),
        lambda z: functional.mst_dimension(z, sizes=(6, 20, 60))._asdict(),
    ),
    "ClusterLearnability": (
        lambda: ClusterLearnability(K),
        (Z,),
        lambda z: functional.cluster_learnability(z)._asdict(),
    ),
    "ClusterLearnability(clusters, restarts, seed)": (
        lambda: ClusterLearnability(K, clusters=5, restarts=1, seed=2),
        (Z,),
        lambda z: functional.cluster_learnability(z, 5, 1, 2)._asdict(),
    ),
    "NeighborConsistency": (
        lambda: NeighborConsistency(K),
        (VIEWS[:, 0], VIEWS[:, 1]),
        lambda first, second: functional.neighbor_consistency(first, second)._asdict(),
    ),
    "NeighborConsistency(k)": (
        lambda: NeighborConsistency(K, k=4),
        (VIEWS[:, 0], VIEWS[:, 1]),
        lambda first, second: functional.neighbor_consistency(first, second, 4)._asdict(),
    ),
    "JepaScore": (
        lambda: JepaScore(ENCODER),
        (PICTURES,),
        lambda x: jepa_score(ENCODER, x).mean(),
    ),
    "JepaScore(options)": (
        lambda: JepaScore(ENCODER, options=ScoreOptions(eps=1.0)),
        (PICTURES,),
        lambda x: jepa_score(ENCODER, x, eps=1.0).mean(),
    ),
    "JepaScore(reduction)": (
        lambda: JepaScore(ENCODER, reduction="none"),
        (PICTURES,),
        lambda x: jepa_score(ENCODER, x),
    ),
    "LogDensity": (
        lambda: LogDensity(ENCODER, PICTURES_BEFORE),
        (PICTURES,),
        lambda x: log_density(ENCODER, x, PICTURES_BEFORE).log_density.mean(),
    ),
    "LogDensity(reduction)": (
        lambda: LogDensity(ENCODER, PICTURES_BEFORE, reduction="none"),
        (PICTURES,),
        lambda x: log_density(ENCODER, x, PICTURES_BEFORE).log_density,
    ),
}
