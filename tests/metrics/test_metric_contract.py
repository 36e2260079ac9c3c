"""What every metric owes torchmetrics, checked on all of them with one set of cases."""

import copy
import inspect
import pickle
import warnings

import matplotlib as mpl
import pytest
import torch
from metric_cases import CASES, K, N, Z, normal
from torch import nn
from torchmetrics import MetricCollection
from torchmetrics.utilities.checks import check_forward_full_state_property

from jepa_monitor import metrics
from jepa_monitor.metrics import EffectiveRank

mpl.use("Agg")
EVERY = pytest.mark.parametrize("name", CASES)
OF_IMAGES = ("JepaScore", "LogDensity")
OF_EMBEDDINGS = pytest.mark.parametrize(
    "name", [name for name in CASES if not name.startswith(OF_IMAGES)]
)
NUMBERS = pytest.mark.parametrize("name", [name for name in CASES if "reduction" not in name])


def assert_equal(value, expected):
    # NaN is equal to NaN. Spectra of single precision depend on the batch in the last digits.
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6, equal_nan=True)


def batches(inputs, size):
    return zip(*(tensor.split(size) for tensor in inputs), strict=True)


def shuffled(inputs):
    """Other data of the same kind: the same samples, distorted and in another order."""
    order = torch.randperm(N, generator=torch.Generator().manual_seed(99))
    return tuple(
        (1.7 * x[order] + 0.9 * x[order].flip(-1).abs())
        if x.is_floating_point()
        else x[order.flip(0)]
        for x in inputs
    )


def test_every_metric_and_every_argument_is_among_the_cases():
    for name in vars(metrics):
        if name.startswith("_") or not inspect.isclass(kind := getattr(metrics, name)):
            continue
        arguments = {
            argument
            for argument, parameter in inspect.signature(kind.__init__).parameters.items()
            if parameter.default is not inspect.Parameter.empty
        }
        tried = {
            argument.strip()
            for case in CASES
            if case.startswith(f"{name}(")
            for argument in case[len(name) + 1 : -1].split(",")
        }
        untried = arguments - tried - {"pool", "reference"}  # of the image metrics: tests of theirs
        if name == "LogDensity":
            untried -= {"options"}  # it shares the code with JepaScore
        assert name in CASES
        assert not untried, name


@pytest.mark.parametrize("name", [name for name in CASES if "(" in name and "seed" not in name])
def test_every_argument_matters(name):
    make, inputs, _ = CASES[name]
    plain_make, plain_inputs, _ = CASES[name.split("(")[0]]
    found, plain = make(), plain_make()
    found.update(*inputs)
    plain.update(*plain_inputs)
    assert str(found.compute()) != str(plain.compute())


@EVERY
def test_accumulates_to_the_function_and_forgets_on_reset(name):
    make, inputs, function = CASES[name]
    metric = make()
    for size in (50, 17):
        for batch in batches(shuffled(inputs), 30):
            metric.update(*batch)
        before = metric.compute()
        metric.reset()
        for batch in batches(inputs, size):
            metric.update(*batch)
        assert_equal(metric.compute(), function(*inputs))
        assert str(metric.compute()) != str(before)
        metric.reset()
    assert int(metric.count) == 0


@EVERY
def test_forward_returns_the_batch_value(name):
    make, inputs, function = CASES[name]
    metric = make()
    for batch in batches(inputs, 60):
        assert_equal(metric(*batch), function(*batch))
    assert_equal(metric.compute(), function(*inputs))


@EVERY
def test_a_last_batch_of_one_or_none_ends_no_run(name):
    make, inputs, function = CASES[name]
    metric = make()
    metric(*(x[: N - 1] for x in inputs))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        last = [metric(*(x[N - 1 :] for x in inputs))]
        if not name.startswith(OF_IMAGES):
            last += [metric(*(x[:0] for x in inputs)) for _ in range(3)]
            numbers = last[-1].values() if isinstance(last[-1], dict) else [last[-1]]
            assert all(bool(number.isnan()) for number in numbers)
    assert sum("The value of this batch is NaN" in str(w.message) for w in caught) <= 1
    assert_equal(metric.compute(), function(*inputs))
    if "reduction" not in name:
        whole = metric.compute()
        for value in last:
            assert type(value) is type(whole)
            if isinstance(value, dict):
                assert list(value) == list(whole)


@OF_EMBEDDINGS
def test_refuses_to_compute_from_nothing(name):
    metric = CASES[name][0]()
    with (
        pytest.warns(UserWarning, match="before the ``update``"),
        pytest.raises(RuntimeError, match=r"at least \d+ samples? to compute, got 0; call `updat"),
    ):
        metric.compute()


@EVERY
def test_pickles_clones_and_hashes(name):
    make, inputs, _ = CASES[name]
    metric = make()
    metric.update(*inputs)
    expected = metric.compute()
    copies = [metric.clone(), copy.deepcopy(metric)]
    if not name.startswith(OF_IMAGES):
        copies.append(pickle.loads(pickle.dumps(metric)))
    for other in copies:
        other._computed = None
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


