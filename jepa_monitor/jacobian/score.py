"""The score of images: in go an encoder and images, out comes one number an image."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from jepa_monitor._checks import check_images
from jepa_monitor._settings import takes
from jepa_monitor.encoders import Pool
from jepa_monitor.encoders.texts import is_texts
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.jacobian.differentiable import differentiable_score
from jepa_monitor.jacobian.engine import spectra
from jepa_monitor.jacobian.estimate import spectra_within
from jepa_monitor.jacobian.fibre import Fibre, InputLaw, fibre_terms, input_law
from jepa_monitor.jacobian.options import ScoreArguments, ScoreOptions
from jepa_monitor.jacobian.prepared import REFERENCE_IMAGES, prepared, scoring
from jepa_monitor.jacobian.sketch import check_fixed_rows
from jepa_monitor.jacobian.spectra import Spectra

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "LogDensity",
    "density_terms",
    "jacobian_spectrum",
    "jepa_score",
    "log_density",
]


class LogDensity(NamedTuple):
    """The change of variables, term by term, in nats.

    Args:
        log_density: Sum of the others, (B,), float64.
        jepa_score: Log-volume of the Jacobian, (B,), float64.
        log_prior: Log-density of the embedding under the reference's Gaussian, (B,), float64.
        log_fibre: Log-density of what the encoder does not see, along the fibre, (B,), float64; with
            ``fibre``.
        fibre_energy: White energy of that per dimension, about 1 for images of the law, (B,),
            float64; with ``fibre``.
    """

    log_density: Tensor
    jepa_score: Tensor
    log_prior: Tensor
    log_fibre: Tensor | None = None
    fibre_energy: Tensor | None = None


def density_terms(found: Spectra, law: Gaussian, eps: float) -> LogDensity:
    r"""Join the log-volume of the Jacobian and the law of the embeddings.

    With all rows, :math:`\log p(x) = \sum_k \log \sigma_k(J) + \log N(z; \mu, \Sigma)`; with rows
    :math:`W J` of a sketch, :math:`\sum_k \log \sigma_k(W J) + \log N(W (z - \mu); 0, I)`, which is
    the same equation for the encoder :math:`W (f - \mu)`.

    Args:
        found: Embeddings and singular values.
        law: Of the embeddings.
        eps: The clipping value.

    Returns:
        The terms, on the device of ``found``.
    """
    score = found.scores(eps)
    embeddings = found.embeddings.double().cpu()
    finite = torch.isfinite(embeddings).all(1)
    filled = torch.where(finite[:, None], embeddings, 0.0)
    if found.basis is None:
        prior = law.log_prob(filled)
    else:
        sketched = (filled - law.mean.cpu()) @ found.basis.cpu().T
        prior = -0.5 * (sketched.square().sum(1) + sketched.shape[1] * math.log(2 * math.pi))
    prior = torch.where(finite, prior, torch.nan).to(score.device)
    return LogDensity(score + prior, score, prior)


@takes(ScoreOptions)
def jacobian_spectrum(
    encoder: Any,
    images: Tensor,
    *,
    reference: Any = None,
    pool: Pool = "auto",
    **options: Unpack[ScoreArguments],
) -> Tensor:
    """Singular values of the encoder's Jacobian at each image.

    The encoder runs in eval mode and in full precision and is left exactly as it was, whatever mode
    (training, inference mode, autocast) it is called in.

    Args:
        encoder: A module or callable that maps (B, ...) to (B, K), tokens, maps or structures.
        images: (B, ...), floating point, as the encoder takes them; D numbers an image. For a
            :class:`~jepa_monitor.encoders.TokenEncoder` texts, as a tokenizer gives them.
        reference: Images of the training distribution (a tensor, Dataset or DataLoader) or a fitted
            :class:`~jepa_monitor.functional.gaussian.Gaussian`, which whitens the sketch.
        pool: How outputs become (B, K); see :func:`~jepa_monitor.encoders.pooling.pool_output`.
        **options: See :class:`~jepa_monitor.ScoreOptions`.

    Returns:
        (B, min(K, D)), descending, float64; NaN where the Jacobian is not finite. Of a sketch, the
        singular values of its rows, (B, min(R, D)).

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
    how = scoring(encoder, options)
    check_fixed_rows(how)
    embedder, images, law = prepared(encoder, images, how, reference, pool)
    return spectra(embedder, images, how, law).singular_values


