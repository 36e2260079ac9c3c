"""Task Priors: how an encoder does on average over all tasks that a prior holds for likely.

A task is a graph over the samples: G_ij = 1 if i and j have the same label. The prior is a kernel K
of similarities (from labels, from pixels, from another encoder): independently for each pair,
P(G_ij = 1) = sigmoid(K_ij / T). All kernels here are U-centred, which makes their pairs sum to 0
around each sample, and scaled to a root mean square of 1 over pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa_monitor._checks import check_positive_int
from jepa_monitor.functional._checks import as_matrix, require_number
from jepa_monitor.functional._directions import unit_rows

MIN_SAMPLES = 4  # of fewer, U-centring leaves nothing
_ROUNDING = 64 * torch.finfo(torch.float64).eps


class TaskPriorPerformance(NamedTuple):
    """Mean and variance over tasks, and the mean of the encoder that suits the prior best."""

    mean: Tensor
    variance: Tensor
    best: Tensor


def task_prior_performance(
    embeddings: Tensor, prior: Tensor, temperature: float = 0.1
) -> TaskPriorPerformance:
    r"""Mean and variance of an encoder's performance over tasks drawn from a prior kernel.

    The performance on a task G is the agreement of the encoder's cosine kernel M with the graph,
    here as the cosine between M and the ±1 graph over all pairs,

    .. math::
        P(G) = \frac{2}{N(N-1)} \sum_{i<j} M_{ij} (2 G_{ij} - 1)

    with M U-centred and of root mean square 1. For independent edges of probability
    sigmoid(K/T), with t = tanh(K/2T),

    .. math::
        \mathbb E\, P = \frac{2}{N(N-1)} \sum_{i<j} M_{ij} t_{ij}, \qquad
        \operatorname{Var} P = \frac{4}{N^2(N-1)^2} \sum_{i<j} M_{ij}^2 (1 - t_{ij}^2)

    Range of the mean: −1 to 1; higher is better, 0 is chance, ``best`` is attainable: mean / best
    is the (debiased) linear CKA between M and the mean graph. Compare at one prior, one temperature
    and the same samples. A low temperature trusts the sign of the prior, a high one makes all
    graphs alike (mean and best go to 0). Time and memory O(N²).

    Unlike the published code it counts each pair once, so that a symmetric G has the variance above
    (summing over ordered pairs as if independent gives half of it), leaves out the diagonal
    (G_ii = 1 in all tasks), and centres and normalises, without which the mean grows with N² and
    with the length of the embeddings. Edges of one graph are independent: transitivity of labels
    is ignored, as in the paper.

    Args:
        embeddings: Embeddings, shape (N, K), N ≥ 4.
        prior: What tells which samples belong together, row by row the same samples: integer labels
            of shape (N,), or features of shape (N, ...), flattened: pixels or embeddings of another
            encoder.
        temperature: T, in units of the prior kernel's root mean square. The paper's figures use
            1e-5 of the Frobenius norm at N = 8192, which is 0.08.

    Returns:
        ``mean``, ``variance`` and ``best``, 0-dimensional float64 tensors. Mean and variance are 0
        for constant embeddings; all but the variance are 0 for a constant prior.

    Raises:
        ValueError: If the samples are not as many, or an argument is out of range.

    Source:
        Patel & Balestriero, Task Priors (arXiv 2507.09871), Theorem 2.6 for the closed form.

    Example:
        >>> import torch
        >>> labels = torch.arange(12) % 3
        >>> z = torch.nn.functional.one_hot(labels).float()
        >>> found = task_prior_performance(z, labels)
        >>> torch.allclose(found.mean, found.best)
        True
        >>> task_prior_performance(torch.ones(12, 3), labels).mean
        tensor(0., dtype=torch.float64)
    """
    require_number(temperature, "temperature", 0, closed=False)
    z = as_matrix(embeddings, "embeddings", MIN_SAMPLES)
    model, kernel = feature_kernel(z, torch.finfo(embeddings.dtype).eps), prior_kernel(prior)
    if len(model) != len(kernel):
        raise ValueError(
            "`embeddings` and `prior` must have the same number of samples, "
            f"got {len(model)} and {len(kernel)}."
        )
    return performance(model, kernel, temperature)


def performance(model: Tensor, kernel: Tensor, temperature: float) -> TaskPriorPerformance:
    """Compute :func:`task_prior_performance` from kernels.

    Args:
        model: U-centred kernel of the embeddings, shape (N, N).
        kernel: Of the prior, same shape.
        temperature: T.

    Returns:
        Mean, variance and best mean.
    """
    agreement = torch.tanh(kernel / (2 * temperature))
    pairs = len(model) * (len(model) - 1)  # ordered; the diagonals are 0
    mean = (model * agreement).sum() / pairs
    variance = 2 * (model.square() * (1 - agreement.square())).sum() / pairs**2
    best = (_u_centred(agreement).square().sum() / pairs).sqrt()
    return TaskPriorPerformance(mean, variance, best)


def prior_kernel(prior: Tensor) -> Tensor:
    """U-centred kernel of samples, of root mean square 1 over pairs.

    Of labels, whether two are equal; of features, their cosine. U-centring subtracts from each
    off-diagonal entry the mean similarity of its row and of its column, so that what is left sums
    to zero around each sample; the diagonal is 0.

    Args:
        prior: Integer labels of shape (N,) or features of shape (N, ...), N ≥ 4.

    Returns:
        Float64 tensor, shape (N, N), symmetric; zeros if all samples are alike.

    Raises:
        TypeError: If the prior is no tensor.
        ValueError: If there are fewer than 4 samples, or labels come in another shape.

    Source:
        Székely & Rizzo, Partial distance correlation (Annals of Statistics 42, 2014).

    Example:
        >>> import torch
        >>> prior_kernel(torch.tensor([0, 0, 1, 1]))[0]
        tensor([ 0.0000,  1.4142, -0.7071, -0.7071], dtype=torch.float64)
    """
    if not isinstance(prior, Tensor):
        raise TypeError(f"`prior` must be a torch.Tensor, got {type(prior).__name__}.")
    if prior.is_floating_point():
        features = as_matrix(prior.flatten(1) if prior.ndim > 2 else prior, "prior", MIN_SAMPLES)
        return feature_kernel(features, torch.finfo(prior.dtype).eps)
    if prior.ndim != 1 or len(prior) < MIN_SAMPLES:
        raise ValueError(
            f"`prior` must be labels of shape (N,) with N ≥ {MIN_SAMPLES}, or floating-point "
            f"features, got {prior.dtype} of shape {tuple(prior.shape)}."
        )
    return _normalised((prior[:, None] == prior).double())


def feature_kernel(features: Tensor, resolution: float) -> Tensor:
    """U-centred cosine kernel.

    Args:
        features: Float64, shape (N, K), N ≥ 4.
        resolution: Machine epsilon of the dtype in which they came.

    Returns:
        Shape (N, N), of root mean square 1 over pairs; zeros if all directions are equal up to
        rounding.
    """
    directions = unit_rows(features)
    spread = (directions - directions.mean(0)).square().sum(1).mean().sqrt()
    if float(spread) <= 4 * resolution:
        return torch.zeros(len(features), len(features), dtype=spread.dtype, device=spread.device)
    return _normalised(directions @ directions.T)


def sample_tasks(
    prior: Tensor,
    num_tasks: int,
    num_classes: int = 2,
    temperature: float = 0.1,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Draw labelings from the prior: true tasks, whose graphs are transitive.

    Sample by sample, in a random order, with the probability of label c given the labels so far

    .. math::
        P(y_i = c) \propto \exp\Bigl(\frac1T \frac{1}{N} \sum_{j \text{ before } i} K_{ij} [y_j = c]\Bigr)

    where 1/N keeps the sum from growing with the number of samples. Time O(N²·tasks).

    Args:
        prior: As for :func:`task_prior_performance`.
        num_tasks: How many.
        num_classes: Labels of a task; a draw may leave some unused.
        temperature: T. Smaller: labels follow the prior; larger: labels are random.
        generator: Of the draws; default: torch's global one.

    Returns:
        Labels from 0 to ``num_classes`` − 1, shape (num_tasks, N), int64.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        The prefix sampler of Task Priors (arXiv 2507.09871), with its sum divided by N.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> labels = torch.arange(40) % 2
        >>> task = sample_tasks(labels, 1, temperature=1e-3, generator=generator)[0]
        >>> abs(torch.corrcoef(torch.stack([task, labels]).double())[0, 1]) > 0.9
        tensor(True)
    """
    check_positive_int(num_tasks, "num_tasks")
    if check_positive_int(num_classes, "num_classes") < 2:
        raise ValueError(f"`num_classes` must be at least 2, got {num_classes}.")
    require_number(temperature, "temperature", 0, closed=False)
    kernel = prior_kernel(prior) / (temperature * len(prior))
    device = torch.device("cpu") if generator is None else generator.device
    order = torch.randperm(len(kernel), generator=generator, device=device).to(kernel.device)
    members = kernel.new_zeros(len(kernel), num_tasks, num_classes)  # one-hot, 0 if not yet drawn
    for i in order.tolist():
        logits = torch.einsum("j,jtc->tc", kernel[i], members)
        noise = torch.rand(logits.shape, generator=generator, device=device, dtype=torch.float64)
        gumbel = -(-noise.clamp(min=1e-300).log()).log().to(kernel.device)
        members[i] = F.one_hot((logits + gumbel).argmax(1), num_classes)
    return members.argmax(2).T


def _normalised(similarity: Tensor) -> Tensor:
    """U-centre and scale to a root mean square of 1 over pairs; rounding is nothing."""
    centred = _u_centred(similarity)
    size = (centred.square().sum() / (len(centred) * (len(centred) - 1))).sqrt()
    return torch.zeros_like(centred) if float(size) <= _ROUNDING else centred / size


def _u_centred(matrix: Tensor) -> Tensor:
    count = len(matrix)
    hollow = matrix - torch.diag(matrix.diagonal())
    rows = hollow.sum(1)
    centred = hollow - (rows[:, None] + rows) / (count - 2)
    centred = centred + rows.sum() / ((count - 1) * (count - 2))
    return centred - torch.diag(centred.diagonal())
