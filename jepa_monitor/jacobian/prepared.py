"""Make ready to score: in go an encoder, images and a reference, out come a function and a law."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from jepa_monitor._checks import check_images
from jepa_monitor._warnings import warn
from jepa_monitor.encoders import Embedder, Pool, TokenEncoder
from jepa_monitor.encoders.modules import unwrap
from jepa_monitor.encoders.processes import Processes
from jepa_monitor.encoders.threads import faster_threads, using_threads
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.jacobian.options import ScoreOptions
from jepa_monitor.jacobian.response import Nudges, responding_law
from jepa_monitor.probes.images import visit_images

__all__ = [
    "REFERENCE_IMAGES",
    "check_inputs",
    "embed",
    "fit_reference",
    "fitting_threads",
    "prepared",
    "scoring",
]

REFERENCE_IMAGES = 4096  # whose embeddings determine μ and Σ; forward passes only
_EMBEDDING_BATCH = 64
_TIMED_IMAGES = 8


def embed(embedder: Embedder, images: Tensor, device: torch.device) -> Tensor:
    """Embed images a batch at a time, without gradients.

    Args:
        embedder: Ready to be called.
        images: (B, ...), anywhere.
        device: Where the encoder is.

    Returns:
        The embeddings, (B, K), on the CPU.
    """
    with torch.no_grad():
        batches = torch.split(images, _EMBEDDING_BATCH)
        return torch.cat([embedder(embedder.inputs(batch.to(device))).cpu() for batch in batches])


@contextmanager
def fitting_threads(
    embedder: Embedder, images: Tensor, device: torch.device, processes: Processes
) -> Iterator[None]:
    """Compute with all threads or with one, whichever embeds a few images sooner.

    Args:
        embedder: The encoder.
        images: (B, ...); the first 8 are embedded four times, if the encoder is on the CPU and has
            more than one thread.
        device: Where the encoder is.
        processes: Those that share the work; each chooses for itself.

    Yields:
        Nothing; on exit the number of threads is what it was.
    """
    count = torch.get_num_threads()
    if device.type == "cpu":
        few = images[:_TIMED_IMAGES]
        count = processes.agree(
            lambda: embedder.run(
                lambda: faster_threads(lambda: embed(embedder, few, device)), device
            )
        )
    with using_threads(count):
        yield


def fit_reference(
    embedder: Embedder, reference: Any, device: torch.device, responding: bool = False
) -> Gaussian:
    """Fit the law of the embeddings of a reference set.

    Args:
        embedder: The encoder.
        reference: Images (a tensor, a Dataset, a DataLoader), of which the first 4096 are read, or
            a law that is fitted already.
        device: Where the encoder is.
        responding: Find out how the embeddings of the first 1000 respond to noise, too.

    Returns:
        The law, on the CPU; see :meth:`~jepa_monitor.functional.gaussian.Gaussian.fit` for its shrinkage.

    Raises:
        ValueError: If there are fewer than two images, or an embedding is not finite.
    """
    if isinstance(reference, Gaussian):
        return reference
    parts: list[Tensor] = []
    nudges, responses = Nudges(), [torch.zeros(0, 0)]

    def take(images: Tensor) -> None:
        parts.append(embed(embedder, images, device))
        if responding:
            inputs = embedder.inputs(images.to(device))
            ahead, behind = (embed(embedder, moved, device) for moved in nudges(inputs))
            responses.append(nudges.response(ahead, behind))

    def work() -> None:
        visit_images(reference, REFERENCE_IMAGES, take, name="reference")

    embedder.run(work, device)
    embeddings = torch.cat(parts)
    if len(embeddings) < 2:
        raise ValueError("`reference` must hold at least 2 images, got 1.")
    bad = int((~torch.isfinite(embeddings)).any(1).sum())
    if bad:
        raise ValueError(
            f"`reference` must have finite embeddings, but {bad} of {len(embeddings)} are not."
        )
    law = Gaussian.fit(embeddings)
    return responding_law(law, torch.cat(responses[1:])) if responding else law


def scoring(encoder: Any, options: Mapping[str, Any]) -> ScoreOptions:
    """Make settings of keyword arguments: texts are sketched unless another method is named.

    Args:
        encoder: A module or callable.
        options: See :class:`~jepa_monitor.ScoreOptions`.

    Returns:
        How to score.
    """
    usual = {"method": "sketch"} if isinstance(unwrap(encoder), TokenEncoder) else {}
    return ScoreOptions(**{**usual, **options})


def check_inputs(encoder: Any, images: Any) -> Tensor:
    """Check what is to be scored.

    Args:
        encoder: A module or callable.
        images: (B, ...), or for a :class:`~jepa_monitor.encoders.token_encoder.TokenEncoder` texts as a
            tokenizer gives them.

    Returns:
        The images, detached, or the texts as (B, T, 2).
    """
    encoder = unwrap(encoder)
    if isinstance(encoder, TokenEncoder) and not (
        isinstance(images, Tensor) and images.is_floating_point()
    ):
        return encoder.tokens(images)
    return check_images(images)


def prepared(
    encoder: Any, images: Tensor, options: ScoreOptions, reference: Any, pool: Pool
) -> tuple[Embedder, Tensor, Gaussian | None]:
    """Check what an entry point was given, and fit the law of the reference.

    Args:
        encoder: A module or callable.
        images: (B, ...), or texts for a TokenEncoder.
        options: How to score.
        reference: See :func:`fit_reference`; ``None`` for none.
        pool: How outputs become (B, K).

    Returns:
        The encoder as a function, the images, detached, and the law.
    """
    embedder = Embedder(encoder, pool, options.dtype)
    images = check_inputs(encoder, images)
    law = None
    if reference is not None:
        law = fit_reference(embedder, reference, images.device, options.may_be_deep)
    if options.method == "sketch" and law is None:
        warn(
            "jepa_score sketches embeddings that are not whitened, for want of `reference`: the "
            "order of the scores is less faithful. Pass images of the training distribution."
        )
    return embedder, images, law
