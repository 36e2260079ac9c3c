"""Patch tokens of the probe, and of a view of it, with what later looks of the run compare with."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa_monitor.encoders.embedder import Embedder
from jepa_monitor.encoders.tokens import EncoderTokens, TokenError, encoder_tokens, join_tokens
from jepa_monitor.functional._tokens import chosen_places
from jepa_monitor.functional.dense_structure import DenseStructure, dense_structure
from jepa_monitor.functional.gram_drift import token_gram
from jepa_monitor.insights.gathering import Gatherer
from jepa_monitor.insights.parts import Part

__all__ = ["CROP", "TokenSet", "Tokens", "mirrored_crop"]

CROP = 0.75  # of height and width, from the upper left corner
_NUMBERS = 2**24  # of one set of tokens: 64 MiB in float32
_LARGEST_GRID = 4096  # patches; pairs of them are compared
_BATCH = 32
_GROUP, _CLUSTERS = 8, 3  # of images, and of each one's tokens, for DSE
_GRAM_IMAGES, _GRAM_PLACES = 32, 64  # of which the run remembers similarities: 0.5 MiB


@dataclass(frozen=True)
class TokenSet:
    """Tokens of n probe images of which all are finite.

    Args:
        images: (n, ...).
        patches: (n, P, d), float32 or float64.
        class_token: (n, d); ``None`` if there is none.
        unnormalized: (n, P, d), before the last norm; ``None`` if that was not found.
        grid: Rows and columns of patches; ``None`` if they are on none.
        view: Patch tokens of the mirrored crops of the images, (n, P, d); ``None`` without a grid.
        structure: Terms of DSE; ``None`` for fewer than 8 images or 3 patches.
        gram: Similarities of tokens of up to 32 images and 64 places; ``None`` if one of those images
            has a token that is not finite.
        first: The same at the first look.
        best: The same at the look of the highest DSE with weight 1 so far, this one included;
            ``None`` if no look has had DSE.
    """

    images: Tensor
    patches: Tensor
    class_token: Tensor | None = None
    unnormalized: Tensor | None = None
    grid: tuple[int, int] | None = None
    view: Tensor | None = None
    structure: DenseStructure | None = None
    gram: Tensor | None = field(default=None, repr=False)
    first: Tensor | None = field(default=None, repr=False)
    best: Tensor | None = field(default=None, repr=False)


def mirrored_crop(images: Tensor) -> Tensor:
    """Enlarge the upper left part of images to their size, and mirror it.

    A view whose patches lie elsewhere in the grid than in the image: a token that codes its place
    cannot pass for one that codes what is there.

    Args:
        images: (B, C, H, W), floating point.

    Returns:
        The same shape; its left edge shows what lies at three quarters of the width.
    """
    centre = CROP - 1  # of the crop, in [−1, 1]
    rows = [[-CROP, 0.0, centre], [0.0, CROP, centre]]
    moved = torch.tensor(rows, dtype=images.dtype, device=images.device)
    grid = F.affine_grid(moved.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


@dataclass(frozen=True)
class Tokens(Part[TokenSet]):
    """Patch tokens of the first probe images.

    Args:
        samples: How many images at most; fewer where tokens are many or wide, at least 8.
    """

    samples: int = 64

    source = "an encoder with patch tokens"
    of_images = True

    def gather(self, at: Gatherer) -> TokenSet:
        """Pass the images through the encoder, and their views.

        Args:
            at: The encoder, the probe, and what earlier looks kept.

        Returns:
            The tokens.

        Raises:
            TokenError: If the encoder gives none, or too many an image.
        """
        images = at.sources.images[: self.samples]
        one = at.map(lambda part: _passed(at.embedder, part, False), images[:1])
        patches, width = one[0].shape[1:]
        if patches > _LARGEST_GRID:
            raise TokenError(
                f"`encoder` gives {patches} patches an image, of which all pairs would be compared: pass "
                f"one that pools them to at most {_LARGEST_GRID}."
            )
        images = images[: max(_GROUP, _NUMBERS // (patches * width))]
        found = at.map(lambda part: _passed(at.embedder, part, True), images)
        finite = torch.stack([torch.isfinite(each).flatten(1).all(1) for each in found]).all(0)
        tokens, classes, before, view, kinds = (each[finite] for each in found)
        rows, columns, own = kinds[0].tolist() if len(kinds) else (0, 0, 0)
        structure = _structure(tokens)
        gram = None
        if len(tokens) and bool(finite[:_GRAM_IMAGES].all()):
            places = chosen_places(patches, _GRAM_PLACES, 0)
            gram = token_gram(tokens[:_GRAM_IMAGES, places]).float()
        first, best = _remember(at, gram, structure)
        return TokenSet(
            images[finite],
            tokens,
            classes if classes.shape[1] else None,
            tokens if own else before if before.shape[1] else None,
            (rows, columns) if rows else None,
            view if view.shape[1] else None,
            structure,
            gram,
            first,
            best,
        )


def _passed(embedder: Embedder, images: Tensor, with_view: bool) -> tuple[Tensor, ...]:
    """Pass images and their views.

    Args:
        embedder: The encoder.
        images: (b, ...), on its device.
        with_view: Whether to pass the views too.

    Returns:
        Patches, class token, tokens before the norm, tokens of the view, each of b entries, and empty ones
        for what is absent, since processes hand each other tensors; and, (b, 3), rows and columns of the
        grid, and whether the patches themselves are the tokens before the norm.
    """

    def work() -> tuple[EncoderTokens, EncoderTokens | None]:
        parts = torch.split(images.to(embedder.dtype), _BATCH)
        found = join_tokens(
            [_moved(each) for part in parts for each in embedder.inside(part, encoder_tokens)]
        )
        if not with_view or found.grid is None:
            return found, None
        views = [
            _moved(each)
            for part in parts
            for each in embedder.inside(mirrored_crop(part), encoder_tokens)
        ]
        return found, join_tokens(views)

    found, view = embedder.run(work, images.device)
    count, tokens = len(images), found.patches
    own = found.unnormalized is not None and torch.equal(found.unnormalized, tokens)
    grid = found.grid or (0, 0)
    kinds = torch.tensor([[*grid, own]]).expand(count, 3)
    before = None if own else found.unnormalized
    return (
        tokens,
        tokens.new_empty(count, 0) if found.class_token is None else found.class_token,
        tokens.new_empty(count, 0, 0) if before is None else before,
        tokens.new_empty(count, 0, 0) if view is None else view.patches,
        kinds.contiguous(),
    )


def _moved(tokens: EncoderTokens) -> EncoderTokens:
    """Take tokens off the accelerator, which has them for one batch at a time."""
    *tensors, grid = tokens
    patches, classes, before = (None if each is None else each.cpu() for each in tensors)
    assert patches is not None
    return EncoderTokens(patches, classes, before, grid)


def _structure(tokens: Tensor) -> DenseStructure | None:
    count = len(tokens) // _GROUP * _GROUP
    if not count or tokens.shape[1] < _CLUSTERS:
        return None
    return dense_structure(tokens[:count], _CLUSTERS, _GROUP)


def _remember(
    at: Gatherer, gram: Tensor | None, structure: DenseStructure | None
) -> tuple[Tensor | None, Tensor | None]:
    """Keep the similarities of the first look and of the best, and give both."""
    kept = dict(at.sources.memory.get("tokens", {}))
    if gram is not None:
        kept.setdefault("first", gram)
        if structure is not None:
            # Its terms may differ in the last digit between processes; one decides for all.
            (terms,) = at.processes.same(lambda: (torch.stack(tuple(structure)),))
            dse1 = float(terms[0] - terms[1] + terms[4])
            if dse1 > kept.get("best_dse1", -torch.inf):
                kept.update(best=gram, best_dse1=dse1)
        at.sources.memory["tokens"] = kept
    return kept.get("first"), kept.get("best")