@takes(ScoreOptions)
def jepa_score(
    encoder: Any,
    images: Tensor,
    *,
    reference: Any = None,
    pool: Pool = "auto",
    differentiable: bool = False,
    **options: Unpack[ScoreArguments],
) -> Tensor:
    r"""JEPA-SCORE: the log-density that an encoder has learned, up to a constant.

    .. math:: \text{JEPA-SCORE}(x) = \sum_k \log \max(\sigma_k(\partial f / \partial x), \epsilon)

    Higher means denser: more typical of the training data (arXiv 2510.05949). It is a density score
    only as far as the embeddings are Gaussian.

    A sketch is not checked here, as it is by :class:`~jepa_monitor.DensityMonitor` and the command
    ``jepa-monitor score``. By hand: give sketched and exact scores of some 8 images to
    :func:`~jepa_monitor.jacobian.trust.sketch_agreement`, and take more ``rows`` below a correlation
    of 0.9.

    Args:
        encoder: A module or callable that maps (B, ...) to (B, K), tokens, maps or structures.
        images: (B, ...), floating point, as the encoder takes them; for a
            :class:`~jepa_monitor.encoders.TokenEncoder` texts, as a tokenizer gives them.
        reference: Images of the training distribution (a tensor, Dataset or DataLoader) or a fitted
            :class:`~jepa_monitor.functional.gaussian.Gaussian`, which whitens the sketch.
        pool: How outputs become (B, K); see :func:`~jepa_monitor.encoders.pooling.pool_output`.
        differentiable: Have gradients flow to the images and to the parameters of the encoder that
            require them; the encoder runs in eval mode all the same. See ``docs/gradients.md``.
        **options: See :class:`~jepa_monitor.ScoreOptions`.

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
    how = scoring(encoder, options)
    if differentiable:
        check_fixed_rows(how)
    embedder, checked, law = prepared(encoder, images, how, reference, pool)
    if differentiable:
        # Images as they were given, with their graph.
        given = checked if is_texts(checked) else images
        return differentiable_score(embedder, given, how, law)
    found, how, _ = spectra_within(embedder, checked, how, law)
    return found.scores(how.eps)


@takes(ScoreOptions)
def log_density(
    encoder: Any,
    images: Tensor,
    reference: Any,
    *,
    fibre: Literal["gaussian"] | InputLaw | None = None,
    pool: Pool = "auto",
    **options: Unpack[ScoreArguments],
) -> LogDensity:
    r"""The full change of variables: JEPA-SCORE and the law of the embeddings together.

    .. math::
        \log p(x) = \text{JEPA-SCORE}(x) - \tfrac12 (z - \mu)^\top \Sigma^{-1} (z - \mu)
        - \tfrac12 \log \det (2 \pi \Sigma)

    JEPA-SCORE leaves out the last two terms, which are constant only in the limit of wide, exactly
    Gaussian embeddings (arXiv 2510.05949). For K < D, and for embeddings that are not Gaussian, the
    sum is a score of density, not a normalised one. How to check a sketch: see :func:`jepa_score`.

    For K < D there is a third term, the density of x along its fibre, all that has the same embedding.
    With ``fibre`` it is that of normal images: with :math:`u = \Sigma_x^{-1/2}(x - \mu_x)`, and
    :math:`P` the projection onto the rows of :math:`J \Sigma_x^{1/2}`,

    .. math::
        \log p(x \mid f(x)) = \tfrac12 \log \frac{\det J \Sigma_x J^\top}{\det J J^\top}
        - \tfrac12 \|u - Pu\|^2 - \tfrac12 (D - K) \log 2 \pi - \tfrac12 \log \det \Sigma_x.

    The sum is the exact density for a linear encoder of normal images, and else as good as
    that law is: in it blurred and dull images are likely, noise is not (``docs/theory.md``).

    Args:
        encoder: A module or callable that maps (B, ...) to (B, K), tokens, maps or structures.
        images: (B, ...), floating point, as the encoder takes them; for a
            :class:`~jepa_monitor.encoders.TokenEncoder` texts, as a tokenizer gives them.
        reference: Images of the training distribution (a tensor, Dataset or DataLoader), whose
            first 4096 give :math:`\mu` and :math:`\Sigma`, or a fitted
            :class:`~jepa_monitor.functional.gaussian.Gaussian`.
        fibre: ``"gaussian"`` adds the fibre's term, by a normal law fitted to the images of
            ``reference`` (the first 4096, of large images fewer): with a full covariance where they
            are more than twice as many as D, else one that is diagonal in frequency
            (:func:`~jepa_monitor.jacobian.fibre.fit_inputs`). Or such a law of flattened images.
            ``None``: no such term.
        pool: How outputs become (B, K); see :func:`~jepa_monitor.encoders.pooling.pool_output`.
        **options: See :class:`~jepa_monitor.ScoreOptions`.

    Returns:
        ``log_density``, ``jepa_score`` and ``log_prior``, each (B,), float64, in nats, and with
        ``fibre`` also ``log_fibre`` and ``fibre_energy``, else ``None``.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of range, as for :func:`jepa_score`, ``reference`` is
            missing, empty or not finite, or ``fibre`` has no images to be fitted to, or is a law of
            other images.
        MemoryError: If with ``fibre`` the rows of one image do not fit into memory twice.

    Example:
        >>> import torch
        >>> from jepa_monitor import log_density
        >>> from jepa_monitor.functional.gaussian import Gaussian
        >>> law = Gaussian(torch.zeros(2).double(), 4 * torch.eye(2).double(), 2, 0.0)
        >>> log_density(lambda x: 2 * x, torch.zeros(1, 2), law).log_density  # of N(0, I) at 0
        tensor([-1.8379], dtype=torch.float64)
    """
    if reference is None:
        raise ValueError("`reference` must be images or a fitted Gaussian, got None.")
    how = scoring(encoder, options)
    inputs = None
    if fibre is not None:
        check_fixed_rows(how)
        images = check_images(images)
        reference, inputs = input_law(fibre, reference, images[0], REFERENCE_IMAGES)
    embedder, images, law = prepared(encoder, images, how, reference, pool)
    assert law is not None
    if inputs is None:
        found, how, _ = spectra_within(embedder, images, how, law)
        return density_terms(found, law, how.eps)
    terms: list[Fibre] = []

    def add(some: Tensor, rows: Tensor) -> None:
        terms.append(fibre_terms(some, rows, inputs, how.eps))

    known = density_terms(spectra(embedder, images, how, law, on_rows=add), law, how.eps)
    volume, rest, energy = (torch.cat(part).to(images.device) for part in zip(*terms, strict=True))
    log_fibre = volume - known.jepa_score + rest
    return LogDensity(
        known.log_density + log_fibre, known.jepa_score, known.log_prior, log_fibre, energy
    )