@OF_EMBEDDINGS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_other_dtypes_come_out_in_float64(name, dtype):
    make, inputs, function = CASES[name]
    inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)
    metric = make()
    metric.update(*inputs)
    value = metric.compute()
    torch.testing.assert_close(value, function(*inputs), rtol=1e-6, atol=1e-6)
    for number in value.values() if isinstance(value, dict) else [value]:
        assert number.dtype == torch.float64
        assert number.shape == ()


CASTS = {
    "to": lambda module: module.to(torch.bfloat16),  # Lightning's bf16-true
    "to device and dtype": lambda module: module.to("cpu", torch.float16),
    "half": lambda module: module.half(),
    "type": lambda module: module.type(torch.bfloat16),
    "float": lambda module: module.float(),
    "set_dtype": lambda module: module[0].set_dtype(torch.float32),
}


@EVERY
@pytest.mark.parametrize("cast", CASTS)
def test_casts_of_the_module_around_leave_states_alone(name, cast):
    make, inputs, function = CASES[name]
    metric = make()
    holder = nn.ModuleList([metric])
    parts = [*batches(inputs, 40)]
    CASTS[cast](holder)
    metric.update(*parts[0])
    CASTS[cast](holder)
    for part in parts[1:]:
        metric.update(*part)
    value = metric.compute()
    assert_equal(value, function(*inputs))
    CASTS[cast](holder)
    assert_equal(metric.compute(), value)  # the cached one
    assert metric.count.dtype == torch.long
    assert metric.dtype == torch.float64  # of the empty state that a process without data sends


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
        _, axes = metric.plot(argument)
        drawn = axes.flatten() if hasattr(axes, "flatten") else [axes]
        assert all(axis.has_data() for axis in drawn)
    mpl.pyplot.close("all")


@OF_EMBEDDINGS
def test_rejects_nonfinite_rows(name):
    make, inputs, _ = CASES[name]
    broken = inputs[0].clone()
    broken[3] = float("nan")
    with pytest.raises(ValueError, match=r"has 1 non-finite (rows|values) of 120"):
        make().update(broken, *inputs[1:])


# Batches after which the states of metrics that differ agree: constant embeddings, equal views, no
# outlier yet, an encoder and the teacher that starts from it.
AGREEING = {
    name: tuple(
        torch.zeros_like(x) if x.is_floating_point() and "Score" not in name else x for x in inputs
    )
    for name, (_, inputs, _) in CASES.items()
}
AGREEING |= {name: (torch.full((5,), 1e6),) for name in CASES if name.startswith("OutlierFr")}


def alike():
    """Names of the cases of each metric, which have the same inputs; of task priors each has its own."""
    kinds = {}
    for name in CASES:
        kind = name if name.startswith("TaskPriors") else name.split("(")[0]
        kinds.setdefault(kind, []).append(name)
    return list(kinds.values())


@pytest.mark.parametrize("names", alike(), ids=lambda names: names[0])
@pytest.mark.parametrize("method", ["update", "forward"])
def test_a_collection_never_takes_one_metric_for_another(names, method):
    inputs = CASES[names[0]][1]
    made = {name: CASES[name][0]() for name in names}
    if len(names) == 1:
        made["again"] = CASES[names[0]][0]()
    alone = {other: copy.deepcopy(metric) for other, metric in made.items()}
    labels = {other: f"m{index}" for index, other in enumerate(made)}
    collection = MetricCollection({labels[other]: metric for other, metric in made.items()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # batches that determine nothing
        for batch in (AGREEING[names[0]], inputs, *batches(inputs, 60)):
            (collection.update if method == "update" else collection)(*batch)
            for metric in alone.values():
                metric.update(*batch)
        found = collection.compute()
        collection.reset()
        collection.update(*inputs)
        again = collection.compute()
    for other, metric in alone.items():
        expected = metric.compute()
        metric.reset()
        metric.update(*inputs)
        for value, right in ((found, expected), (again, metric.compute())):
            if isinstance(right, dict):
                # The collection prefixes keys that come up more than once.
                mine = [v for k, v in value.items() if k.startswith(f"{labels[other]}_")]
                mine = mine or [value[key] for key in right]
                assert_equal(mine, list(right.values()))
            else:
                assert_equal(value[labels[other]], right)


def test_forward_is_the_faster_partial_state_update(capsys):
    check_forward_full_state_property(
        EffectiveRank, {"num_features": K}, {"embeddings": Z}, num_update_to_compare=[3], reps=2
    )
    assert "Full state for" in capsys.readouterr().out


def test_values_of_forward_are_of_the_batch_after_an_error():
    metric = EffectiveRank(K)
    metric.update(Z)
    with pytest.raises(ValueError, match="must have shape"):
        metric(normal(3, K + 1))
    assert metric(Z[:20]) == EffectiveRank(K)(Z[:20])
    metric.reset()
    with pytest.raises(RuntimeError, match="needs at least 2 samples"):
        metric.compute()
