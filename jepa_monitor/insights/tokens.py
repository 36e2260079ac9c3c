"""Patch tokens: what dense tasks ask for, and what pooling hides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jepa_monitor.functional._axes import principal_scores
from jepa_monitor.functional.gram_drift import gram_drift
from jepa_monitor.functional.locality import locality
from jepa_monitor.functional.patch_neighbors import crop_places, patch_neighbors
from jepa_monitor.functional.position_share import position_share
from jepa_monitor.functional.token_cosines import class_token_cosines, other_image_cosine
from jepa_monitor.functional.token_norms import token_norms
from jepa_monitor.functional.token_rank import token_rank
from jepa_monitor.insights._drawing import for_display, is_drawable
from jepa_monitor.insights.base import Insight, Panel, Row
from jepa_monitor.insights.look import Look
from jepa_monitor.insights.token_parts import CROP, Tokens, TokenSet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["TokenHealth", "plot_components"]

_FIRST = 'with `insights=["tokens"]`, of 64 probe images: '
_DOC = "[docs/tokens.md](tokens.md)"
_DRAWN = 4
# Every sound encoder of docs/tokens.md has more; eight directions of 64 images are fewer.
_FEW, _FEW_RELATIVE = 10, 0.5


class TokenHealth(Insight):
    """``tokens/*``: ranks, cosines, lengths, drift, locality, place and neighbours of patch tokens."""

    name = "tokens"
    needs = (Tokens(),)
    rows = (
        Row(
            tuple(
                f"tokens/rank_{kind}"
                for kind in ("across", "across_relative", "within", "within_relative")
            ),
            f"{_FIRST}effective rank of one token an image, of the tokens of an image, each also over what "
            "isotropic tokens have",
            "0 … n − 1; 0 … 1",
            "no sudden fall; above the pooled rank's",
            "a collapse of patches, also one that a class token hides; tokens that code their place alone",
            "2 × 64 images, forward",
            _DOC,
        ),
        Row(
            tuple(f"tokens/dse_{term}" for term in ("inter", "intra", "dimension")),
            "terms of DSE: distance to the nearest cluster of tokens that is not their own, size of clusters, "
            "effective rank across images",
            "≥ 0; ≥ 0; 0 … 1",
            "high; low; high",
            "classes of patches that fall together",
            "k-means",
            "[DSE](https://arxiv.org/abs/2510.17299)",
        ),
        Row(
            ("tokens/class_cosine", "tokens/class_cosine_std", "tokens/other_image_cosine"),
            "mean cosine of patches with the class token, its standard deviation in an image; and with the "
            "mean patch of another image",
            "−1 … 1",
            "well under 1, above the other image's",
            "patches that repeat the class token; a direction that all tokens share",
            "free",
            "[DINOv3](https://arxiv.org/abs/2508.10104)",
        ),
        Row(
            (
                "tokens/norm_outliers",
                "tokens/norm_outliers_low",
                "tokens/norm_outliers_high",
            ),
            "share of patches longer than three medians before the last norm, and the ends of its 95 % "
            "interval; absent where that norm was not found",
            "0 … 1",
            "0",
            "tokens that a large model uses as registers",
            "free",
            "[registers](https://arxiv.org/abs/2309.16588)",
        ),
        Row(
            tuple(
                f"tokens/norm_{kind}"
                for kind in ("longest", "variation", "channels", "top_channel")
            ),
            "the longest over the median, standard deviation of lengths over their mean, channels that carry "
            "the longest, and the share of its strongest",
            "≥ 1; ≥ 0; 1 … d; 0 … 1",
            "under 3; about 1/√(2d) and more; many; low",
            "the same",
            "free",
            "the same",
        ),
        Row(
            (
                "tokens/gram_drift_first",
                "tokens/gram_drift_first_clipped",
                "tokens/gram_drift_best_dse1",
                "tokens/gram_drift_best_dse1_clipped",
            ),
            "mean squared change of the cosines between patches of an image (32 images, 64 places) since the "
            "first look, and since the look of the highest DSE with weight 1; or with negative cosines set to 0",
            "0 … 4",
            "settles; stays near 0",
            "patches that come to be alike in another way",
            "free",
            "[DINOv3](https://arxiv.org/abs/2508.10104)",
        ),
        Row(
            ("tokens/near_cosine", "tokens/far_cosine", "tokens/locality", "tokens/morans_i"),
            "mean cosine of patches next to each other, of patches half the grid apart, their difference, and "
            "Moran's I",
            "−1 … 1; −2 … 2; −1 … 1",
            "near above far, far well under 1",
            "both towards 1: tokens collapse; both at 0: noise",
            "free",
            "Moran 1950",
        ),
        Row(
            ("tokens/position_share",),
            "share of the tokens' variance that their place explains, less what chance gives",
            "about 0 … 1",
            "low",
            "tokens that code where they are and not what is there",
            "free",
            "`position_share`",
        ),
        Row(
            (
                "tokens/view_neighbors",
                "tokens/view_neighbors_low",
                "tokens/view_neighbors_high",
            ),
            "share of the patches of a mirrored crop whose nearest patch in the image shows the same place, "
            "less what chance gives, and the ends of its 95 % interval",
            "about 0 … 1",
            "high",
            "patches that know what they show",
            "free",
            "[NeCo](https://arxiv.org/abs/2408.11054)",
        ),
    )
    panels = (
        Panel(
            "tokens",
            "rank relative to isotropic tokens",
            ("tokens/rank_(across|within)_relative",),
        ),
        Panel(
            "tokens",
            "cosine of patches: with the class token, near, far, of another image",
            ("tokens/(class|near|far|other_image)_cosine",),
        ),
        Panel("tokens", "Gram drift", ("tokens/gram_drift_(first|best_dse1)",)),
        Panel("tokens", "share of the variance that is place", ("tokens/position_share",)),
        Panel(
            "tokens",
            "neighbours across views",
            ("tokens/view_neighbors", "tokens/view_neighbors_low", "tokens/view_neighbors_high"),
            band=True,
        ),
    )

    def scalars(self, look: Look) -> dict[str, float]:
        """Measure the tokens.

        Args:
            look: What was gathered.

        Returns:
            ``tokens/*``; nothing for fewer than two images of finite tokens.
        """
        found: TokenSet = look[Tokens()]
        if len(found.patches) < 2:
            return {}
        ranks = token_rank(found.patches)._asdict()
        scalars = {f"rank_{kind}": value for kind, value in ranks.items()}
        if (terms := found.structure) is not None:
            scalars |= {"dse_inter": terms.inter, "dse_intra": terms.intra}
            scalars["dse_dimension"] = terms.dimension
        scalars |= _cosines(found) | _norms(found) | _drift(found) | _places(found)
        return {f"tokens/{name}": value.item() for name, value in scalars.items()}

    def says(self, scalars: Mapping[str, float]) -> str:
        """Say how many directions the tokens have, and what was not looked at.

        Args:
            scalars: Those of a look, by tag.

        Returns:
            Sentences, or nothing.
        """
        rank, relative = (scalars.get(f"tokens/rank_across{end}") for end in ("", "_relative"))
        if rank is None or relative is None:
            return ""
        few = rank < _FEW and relative < _FEW_RELATIVE
        said = (
            f"Patch tokens span {'only ' if few else ''}{rank:.1f} directions across images, "
            f"{relative:.0%} of what isotropic ones would."
        )
        if few:
            said += " Dense tasks have little to go by, whatever the pooled rank says."
        if "tokens/norm_outliers" not in scalars:
            said += " Their lengths were not looked at: the encoder's last norm was not found."
        return said

    def figures(self, look: Look) -> dict[str, Figure]:
        """Draw the tokens of four images.

        Args:
            look: What was gathered.

        Returns:
            ``tokens/components``, where the inputs are images and the tokens on a grid.
        """
        found: TokenSet = look[Tokens()]
        if found.grid is None or not is_drawable(found.images) or len(found.patches) < 2:
            return {}
        return {"tokens/components": plot_components(found)}


def _cosines(found: TokenSet) -> dict[str, Tensor]:
    scalars = {"other_image_cosine": other_image_cosine(found.patches)}
    if found.class_token is not None:
        mean, std = class_token_cosines(found.class_token, found.patches)
        scalars |= {"class_cosine": mean, "class_cosine_std": std}
    return scalars


def _norms(found: TokenSet) -> dict[str, Tensor]:
    if found.unnormalized is None:
        return {}
    outliers, *others = token_norms(found.unnormalized)
    names = ("longest", "variation", "channels", "top_channel")
    scalars = {f"norm_{name}": value for name, value in zip(names, others, strict=True)}
    return scalars | {
        f"norm_outliers{end}": value
        for end, value in zip(("", "_low", "_high"), outliers, strict=True)
    }


def _drift(found: TokenSet) -> dict[str, Tensor]:
    scalars = {}
    for name, reference in (("first", found.first), ("best_dse1", found.best)):
        if found.gram is not None and reference is not None:
            for end, clip in (("", False), ("_clipped", True)):
                scalars[f"gram_drift_{name}{end}"] = gram_drift(found.gram, reference, clip)
    return scalars


def _places(found: TokenSet) -> dict[str, Tensor]:
    scalars = {"position_share": position_share(found.patches).excess}
    if found.grid is None:
        return scalars
    near, far, difference, morans_i = locality(found.patches, found.grid)
    scalars |= {
        "near_cosine": near,
        "far_cosine": far,
        "locality": difference,
        "morans_i": morans_i,
    }
    same = crop_places(found.grid, 0.0, 0.0, CROP, mirrored=True)
    if found.view is not None and not bool(same.all()):
        shares = patch_neighbors(found.view, found.patches, same).share
        for end, value in zip(("", "_low", "_high"), shares, strict=True):
            scalars[f"view_neighbors{end}"] = value
    return scalars


def plot_components(found: TokenSet, count: int = _DRAWN) -> Figure:
    """Draw images above their tokens: the first three principal components as red, green and blue.

    The components are of the tokens of all images, so that a colour means the same in each.

    Args:
        found: Images (n, C, H, W) and their tokens on a grid, n ≥ 2.
        count: How many images.

    Returns:
        The figure.

    Raises:
        ValueError: If the tokens are on no grid.
    """
    from matplotlib.figure import Figure

    if found.grid is None:
        raise ValueError("`found` must hold tokens on a grid to be drawn, got None for `grid`.")
    images, tokens = for_display(found.images[:count]), found.patches
    flat = tokens.double().flatten(0, 1)
    axes_of_all = principal_scores(flat, torch.finfo(tokens.dtype).eps)
    scores, variances = axes_of_all.scores[:, :3], axes_of_all.variances
    scores = scores * scores.pow(3).sum(0).sign()  # one of two signs, the same at the next look
    shown = scores.view(*tokens.shape[:2], scores.shape[1])[: len(images)]
    colours = torch.full((*shown.shape[:2], 3), 0.5, dtype=shown.dtype)  # grey where there is none
    if shown.shape[2]:
        low, high = (shown.flatten(0, 1).quantile(q, dim=0) for q in (0.02, 0.98))
        colours[..., : shown.shape[2]] = ((shown - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    total = float(variances.sum())
    share = float(variances[:3].sum()) / total if total else 0.0

    figure = Figure(figsize=(0.3 + 1.4 * len(images), 3.1), layout="constrained")
    above, below = figure.subplots(2, len(images), squeeze=False)
    for axes, image in zip(above, images, strict=True):
        axes.imshow(image if image.shape[2] == 3 else image.expand(-1, -1, 3))
    for axes, colour in zip(below, colours, strict=True):
        axes.imshow(colour.view(*found.grid, 3), interpolation="nearest")
    for axes in (*above, *below):
        axes.set_axis_off()
    figure.suptitle(f"Tokens by three components ({share:.0%} of their variance)", fontsize=9)
    return figure
