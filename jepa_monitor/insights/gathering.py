"""Gather: in go an encoder and what a monitor holds of images, out comes a look."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from jepa_monitor.detectors import Detector, Reference, ScoredSet, detect, most_scored
from jepa_monitor.encoders import Embedder, Pool
from jepa_monitor.encoders.processes import Processes
from jepa_monitor.encoders.texts import is_texts
from jepa_monitor.encoders.token_encoder import encoder_for
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.insights.look import Look, scored_sets
from jepa_monitor.insights.parts import Part
from jepa_monitor.jacobian.engine import spectra
from jepa_monitor.jacobian.leverage import leverages
from jepa_monitor.jacobian.options import ScoreOptions
from jepa_monitor.jacobian.prepared import embed
from jepa_monitor.jacobian.response import RESPONSES, Nudges, responding_law
from jepa_monitor.jacobian.score import density_terms
from jepa_monitor.jacobian.sketch import row_count
from jepa_monitor.jacobian.spectra import Spectra
from jepa_monitor.jacobian.trust import method_words, settle

__all__ = ["Gatherer", "Sources"]

_T = TypeVar("_T")
_LEAST_FITTED = 3  # of two embeddings there is no law that says anything of a third


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Sources:
    """What a monitor holds of images, the same in all processes.

    Args:
        images: Of the probe, (N, ...).
        reference: Training images, (M, ...).
        ood: Out-of-distribution images by name.
        scored: How many images of each set are scored; of the reference at most half.
        labels: Classes of the probe images, (N,), int64; below 0 where unknown.
        reference_labels: Of the training images, (M,), likewise; ``None`` also where images of the
            probe may be among them.
        groups: What the probe images have in common beside their class, (N,) by name; below 0 where
            unknown.
        reference_groups: The same of the training images, (M,), by those names that they have.
        compare_with: Another encoder.
        text_pairs: Both views of held-out pairs of texts, (P, ...) each.
        world: Held-out clips, and how the next embedding is predicted.
        online: The encoder of which the one that is looked at is a moving average.
        state: Tells the state of collapse of embeddings (N, K); 0 is healthy.
        memory: What looks remember for later ones, plain numbers and tensors by name.
    """

    images: Tensor = field(repr=False)
    reference: Tensor | None = field(default=None, repr=False)
    ood: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    scored: int = 64
    labels: Tensor | None = field(default=None, repr=False)
    reference_labels: Tensor | None = field(default=None, repr=False)
    groups: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    reference_groups: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    compare_with: Any = None
    text_pairs: tuple[Tensor, Tensor] | None = field(default=None, repr=False)
    world: Any = None
    online: Any = None
    state: Callable[[Tensor], int] | None = None
    memory: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def calibrating(self) -> int:
        """How many reference images are scored: at most half, the law is fitted to the others."""
        count = 0 if self.reference is None else len(self.reference)
        return most_scored(count, self.scored, _LEAST_FITTED)


class Gatherer:
    """Looks at one encoder. Every method is for all processes to call, in the same order.

    Args:
        encoder: A module or callable; it is left exactly as it was.
        sources: What the monitor holds.
        options: How to score.
        pool: How outputs become (B, K).
        processes: Those that share the work.

    Attributes:
        encoder: As given.
        embedder: The encoder as a function from images to (B, K).
        options: How to score; of a look with ``auto``, as it was settled.
        probe: The probe, once it is scored.
        reference_embeddings: Of the training images, (M, K), in their order, finite or not; ``None``
            where there are none.
    """

    probe: ScoredSet
    reference_embeddings: Tensor | None = None

    def __init__(
        self,
        encoder: Any,
        sources: Sources,
        options: ScoreOptions,
        pool: Pool = "auto",
        processes: Processes | None = None,
    ) -> None:
        self.encoder = encoder
        self.sources = sources
        self.options = options
        self.pool = pool
        self.processes = processes or Processes(False)
        encoder, pool = encoder_for(sources.images, encoder, pool)
        self.embedder = Embedder(encoder, pool, options.dtype, processes=self.processes)
        self.device = self.embedder.device or torch.device("cpu")
        self._law: Gaussian | None = None
        self._parts: dict[Part[Any], Any] = {}
        self._lost: dict[Part[Any], Exception] = {}

    def look(
        self,
        parts: Sequence[Part[Any]],
        detectors: Iterable[Detector],
        optional: Iterable[Part[Any]] = (),
    ) -> tuple[Look, dict[Any, Exception]]:
        """Score the sets, ask the detectors and gather parts.

        Args:
            parts: Beside the scored sets; those that have nothing to be made of are left out.
            detectors: What to fit to the reference and to score the sets with.
            optional: Parts without which a look is worth having.

        Returns:
            The look, and what went wrong: by optional part, or by the name of a detector.
        """
        rest, base = self._base()
        self._law = None if base is None else self._fit(base)
        agreement = None
        tried: dict[ScoreOptions, Spectra] = {}  # sketches of the first probe images

        def sketched(images: Tensor, options: ScoreOptions) -> Spectra:
            found = self.spectra(images, options)
            if found.basis is not None or found.samples is not None:
                tried[options] = found
            return found

        if self._sketches():
            trial = self.sources.images[: self.sources.scored]
            inputs = self.embedder.input_count(trial)
            self.options, agreement = settle(self.options, trial, sketched, inputs)
        known = tried.get(self.options)
        self.probe, method = self._score(self.sources.images, self.sources.scored, known)
        if agreement is not None:
            method += f"; {agreement}"
        for stored in sorted(self.embedder.parameter_dtypes - {self.embedder.dtype}, key=str):
            method += f", {_short(self.embedder.dtype)} copies of {_short(stored)} parameters"
        reference = None
        if rest is not None and base is not None and self._law is not None:
            assert self.sources.reference is not None
            scored = None
            self.reference_embeddings = rest
            if self.sources.calibrating:
                images = self.sources.reference[: self.sources.calibrating]
                scored, _ = self._score(images, len(images))
                # The others are embedded already.
                everything = torch.cat([scored.embeddings, rest])
                scored = replace(scored, embeddings=everything)
                self.reference_embeddings = everything
            reference = Reference(base, self._law, scored)
        ood = {
            name: self._score(data, self.sources.scored)[0]
            for name, data in self.sources.ood.items()
        }
        found: dict[Part[Any], Any] = {}
        detected, broken = detect(detectors, reference, scored_sets(self.probe, reference, ood))
        failed: dict[Any, Exception] = dict(broken)
        musts = set(parts)
        for part in dict.fromkeys((*parts, *optional)):
            try:
                found[part] = self.part(part)
            except Exception as error:  # noqa: PERF203
                if part in musts:
                    raise
                failed[part] = error
        found = {part: gathered for part, gathered in found.items() if gathered is not None}
        look = Look(self.options, method, self.probe, reference, ood, detected, found, agreement)
        return look, failed

    def part(self, part: Part[_T]) -> _T | None:
        """Gather a part, once; other parts may be made of it.

        Args:
            part: What to gather.

        Returns:
            What it holds; ``None`` if what it is made of was not given.

        Raises:
            Exception: Whatever gathering it raises, and again whenever it is asked for.
        """
        if part.of_images and is_texts(self.sources.images):
            return None
        if part in self._lost:
            raise self._lost[part]
        if part not in self._parts:
            try:
                self._parts[part] = part.gather(self)
            except Exception as error:
                self._lost[part] = error
                raise
        found: _T | None = self._parts[part]
        return found

    def map(
        self, work: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor
    ) -> tuple[Tensor, ...]:
        """Apply a function to images, each process to its share of them.

        Args:
            work: Takes (b, ...) on the encoder's device, returns tensors of b entries, one an image.
            images: (B, ...), the same in all processes.

        Returns:
            Its results for all images, on the CPU, the same in all processes.
        """
        return self.processes.map(lambda part: work(part.to(self.device)), images)

    def embeddings(self, images: Tensor) -> Tensor:
        """Embed images.

        Args:
            images: (B, ...).

        Returns:
            (B, K), on the CPU.
        """
        (found,) = self.processes.map(
            lambda part: (
                self.embedder.run(lambda: embed(self.embedder, part, self.device), self.device),
            ),
            images,
        )
        return found

    def spectra(self, images: Tensor, options: ScoreOptions | None = None) -> Spectra:
        """Take the Jacobians of images.

        Args:
            images: (B, ...).
            options: How; default: as all others.

        Returns:
            Embeddings and singular values, on the CPU.
        """
        basis: Tensor | None = None
        products = ""

        def work(part: Tensor) -> tuple[Tensor, ...]:
            nonlocal basis, products
            found = spectra(self.embedder, part, options or self.options, self._law)
            basis, products = found.basis, found.products
            return (*found[:4], *(() if found.samples is None else (found.samples,)))

        embeddings, values, floors, under, *rest = self.map(work, images)
        samples = rest[0] if rest else None
        fixed = None if basis is None else basis.cpu()
        return Spectra(embeddings, values, floors, under, fixed, samples, products)

    def scores(self, images: Tensor) -> Tensor:
        """Take the JEPA-SCORE of images.

        Args:
            images: (B, ...).

        Returns:
            (B,), float64, nats; NaN where not finite.
        """
        return self.spectra(images).scores(self.options.eps)

    def leverages(self, images: Tensor) -> Tensor:
        """Take the maps of the pixels on which the scores of images rest.

        Args:
            images: (B, C, H, W).

        Returns:
            (B, H, W), float64; NaN where not finite.
        """
        work = functools.partial(
            leverages, self.embedder, options=self.options, reference=self._law
        )
        return self.map(work, images)[0]

    def other(self, encoder: Any, options: ScoreOptions | None = None) -> Gatherer:
        """Look at another encoder in the same way.

        Args:
            encoder: A module or callable.
            options: How to score; default: as anew.

        Returns:
            A gatherer of its own.
        """
        return Gatherer(encoder, self.sources, options or ScoreOptions(), self.pool, self.processes)

    def _sketches(self) -> bool:
        if self.options.may_be_deep:
            return True
        if self._law is None:
            return self.options.method == "sketch"
        inputs = self.embedder.input_count(self.sources.images)
        return row_count(self.options, self._law.width, inputs, whitened=True) is not None

    def _fit(self, base: Tensor) -> Gaussian:
        """Fit the law of embeddings, with their response to noise where it will be wanted."""
        law = Gaussian.fit(base)
        if not self.options.may_be_deep or self.sources.reference is None:
            return law
        nudges = Nudges()
        some = self.sources.reference[self.sources.calibrating :][:RESPONSES].to(self.device)
        moved = nudges(self.embedder.run(lambda: self.embedder.inputs(some), self.device).cpu())
        return responding_law(law, nudges.response(*(self.embeddings(some) for some in moved)))

    def _base(self) -> tuple[Tensor | None, Tensor | None]:
        """Embed the reference images that are not scored: to others the law is out of sample.

        Returns:
            Their embeddings, and the finite ones in float64; ``None`` where there are too few.
        """
        if self.sources.reference is None:
            return None, None
        embeddings = self.embeddings(self.sources.reference[self.sources.calibrating :])
        base = embeddings[torch.isfinite(embeddings).all(1)].double()
        return embeddings, base if len(base) >= _LEAST_FITTED else None

    def _score(
        self, images: Tensor, count: int, known: Spectra | None = None
    ) -> tuple[ScoredSet, str]:
        """Score the first images of a set, of which the spectra of some may be known already."""
        scored = images[:count]
        found = self.spectra(scored) if known is None else known
        if len(found.embeddings) < len(scored):
            more = self.spectra(scored[len(found.embeddings) :])
            found = found.joined(more)
        rest = images[len(scored) :]
        embeddings = [found.embeddings]
        if len(rest):
            embeddings.append(self.embeddings(rest))
        scores = found.scores(self.options.eps)
        density = torch.full_like(scores, torch.nan)
        if self._law is not None:
            density = density_terms(found, self._law, self.options.eps).log_density
        method = method_words(found, self._law, self.options)
        data = ScoredSet(
            scored,
            torch.cat(embeddings),
            scores,
            density,
            found.singular_values,
            found.noise_floors,
        )
        return data, method
