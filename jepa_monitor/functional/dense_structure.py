"""Structure of patch tokens: what dense tasks ask for, in three terms, without labels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jepa_monitor._checks import check_positive_int
from jepa_monitor.functional._checks import as_views
from jepa_monitor.functional._directions import unit_rows
from jepa_monitor.functional._kmeans import kmeans
from jepa_monitor.functional._spectrum import entropy_rank

_ROUNDING = 4  # a spread of so many roundings of the input's dtype is no spread


class DenseStructure(NamedTuple):
    """The terms of DSE; every field a 0-dimensional float64 tensor.

    Args:
        inter: Distance of tokens to the nearest cluster that is not theirs; high is healthy.
        intra: Size of clusters, mean of the two below; low is healthy.
        intra_image: Of clusters within one image.
        intra_group: Of clusters within a group of images.
        dimension: Effective rank of tokens across images over the highest possible; high is healthy.
    """

    inter: Tensor
    intra: Tensor
    intra_image: Tensor
    intra_group: Tensor
    dimension: Tensor


def dense_structure(
    tokens: Tensor,
    clusters: int = 3,
    group: int = 8,
    positions: int = 16,
    normalized: bool = True,
    seed: int = 0,
) -> DenseStructure:
    r"""The terms of the dense representation structure estimator (DSE).

    In units of the mean distance of a token to the mean token, with k-means clusters in place of
    labels:

    - ``intra_image``: mean over the ``clusters`` of each image of
      :math:`\lVert C \rVert_* / \sqrt{\max(n - 1, d)}`, C the n centred tokens of a cluster (of 2 or
      more), and the nuclear norm the sum of its singular values;
    - ``intra_group``: the same of ``group·clusters`` clusters of the tokens of ``group`` images;
    - ``inter``: mean distance of the tokens of a group to the nearest centroid but their own;
    - ``dimension``: at ``positions`` random places, one token of each image (each image's patches
      being shuffled): exp of the entropy of the singular values' shares, over min(B, d).

    DSE is inter − intra + λ·dimension. Its weight λ is the ratio of the standard deviations of
    inter − intra and of dimension over the checkpoints of a run, so it is not known before the end:
    log the terms. They do not depend on the size of the tokens nor on rotations, but on B, P, d and
    the arguments: isotropic tokens of B = 1024 images in d = 384 read a dimension of 0.947, and an
    isotropic cluster an intra that grows with its n. Tokens are patch tokens: take class and
    register tokens out first. Time: k-means, and ``positions`` SVDs of B × d.

    Args:
        tokens: Patch tokens of B images, shape (B, P, d); B a multiple of ``group``, P at least
            ``clusters``.
        clusters: Clusters of an image.
        group: Images of a group.
        positions: Places at which the dimension is taken, cut to P.
        normalized: Whether to scale each token to unit length first.
        seed: Of k-means and of the places.

    Returns:
        The terms. inter, intra and dimension are 0 if all tokens are equal.

    Raises:
        ValueError: If the images cannot be grouped, or have fewer patches than clusters.

    Source:
        arXiv 2510.17299, Sec. 4 (DSE), in the form of its authors' code, where the singular values of
        a cluster are divided by the root of its size.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> parts = torch.randn(8, 3, 16, generator=generator)  # three things an image shows
        >>> found = dense_structure(parts.repeat_interleave(10, dim=1))
        >>> found.intra < 1e-9, found.inter > 0.5
        (tensor(True), tensor(True))
    """
    t = as_views(tokens, "tokens", min_samples=1, min_views=1)
    images, patches, width = t.shape
    for value, name in ((clusters, "clusters"), (group, "group"), (positions, "positions")):
        check_positive_int(value, name)
    if images % group:
        raise ValueError(f"`tokens` must be of a multiple of {group} images, got {images}.")
    if patches < clusters:
        raise ValueError(f"`tokens` must have at least {clusters} patches an image, got {patches}.")
    flat = t.reshape(-1, width)
    flat = unit_rows(flat) if normalized else flat / flat.abs().amax().clamp(min=1e-300)
    centred = flat - flat.mean(dim=0)
    spread, size = (x.square().sum(dim=1).mean().sqrt() for x in (centred, flat))
    zero = torch.zeros_like(spread)
    if float(spread) <= _ROUNDING * torch.finfo(tokens.dtype).eps * float(size):
        return DenseStructure(zero, zero, zero, zero, zero)
    unit = torch.linalg.vector_norm(centred, dim=1).mean()

    own = flat.view(images, patches, width)
    intra_image = _cluster_size(own, kmeans(own, clusters, seed).labels, clusters) / unit
    groups = flat.view(images // group, group * patches, width)
    found = kmeans(groups, group * clusters, seed)
    intra_group = _cluster_size(groups, found.labels, group * clusters) / unit
    distances = torch.cdist(groups, found.centroids).scatter(2, found.labels[..., None], torch.inf)
    nearest = distances.amin(dim=2)
    inter = nearest.mean() / unit if group * clusters > 1 else zero
    return DenseStructure(
        inter,
        (intra_image + intra_group) / 2,
        intra_image,
        intra_group,
        _dimension(own, positions, seed),
    )


def _cluster_size(points: Tensor, labels: Tensor, clusters: int) -> Tensor:
    """Mean over clusters of two or more of the nuclear norm over the root of the size."""
    sizes = []
    for own, names in zip(points, labels, strict=True):
        for cluster in range(clusters):
            members = own[names == cluster]
            if len(members) > 1:
                singular_values = torch.linalg.svdvals(members - members.mean(dim=0))
                sizes.append(singular_values.sum() / max(len(members) - 1, members.shape[1]) ** 0.5)
    return torch.stack(sizes).mean() if sizes else points.new_zeros(())


def _dimension(tokens: Tensor, positions: int, seed: int) -> Tensor:
    images, patches, width = tokens.shape
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(images, patches, generator=generator).argsort(dim=1).to(tokens.device)
    rows = torch.arange(images, device=tokens.device)
    ranks = [
        entropy_rank(torch.linalg.svdvals(tokens[rows, order[:, place]]))
        for place in range(min(positions, patches))
    ]
    return torch.stack(ranks).mean() / min(images, width)
