"""Sparse codes and the decoders that are best for them: scores and points in, codes, cells and dictionaries out.

A sparse autoencoder is a map that is affine on each of its cells (arXiv 2505.11836): which codes fire says the cell.
Codes are (N, c), dictionaries hold one atom a row, (c, d), and a reconstruction is codes @ dictionary + bias.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jepa_monitor._checks import check_positive_int
from jepa_monitor.functional._checks import (
    as_matrix,
    as_vector,
    require_number,
    require_same_rows,
    require_same_width,
)
from jepa_monitor.functional._kmeans import kmeans

__all__ = [
    "Decoder",
    "LocalPca",
    "batch_topk_codes",
    "kmeans_pca",
    "pam_decoder_step",
    "power_cells",
    "topk_codes",
]


class Decoder(NamedTuple):
    """What turns codes into points.

    Args:
        dictionary: One atom a row, (c, d), float64.
        bias: Of all points, (d,), float64.
    """

    dictionary: Tensor
    bias: Tensor


def _checked_scores(scores: Tensor, k: int) -> Tensor:
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        raise TypeError("`scores` must be a floating-point torch.Tensor.")
    if scores.ndim != 2 or scores.numel() == 0:
        raise ValueError(f"`scores` must have shape (N, c), got {tuple(scores.shape)}.")
    check_positive_int(k, "k")
    if k > scores.shape[1]:
        raise ValueError(f"`k` must be at most the {scores.shape[1]} atoms, got {k}.")
    return scores


def topk_codes(scores: Tensor, k: int, signed: bool = False) -> Tensor:
    """Keep the k largest scores of each point, and set the others to 0.

    Args:
        scores: Of c atoms for N points, (N, c).
        k: How many may fire, 1 … c.
        signed: Whether the k largest *absolute* scores stay, with their signs, as in the authors' code
            of PAM-SGD; otherwise negative scores never fire.

    Returns:
        Codes (N, c) of the scores' dtype, at most k of each row not 0; gradients pass to what stays.

    Raises:
        TypeError: If the scores are no floating-point tensor.
        ValueError: If their shape is wrong, or k exceeds c.

    Source:
        Makhzani & Frey, k-sparse autoencoders (arXiv 1312.5663).

    Example:
        >>> import torch
        >>> topk_codes(torch.tensor([[3.0, -5.0, 1.0], [-1.0, 2.0, -3.0]]), k=2)
        tensor([[3., 0., 1.],
                [0., 2., 0.]])
        >>> topk_codes(torch.tensor([[3.0, -5.0, 1.0]]), k=2, signed=True)
        tensor([[ 3., -5.,  0.]])
    """
    _checked_scores(scores, k)
    rank = scores.detach().abs() if signed else scores.detach()
    kept = torch.zeros_like(scores).scatter_(1, rank.topk(k, dim=1).indices, 1.0)
    return (scores if signed else scores.relu()) * kept


def batch_topk_codes(scores: Tensor, k: int) -> Tensor:
    """Keep the N·k largest scores of a batch of N points, and set the others to 0.

    How many fire for a point may differ; a batch decides together, so codes depend on the batch.

    Args:
        scores: Of c atoms for N points, (N, c).
        k: How many fire for a point on average, 1 … c.

    Returns:
        Codes (N, c) of the scores' dtype, none negative; gradients pass to what stays.

    Raises:
        TypeError: If the scores are no floating-point tensor.
        ValueError: If their shape is wrong, or k exceeds c.

    Source:
        Bussmann et al., BatchTopK sparse autoencoders (arXiv 2412.06410).

    Example:
        >>> import torch
        >>> batch_topk_codes(torch.tensor([[3.0, 2.0, 4.0], [1.0, 0.5, -1.0]]), k=1)
        tensor([[3., 0., 4.],
                [0., 0., 0.]])
    """
    _checked_scores(scores, k)
    flat = scores.detach().flatten()
    kept = torch.zeros_like(flat).scatter_(0, flat.topk(len(scores) * k).indices, 1.0)
    return scores.relu() * kept.view_as(scores)


def power_cells(points: Tensor, sites: Tensor, biases: Tensor, k: int) -> Tensor:
    r"""Find the k-th order cell of a power diagram that each point lies in.

    With sites :math:`w_i` and weights :math:`a_i = \lVert w_i \rVert^2 + 2 b_i` the power distance of a
    point is :math:`\lVert x - w_i \rVert^2 - a_i = \lVert x \rVert^2 - 2 (w_i \cdot x + b_i)`. So the k sites of
    least power distance are those of the k largest scores of a linear encoder: what a TopK autoencoder fires.

    Args:
        points: (N, d).
        sites: Rows of the encoder's weight, (c, d).
        biases: Of the encoder, (c,).
        k: Order of the diagram, 1 … c.

    Returns:
        Numbers of the k sites, ascending, (N, k), int64: the name of the cell.

    Raises:
        ValueError: If shapes do not fit, or k exceeds c.

    Source:
        arXiv 2505.11836.

    Example:
        >>> import torch
        >>> sites, biases = torch.tensor([[1.0], [2.0], [-1.0]]), torch.zeros(3)
        >>> power_cells(torch.tensor([[0.5], [-0.5]]), sites, biases, k=1).tolist()
        [[1], [2]]
    """
    x, w = as_matrix(points, "points"), as_matrix(sites, "sites")
    require_same_width(x, w, ("points", "sites"))
    b = as_vector(biases, "biases")
    require_same_rows(w, b, ("sites", "biases"))
    check_positive_int(k, "k")
    if k > len(w):
        raise ValueError(f"`k` must be at most the {len(w)} sites, got {k}.")
    weights = w.square().sum(1) + 2 * b
    squares = torch.cdist(x, w, compute_mode="donot_use_mm_for_euclid_dist").square()
    cells: Tensor = (squares - weights).topk(k, dim=1, largest=False).indices.sort(dim=1).values
    return cells


def pam_decoder_step(
    points: Tensor,
    codes: Tensor,
    dictionary: Tensor,
    bias: Tensor,
    *,
    alpha: float = 0.0,
    beta: float = 0.0,
    mu: float = 0.0,
    nu: float = 0.0,
    total: int | None = None,
) -> Decoder:
    r"""Solve for the decoder, exactly: the proximal step of PAM-SGD, with the encoder as it is.

    Minimises over D and b

    .. math:: \sum_n \lVert x_n - z_n D - b \rVert^2 + \alpha \lVert D \rVert^2 + \beta \lVert b \rVert^2
              + \mu \lVert D - D_t \rVert^2 + \nu \lVert b - b_t \rVert^2

    in closed form: a joint solve of atoms and bias. All penalties are weights of *sums* over points, so that what
    1e-3 does depends on how many points there are. Without penalties it is least squares, of least norm where codes do
    not determine it: atoms that never fire are then 0.

    Args:
        points: x, (N, d).
        codes: z, (N, c).
        dictionary: D_t, (c, d).
        bias: b_t, (d,).
        alpha: α ≥ 0, ridge on the atoms.
        beta: β ≥ 0, ridge on the bias.
        mu: μ ≥ 0, how closely the atoms stay to what they were.
        nu: ν ≥ 0, how closely the bias stays.
        total: How many points a batch of N stands for; its sums count total/N times. By default N.

    Returns:
        The decoder.

    Raises:
        ValueError: If shapes do not fit or a penalty is negative.

    Source:
        arXiv 2505.11836; there the bias is the mean residual of a solve without one, here the optimum of both.

    Example:
        >>> import torch
        >>> codes = torch.eye(4)[:, :2]
        >>> points = codes @ torch.tensor([[1.0, 2.0], [3.0, 4.0]]) + 5
        >>> pam_decoder_step(points, codes, torch.zeros(2, 2), torch.zeros(2))
        Decoder(dictionary=tensor([[1.0, 2.0],
                [3.0, 4.0]], dtype=torch.float64), bias=tensor([5., 5.], dtype=torch.float64))
    """
    x, z = as_matrix(points, "points"), as_matrix(codes, "codes")
    require_same_rows(x, z, ("points", "codes"))
    before, start = as_matrix(dictionary, "dictionary"), as_vector(bias, "bias")
    if before.shape != (z.shape[1], x.shape[1]):
        raise ValueError(
            f"`dictionary` must have shape ({z.shape[1]}, {x.shape[1]}), got {tuple(before.shape)}."
        )
    if start.shape != x.shape[1:]:
        raise ValueError(f"`bias` must have shape ({x.shape[1]},), got {tuple(start.shape)}.")
    alpha, beta, mu, nu = (
        require_number(value, name, 0.0)
        for value, name in ((alpha, "alpha"), (beta, "beta"), (mu, "mu"), (nu, "nu"))
    )
    count = float(len(x) if total is None else check_positive_int(total, "total"))
    x_mean, z_mean = x.mean(0), z.mean(0)
    # What is centred has no digits to lose: Z'Z − N c z̄z̄' = Z̃'Z̃ + N (1 − c) z̄z̄', likewise X.
    z_centred, x_centred = z - z_mean, x - x_mean
    scale, share = count / len(x), count / (beta + nu + count)
    gram = scale * z_centred.T @ z_centred
    cross = scale * z_centred.T @ x_centred
    pull = (1 - share) * count * x_mean - share * nu * start
    gram = gram + (1 - share) * count * torch.outer(z_mean, z_mean)
    cross = cross + torch.outer(z_mean, pull) + mu * before
    gram.diagonal().add_(alpha + mu)
    atoms = _solve(gram, cross)
    shifted = share * (x_mean - z_mean @ atoms) + nu / (beta + nu + count) * start
    return Decoder(atoms, shifted)


def _solve(gram: Tensor, cross: Tensor) -> Tensor:
    """Solve for a positive matrix, by least norm where it is singular."""
    factor, failed = torch.linalg.cholesky_ex(gram)
    diagonal = factor.diagonal().square()
    floor = len(gram) * torch.finfo(gram.dtype).eps * gram.diagonal().max()
    if int(failed) == 0 and bool(diagonal.min() > 1e3 * floor):
        found: Tensor = torch.cholesky_solve(cross, factor)
        return found
    inverse: Tensor = torch.linalg.pinv(gram, hermitian=True)
    return inverse @ cross


class LocalPca(NamedTuple):
    """An affine map of low rank in each of several cells.

    Args:
        centroids: Means of the cells, (m, d), float64.
        axes: Orthonormal directions of each, (m, r, d), float64; zeros where a cell has fewer.
    """

    centroids: Tensor
    axes: Tensor

    def reconstruct(self, points: Tensor) -> Tensor:
        """Put points onto the plane of the nearest centroid.

        Args:
            points: (N, d).

        Returns:
            (N, d), float64.
        """
        x = as_matrix(points, "points")
        require_same_width(x, self.centroids, ("points", "centroids"))
        cell = torch.cdist(x, self.centroids).argmin(1)
        found = torch.empty_like(x)
        for number in torch.unique(cell).tolist():
            inside, axes = cell == number, self.axes[number]
            centred = x[inside] - self.centroids[number]
            found[inside] = self.centroids[number] + (centred @ axes.T) @ axes
        return found


def kmeans_pca(points: Tensor, cells: int, rank: int, seed: int = 0) -> LocalPca:
    """Fit what a sparse autoencoder has to beat: k-means, and PCA in each cell.

    For a fixed partition the mean and the first r principal axes of each cell are the best affine map of rank
    r, and a TopK autoencoder of k = r active atoms is such a map on its own cells. With m cells this has m·(r + 1) vectors.

    Args:
        points: To fit, (N, d).
        cells: m, 1 … N; with 1 it is PCA.
        rank: r, 1 … d.
        seed: Of k-means.

    Returns:
        The map.

    Raises:
        ValueError: If there are more cells than points, or a rank above d.

    Source:
        The baseline of arXiv 2505.11836; Kambhatla & Leen, Dimension reduction by local PCA (1997).

    Example:
        >>> import torch
        >>> line = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
        >>> found = kmeans_pca(line, cells=1, rank=1)
        >>> torch.allclose(found.reconstruct(line), line.double())
        True
    """
    x = as_matrix(points, "points")
    for value, name, most in ((cells, "cells", len(x)), (rank, "rank", x.shape[1])):
        check_positive_int(value, name)
        if value > most:
            raise ValueError(f"`{name}` must be at most {most}, got {value}.")
    shift = x.mean(0)
    found = kmeans((x - shift)[None], cells, seed, by_products=True)
    labels = found.labels[0]
    means, axes = x.new_zeros(cells, x.shape[1]), x.new_zeros(cells, rank, x.shape[1])
    for number in range(cells):
        inside = x[labels == number]
        if not len(inside):  # several centroids on one point
            means[number] = found.centroids[0, number] + shift
            continue
        means[number] = inside.mean(0)
        _, sizes, directions = torch.linalg.svd(inside - means[number], full_matrices=False)
        there = int((sizes[:rank] > 0).sum())
        axes[number, :there] = directions[:there]
    return LocalPca(means, axes)
