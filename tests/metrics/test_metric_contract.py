"""What every metric owes torchmetrics, checked on all of them with one set of cases."""

import copy
import pickle
import socket
import warnings

import matplotlib as mpl
import pytest
import torch
from torch import distributed, multiprocessing
from torchmetrics.utilities.checks import check_forward_full_state_property

from jepa_monitor import functional
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.metrics import (
    Alignment,
    AlphaReQ,
    CollapseLevel,
    DensityCalibration,
    EffectiveRank,
    Gaussianity,
    JacobianAlignment,
    LiDAR,
    MutualKNN,
    OODDetection,
    OutlierFraction,
    ParticipationRatio,
    RankMe,
    Separation,
    TaskPriors,
    Uniformity,
)

mpl.use("Agg")
N, K = 120, 16


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


Z = normal(N, K) @ normal(K, K, seed=1) + 0.5
VIEWS = normal(N, 1, K, seed=2) + 0.3 * normal(N, 4, K, seed=3)
SCORES = normal(N, seed=4) - 300
LABELS = torch.arange(N) % 3 > 0
LAW = Gaussian.fit(normal(200, K, seed=5) @ normal(K, K, seed=1) + 0.5)
REFERENCE = normal(99, seed=6) - 300
JACOBIANS, INPUTS, OTHERS = normal(N, 5, K, seed=7), normal(N, K, seed=8), normal(9, K, seed=9)
CLASSES = torch.arange(N) % 4


def calibration(z):
    u = functional.hdr_pit(z, LAW)
    test = functional.kolmogorov_smirnov(u)
    return {
        "calibration_error": functional.calibration_error(u),
        "coverage_gap": functional.coverage_gap(u),
        "ks_distance": test.distance,
        "ks_p_value": test.p_value,
    }


def detection(scores, labels):
    inside, outside = scores[labels], scores[~labels]
    return {
        "auroc": functional.auroc(inside, outside),
        "fpr_at_tpr": functional.fpr_at_tpr(inside, outside),
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


# Name: how to make it, its inputs, and the function that it must agree with on all data.
CASES = {
    "RankMe": (lambda: RankMe(K), (Z,), functional.rankme),
    "EffectiveRank": (lambda: EffectiveRank(K), (Z,), functional.effective_rank),
    "ParticipationRatio": (
        lambda: ParticipationRatio(K, bias_corrected=True),
        (Z,),
        lambda z: functional.participation_ratio(z, bias_corrected=True),
    ),
    "AlphaReQ": (
        lambda: AlphaReQ(K, fit_ranks=(2, 12)),
        (Z,),
        lambda z: functional.alpha_req(z, (2, 12))._asdict(),
    ),
    "LiDAR": (lambda: LiDAR(K, num_views=4), (VIEWS,), functional.lidar),
    "Uniformity": (lambda: Uniformity(K), (Z,), functional.uniformity),
    "Alignment": (Alignment, (VIEWS[:, 0], VIEWS[:, 1]), functional.alignment),
    "CollapseLevel": (lambda: CollapseLevel(K), (Z,), functional.collapse_level),
    "DensityCalibration": (lambda: DensityCalibration(LAW), (Z,), calibration),
    "Gaussianity": (
        lambda: Gaussianity(K, num_slices=32, seed=3),
        (Z,),
        lambda z: functional.sliced_epps_pulley(z, 32, 3)._asdict(),
    ),
    "GaussianityWhitened": (
        lambda: Gaussianity(K, num_slices=32, seed=3, gaussian=LAW),
        (Z,),
        lambda z: functional.sliced_epps_pulley(LAW.whiten(z), 32, 3)._asdict(),
    ),
    "OutlierFraction": (
        lambda: OutlierFraction(REFERENCE),
        (SCORES,),
        lambda scores: functional.outlier_fraction(scores, REFERENCE)._asdict(),
    ),
    "OODDetection": (OODDetection, (SCORES, LABELS), detection),
    "JacobianAlignment": (lambda: JacobianAlignment(OTHERS), (JACOBIANS, INPUTS), alignments),
    "TaskPriors": (
        lambda: TaskPriors(K, temperature=0.5),
        (Z, CLASSES),
        lambda z, labels: functional.task_prior_performance(z, labels, 0.5)._asdict(),
    ),
    "TaskPriorsOfFeatures": (
        lambda: TaskPriors(K, prior_features=K),
        (Z, INPUTS),
        lambda z, features: functional.task_prior_performance(z, features)._asdict(),
    ),
    "Separation": (
        lambda: Separation(K),
        (Z, CLASSES),
        lambda z, classes: functional.separation(z, classes)._asdict(),
    ),
    "MutualKNN": (
        lambda: MutualKNN(K, K, k=7),
        (Z, INPUTS),
        lambda first, second: functional.mutual_knn(first, second, k=7),
    ),
}
EVERY = pytest.mark.parametrize("name", CASES)


def assert_equal(value, expected):
    torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-8)


