"""What the metrics of classes, priors, pairs and Jacobians do beyond the common contract."""

import pytest
import torch

from jepa_monitor.metrics import JacobianAlignment, MutualKNN, Separation, TaskPriors


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_coarsest_dtype_decides_what_is_constant(dtype):
    classes = torch.arange(40) % 2
    z = 1 + torch.finfo(dtype).eps * classes[:, None] * torch.ones(3)  # a rounding apart
    separation, priors = Separation(3), TaskPriors(3)
    for batch, names in zip(z.to(dtype).split(8), classes.split(8), strict=True):
        separation.update(batch, names)
        priors.update(batch, names)
    assert separation.compute()["gap_ratio"] == 0
    assert separation.compute()["auroc"] == 0.5
    assert priors.compute()["mean"] == 0
    features = TaskPriors(3, prior_features=3)
    features.update(normal(40, 3), z.to(dtype))
    assert features.compute()["best"] == 0


def test_images_can_be_the_prior_and_the_inputs():
    images, z = normal(20, 3, 2, 2), normal(20, 4, seed=1)
    flat, shaped = TaskPriors(4, prior_features=12), TaskPriors(4, prior_features=12)
    flat.update(z, images.flatten(1))
    shaped.update(z, images)
    assert shaped.compute()["mean"] == flat.compute()["mean"] != 0
    metric, rows = JacobianAlignment(images[:5]), normal(15, 2, 12, seed=2)
    other = JacobianAlignment(images[:5].flatten(1))
    metric.update(rows, images[5:])
    other.update(rows, images[5:].flatten(1))
    assert metric.compute() == other.compute()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: Separation(3).update(normal(4, 3), torch.ones(4)),
            r"`classes` must be integers of shape \(4,\), got torch.float32 of shape \(4,\)",
        ),
        (
            lambda: TaskPriors(3).update(normal(4, 3), normal(4, 2)),
            r"`prior` must be integer labels of shape \(4,\), got .*give `prior_features`",
        ),
        (
            lambda: TaskPriors(3, prior_features=5).update(normal(4, 3), normal(4, 2)),
            r"`prior` must hold \(4, 5\) numbers, got shape \(4, 2\)",
        ),
        (lambda: TaskPriors(3, prior_features=0), "`prior_features` must be at least 1, got 0"),
        (lambda: TaskPriors(3, temperature=0), r"`temperature` must lie in \(0, inf\)"),
        (
            lambda: MutualKNN(3, 2).update(normal(4, 3), normal(5, 2)),
            r"`first` and `second` must have the same number of rows, got \(4, 3\) and \(5, 2\)",
        ),
        (
            lambda: JacobianAlignment(normal(0, 3)),
            "`others` must have at least 1 row, got 0",
        ),
    ],
)
def test_wrong_use_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_too_few_samples_for_the_neighbours():
    metric = MutualKNN(3, 3, k=10)
    metric.update(normal(11, 3), normal(11, 3, seed=1))
    with pytest.raises(RuntimeError, match="needs at least 12 samples to compute, got 11"):
        metric.compute()
