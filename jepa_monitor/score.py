"""The score of images: in go an encoder and images, out comes one number an image."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from jepa_monitor._checks import check_images
from jepa_monitor.encoders import Embedder, Pool
from jepa_monitor.jacobian import spectra
from jepa_monitor.options import ScoreOptions
from jepa_monitor.spectrum import log_volume

__all__ = ["jacobian_spectrum", "jepa_score"]


def jacobian_spectrum(
    encoder: Any,
    images: Tensor,
    *,
    precision: str = "float32",
    max_memory: int | None = None,
    pool: Pool = "auto",
) -> Tensor:
    """Singular values of the encoder's Jacobian at each image.

    The encoder runs in eval mode and in full precision and is left exactly as it was, whatever mode
    (training, inference mode, autocast) it is called in.

    Args:
        encoder: A module or callable that maps (B, ...) to (B, K), tokens, maps or structures.
        images: (B, ...), floating point, as the encoder takes them; D numbers an image.
        precision: ``"float32"`` or ``"float64"``; see :class:`~jepa_monitor.ScoreOptions`.
        max_memory: Bytes to use at most beyond the model; default: a share of what is free.
        pool: How outputs become (B, K); see :func:`~jepa_monitor.encoders.pool_output`.

    Returns:
        (B, min(K, D)), descending, float64; NaN where the Jacobian is not finite.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of range, the images are not finite, or the encoder does
            not map each image by itself, differentiably, to one embedding.
        MemoryError: If a single image does not fit into memory.

    Example:
        >>> import torch
        >>> from jepa_monitor import jacobian_spectrum
        >>> encoder = torch.nn.Linear(3, 2, bias=False)
        >>> _ = encoder.weight.data.copy_(torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 0.5]]))
        >>> jacobian_spectrum(encoder, torch.zeros(1, 3))
        tensor([[3.0000, 0.5000]], dtype=torch.float64)
    """
    options = ScoreOptions(precision=precision, max_memory=max_memory)
    embedder = Embedder(encoder, pool, options.dtype)
    return spectra(embedder, check_images(images), options).singular_values


def jepa_score(
    encoder: Any,
    images: Tensor,
    *,
    eps: float = 1e-6,
    precision: str = "float32",
    max_memory: int | None = None,
    pool: Pool = "auto",
) -> Tensor:
    r"""JEPA-SCORE: the log-density that an encoder has learned, up to a constant.

    .. math:: \text{JEPA-SCORE}(x) = \sum_k \log \max(\sigma_k(\partial f / \partial x), \epsilon)

    Higher means denser: more typical of the training data (arXiv 2510.05949). It is a density score
    only as far as the embeddings are Gaussian.

    Args:
        encoder: A module or callable that maps (B, ...) to (B, K), tokens, maps or structures.
        images: (B, ...), floating point, as the encoder takes them.
        eps: Singular values below it count as it.
        precision: ``"float32"`` or ``"float64"``; see :class:`~jepa_monitor.ScoreOptions`.
        max_memory: Bytes to use at most beyond the model; default: a share of what is free.
        pool: How outputs become (B, K); see :func:`~jepa_monitor.encoders.pool_output`.

    Returns:
        (B,), float64, in nats; NaN where the Jacobian is not finite.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of range, the images are not finite, or the encoder does
            not map each image by itself, differentiably, to one embedding.
        MemoryError: If a single image does not fit into memory.

    Example:
        >>> import torch
        >>> from jepa_monitor import jepa_score
        >>> encoder = torch.nn.Linear(3, 2, bias=False)
        >>> _ = encoder.weight.data.copy_(torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 0.5]]))
        >>> jepa_score(encoder, torch.zeros(1, 3))  # log 3 + log 0.5
        tensor([0.4055], dtype=torch.float64)
    """
    options = ScoreOptions(eps=eps, precision=precision, max_memory=max_memory)
    embedder = Embedder(encoder, pool, options.dtype)
    found = spectra(embedder, check_images(images), options)
    return log_volume(found.singular_values, options.eps)