def batches(inputs, size):
    return zip(*(tensor.split(size) for tensor in inputs), strict=True)


@EVERY
def test_accumulates_to_the_function_and_resets(name):
    make, inputs, function = CASES[name]
    metric = make()
    for size in (50, 17):
        for batch in batches(inputs, size):
            metric.update(*batch)
        assert_equal(metric.compute(), function(*inputs))
        metric.reset()


@EVERY
def test_forward_returns_the_batch_value(name):
    make, inputs, function = CASES[name]
    metric = make()
    for batch in batches(inputs, 60):
        assert_equal(metric(*batch), function(*batch))
    assert_equal(metric.compute(), function(*inputs))


@EVERY
def test_refuses_to_compute_from_nothing(name):
    metric = CASES[name][0]()
    with (
        pytest.warns(UserWarning, match="before the ``update``"),
        pytest.raises(RuntimeError, match=r"at least \d samples? to compute, got 0; call `update`"),
    ):
        metric.compute()


@EVERY
def test_pickles_clones_and_hashes(name):
    make, inputs, _ = CASES[name]
    metric = make()
    metric.update(*inputs)
    expected = metric.compute()
    for other in (pickle.loads(pickle.dumps(metric)), metric.clone(), copy.deepcopy(metric)):
        assert_equal(other.compute(), expected)
    assert isinstance(hash(metric), int)
    assert metric.state_dict() == {}


@EVERY
def test_constants(name):
    metric = CASES[name][0]()
    assert metric.is_differentiable is False
    assert metric.full_state_update is False
    assert metric.higher_is_better in (None, True, False)
    with pytest.raises(RuntimeError, match="Can't change const"):
        metric.higher_is_better = True


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_other_dtypes_come_out_in_float64(name, dtype):
    make, inputs, function = CASES[name]
    inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)
    metric = make().float().half().double()
    metric.update(*inputs)
    value = metric.compute()
    torch.testing.assert_close(value, function(*inputs), rtol=1e-6, atol=1e-6)
    for number in value.values() if isinstance(value, dict) else [value]:
        assert number.dtype == torch.float64
        assert number.shape == ()
    assert metric.count.dtype == torch.long


@EVERY
def test_survives_inference_mode_and_drops_graphs(name):
    make, inputs, _ = CASES[name]
    inputs = tuple(x.clone().requires_grad_() if x.is_floating_point() else x for x in inputs)
    metric = make()
    with torch.inference_mode():
        metric.update(*inputs)
        metric.reset()
    metric.update(*inputs)
    with torch.enable_grad():
        metric(*inputs)
    value = metric.compute()
    numbers = value.values() if isinstance(value, dict) else [value]
    assert not any(number.requires_grad for number in numbers)


@EVERY
def test_plots(name):
    make, inputs, _ = CASES[name]
    metric = make()
    value = metric(*inputs)
    for argument in (None, value, [value, value]):
        figure, axes = metric.plot(argument)
        assert figure is not None
        assert axes is not None
    mpl.pyplot.close("all")


@EVERY
def test_rejects_nonfinite_rows(name):
    make, inputs, _ = CASES[name]
    broken = inputs[0].clone()
    broken[3] = float("nan")
    with pytest.raises(ValueError, match=r"has 1 non-finite (rows|values) of 120"):
        make().update(broken, *inputs[1:])


def test_forward_is_the_faster_partial_state_update(capsys):
    check_forward_full_state_property(
        EffectiveRank, {"num_features": K}, {"embeddings": Z}, num_update_to_compare=[3], reps=2
    )
    assert "Full state for" in capsys.readouterr().out


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


SHARDS = {
    "strided": (slice(0, None, 2), slice(1, None, 2)),
    "uneven": (slice(0, 70), slice(70, None)),
    "empty rank": (slice(None), slice(0, 0)),
}


def work(rank, port, queue):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of `compute` before `update` on the empty rank
    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    results = {}
    for kind, shards in SHARDS.items():
        for name, (make, inputs, _) in CASES.items():
            metric = make()
            mine = tuple(x[shards[rank]] for x in inputs)
            if len(mine[0]):
                for batch in batches(mine, 25):
                    metric.update(*batch)
            results[kind, name] = metric.compute()
    queue.put(pickle.dumps(results))
    distributed.destroy_process_group()


def test_two_processes_equal_one():
    context = multiprocessing.get_context("spawn")
    queue, port = context.Queue(), free_port()
    processes = [context.Process(target=work, args=(rank, port, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    try:
        results = [pickle.loads(queue.get(timeout=120)) for _ in processes]
    finally:
        for process in processes:
            process.join(timeout=30)
            process.kill()
    for result in results:
        assert len(result) == len(SHARDS) * len(CASES)
        for (_, name), value in result.items():
            assert_equal(value, CASES[name][2](*CASES[name][1]))
