"""Backbones that know something already: timm's, or the encoder in a checkpoint of any recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import timm
import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models import group_parameters
from torch import Tensor, nn

# Where the methods of this package keep the encoder that they are evaluated by, EMA targets first.
ENCODERS = ("target_encoder.", "teacher.backbone.", "network.encoder.", "backbone.")
# What makes a backbone, beside the size and the channels of its images.
ARCHITECTURE = (
    "backbone",
    "patch_size",
    "stem",
    "width",
    "depth",
    "heads",
    "layer_scale",
    "class_token",
)

State: TypeAlias = "dict[str, Tensor]"


def build_backbone(name: str, pretrained: bool, image_size: int, in_channels: int) -> nn.Module:
    """Build a timm model without its classifier.

    Args:
        name: timm's name, such as ``vit_small_patch14_dinov2.lvd142m`` or ``resnet18``.
        pretrained: Whether timm shall load its weights, which it may have to download.
        image_size: Side of the image in pixels; models whose positions are bound to a size are built
            for it, and their weights interpolated.
        in_channels: Colour channels.

    Returns:
        A model that maps images (B, C, H, W) to embeddings (B, K).

    Raises:
        ValueError: If timm has no such model.
    """
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name}*")[:5]) or "none that contains it"
        raise ValueError(f"`backbone`={name!r} is no model of timm; similar names: {near}.")
    settings = timm.get_pretrained_cfg(name)
    bound = settings is not None and settings.fixed_input_size
    size: dict[str, Any] = {"img_size": image_size} if bound else {}
    model: nn.Module = timm.create_model(
        name, pretrained=pretrained, in_chans=in_channels, num_classes=0, **size
    )
    return model


def read_checkpoint(path: str, in_channels: int) -> tuple[dict[str, Any], State]:
    """Find the encoder in a checkpoint of any recipe of this package.

    Args:
        path: The checkpoint of I-JEPA, MAE, LeJEPA, VICReg, DINOv2 (their EMA target, where they
            have one) or of this recipe.
        in_channels: Colour channels that the encoder must take.

    Returns:
        What to build, by the names of ``ARCHITECTURE``, and the weights.

    Raises:
        ValueError: If there is no such file, no such encoder in it, or it takes other channels.
    """
    if not Path(path).is_file():
        raise ValueError(f"`backbone_checkpoint`={path!r}: there is no such file.")
    saved = torch.load(path, map_location="cpu", weights_only=True)
    weights, h = saved["state_dict"], saved.get("hyper_parameters", {})
    prefix = next((p for p in ENCODERS if any(name.startswith(p) for name in weights)), None)
    if prefix is None or "in_channels" not in h:
        raise ValueError(
            f"`backbone_checkpoint`={path!r} is no checkpoint of a recipe of this package: none of "
            f"{', '.join(ENCODERS)} in its weights, or no `in_channels` in its hyperparameters."
        )
    if h.get("attention", "softmax") != "softmax" or h.get("attention_published"):
        raise ValueError(
            f"`backbone_checkpoint`={path!r} has {h['attention']!r} attention other than timm's softmax."
        )
    if h["in_channels"] != in_channels:
        raise ValueError(
            f"`backbone_checkpoint`={path!r} takes images of {h['in_channels']} channels, the data "
            f"have {in_channels}. Folders can be read as grey or colour: --data.folder_mode."
        )
    state = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
    architecture = {name: h[name] for name in ARCHITECTURE if name in h}
    return {"backbone": None, **architecture, "class_token": "cls_token" in state}, state


def load_weights(backbone: nn.Module, state: State) -> None:
    """Load weights, with positions interpolated if they were learned at another image size.

    Args:
        backbone: The network.
        state: Weights by name.
    """
    if (positions := state.get("pos_embed")) is not None:
        grid: list[int] = list(backbone.patch_embed.grid_size)  # type: ignore[union-attr, arg-type]
        prefix: int = backbone.num_prefix_tokens  # type: ignore[assignment]
        resampled = resample_abs_pos_embed(positions, grid, num_prefix_tokens=prefix)
        state = {**state, "pos_embed": resampled}
    backbone.load_state_dict(state)


def freeze_all_but_last(backbone: nn.Module, layers: int) -> None:
    """Let only the last layers train, and what follows them, such as the last norm.

    What a layer is, timm says: a block of a ViT, a residual block of a ResNet; the stem is one too.

    Args:
        backbone: A timm model.
        layers: How many.

    Raises:
        ValueError: If there are not as many.
    """
    matcher = backbone.group_matcher(coarse=False)  # type: ignore[operator]
    # What timm has no layer for (a norm after pooling) belongs to the layer before it.
    matcher = {**matcher, "rest": [(".*", (99999,))]}
    layer_of = group_parameters(backbone, matcher, reverse=True)
    count = max(layer_of.values()) + 1
    if not 1 <= layers <= count:
        raise ValueError(f"`unfrozen_layers`={layers} must be from 1 to {count}, all there are.")
    for name, parameter in backbone.named_parameters():
        if layer_of[name] < count - layers:
            parameter.requires_grad_(False)
