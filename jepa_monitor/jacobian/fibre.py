"""The part of an image that an encoder does not see: in go rows and a law of images, out come terms.

Points that share an embedding form the fibre of the encoder through them. For normal images its density
is known: what the rows do not span of the white image is white noise (docs/theory.md).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from jepa_monitor._checks import check_choice
from jepa_monitor.functional.frequency_gaussian import FrequencyGaussian
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.jacobian.spectrum import cross_gram, from_gram, log_volume, noise_floor
from jepa_monitor.probes.images import collect_images

__all__ = ["Fibre", "InputLaw", "fibre_terms", "fit_inputs", "input_law"]

_FULL = 4096  # inputs of more numbers have no full covariance: its eigenvectors take minutes
_NUMBERS = 2**27  # of all images that a law is fitted to, at most
_ROWS = 64  # that are in float64 at a time


class InputLaw(Protocol):
    """A normal law of images, flattened to (B, D)."""

    @property
    def width(self) -> int:
        """D."""

    @property
    def log_det(self) -> float:
        """Log-determinant of Σ."""

    @property
    def mean(self) -> Tensor:
        """μ, (D,)."""

    def scale_rows(self, rows: Tensor) -> Tensor:
        """Rows of a Jacobian with respect to white coordinates, (N, D)."""

    def whiten(self, z: Tensor) -> Tensor:
        """White coordinates, (B, D)."""


class Fibre(NamedTuple):
    """What normal images add to a log-density, image by image.

    Args:
        log_volume: ½ log det JΣJᵀ, S_Σ, (B,), float64.
        log_rest: Log-density of what the rows do not see, −½ ‖u − Pu‖² − ½ (D − R) log 2π −
            ½ log det Σ, (B,), float64.
        energy: ‖u − Pu‖² / (D − R): about 1 ± √(2/(D − R)) for images of the law; less for dull and
            blurred ones, more for noise; (B,), float64, NaN where the rows see everything.
    """

    log_volume: Tensor
    log_rest: Tensor
    energy: Tensor


def fit_inputs(images: Tensor) -> InputLaw:
    """Fit a normal law to images: as rich as they determine.

    More than two images for each number of one determine a full covariance. Of fewer images
    (B, C, H, W) the law is diagonal in frequency
    (:class:`~jepa_monitor.functional.frequency_gaussian.FrequencyGaussian`); of fewer inputs without
    height and width the covariance is shrunk
    (:meth:`~jepa_monitor.functional.gaussian.Gaussian.fit`).

    Args:
        images: (N, ...), N ≥ 2, finite.

    Returns:
        The law.

    Raises:
        ValueError: If inputs that are no images have more than 4096 numbers.
    """
    count, numel = len(images), images[0].numel()
    if images.ndim == 4 and not 2 * numel < count:
        return FrequencyGaussian.fit(images)
    if numel > _FULL:
        raise ValueError(
            f"`fibre` needs images (B, C, H, W) or inputs of at most {_FULL} numbers, got "
            f"{tuple(images.shape)}."
        )
    return Gaussian.fit(images.flatten(1))


def input_law(fibre: Any, reference: Any, image: Tensor, most: int) -> tuple[Any, InputLaw]:
    """Find the law of inputs that a caller asks for.

    Args:
        fibre: ``"gaussian"``, or a law.
        reference: Images, or a fitted law of embeddings.
        image: One to be scored, (...).
        most: How many images of the reference to fit a law to; of large ones fewer.

    Returns:
        The reference, as images if it has been read, and the law, on the CPU.

    Raises:
        TypeError: If it is no law, or one is to be fitted to no images.
        ValueError: If it is another word, or a law of other images.
    """
    if isinstance(fibre, str):
        check_choice(fibre, "fibre", ("gaussian",))
        if isinstance(reference, Gaussian):
            raise TypeError(
                "`fibre='gaussian'` needs `reference` images to fit a law of images to, got a fitted "
                "law of embeddings: pass images, or a law of images as `fibre`."
            )
        count = max(2, min(most, _NUMBERS // image.numel()))
        reference = collect_images(reference, count, name="reference")
        fibre = fit_inputs(reference)
    if not isinstance(fibre, Gaussian | FrequencyGaussian):
        raise TypeError(
            "`fibre` must be 'gaussian', a Gaussian or a FrequencyGaussian, got "
            f"{type(fibre).__name__}."
        )
    if fibre.width != image.numel():
        raise ValueError(
            f"`fibre` must be a law of inputs of {image.numel()} numbers, got {fibre.width}."
        )
    return reference, fibre.to("cpu")


def fibre_terms(images: Tensor, rows: Tensor, law: InputLaw, eps: float) -> Fibre:
    r"""Say how likely the part of images is that the rows of a Jacobian do not see.

    With :math:`u = \Sigma^{-1/2}(x - \mu)` and :math:`G = J \Sigma^{1/2}`, P projects onto the rows of
    G: :math:`\|Pu\|^2 = (J(x - \mu))^\top (G G^\top)^{-1} J (x - \mu)`. Rows that are combinations of
    the others up to rounding see nothing of their own.

    Args:
        images: (B, ...).
        rows: Of the Jacobians, (B, R, D).
        law: Of images.
        eps: The clipping value.

    Returns:
        The terms, on the CPU.
    """
    terms = [_one(x, j, law, eps) for x, j in zip(images.flatten(1), rows, strict=True)]
    return Fibre(*(torch.stack(part) for part in zip(*terms, strict=True)))


def _one(image: Tensor, rows: Tensor, law: InputLaw, eps: float) -> tuple[Tensor, ...]:
    image = image.double().cpu()
    deviation, scaled, seen = image - law.mean, torch.empty_like(rows, device="cpu"), []
    for part in torch.split(torch.arange(len(rows)), _ROWS):
        some = rows[part].double().cpu()
        seen.append(some @ deviation)
        scaled[part] = law.scale_rows(some).to(rows.dtype)
    rank = min(rows.shape)
    spectrum = from_gram(cross_gram(scaled[None], scaled[None]), rank)
    values, vectors = spectrum.values, spectrum.vectors
    assert vectors is not None
    apart = (values >= noise_floor(values, rows.dtype, squared=True)[:, None])[0]
    along = (torch.cat(seen) @ vectors[0])[apart] / values[0, apart]
    energy = law.whiten(image[None]).square().sum() - along.square().sum()
    energy = energy.clamp_min(0.0)  # rounding, where the rows see everything
    free = law.width - rank
    rest = -0.5 * (energy + free * math.log(2 * math.pi) + law.log_det)
    unseen = law.width - int(apart.sum())
    share = energy / unseen if unseen else energy.new_tensor(torch.nan)
    return log_volume(values, eps)[0], rest, share
