"""The vision towers of open_clip, built from small configurations with random weights."""

from __future__ import annotations

import pytest
import torch
from helpers import float64_score

from jepa_monitor import jepa_score

open_clip = pytest.importorskip("open_clip")


@pytest.mark.parametrize("options", [{}, {"pool_type": "avg"}, {"attentional_pool": True}])
def test_vision_tower(options: dict[str, object]) -> None:
    vision = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32}
    text = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
    if "attentional_pool" in options:
        options = options | {"attn_pooler_heads": 2}
    model = open_clip.CLIP(embed_dim=12, vision_cfg=vision | options, text_cfg=text)
    images = torch.randn(2, 3, 32, 32)
    expected = float64_score(model.visual, images)
    torch.testing.assert_close(jepa_score(model.visual, images), expected, rtol=0, atol=0.02)
    torch.testing.assert_close(jepa_score(model.encode_image, images), expected, rtol=0, atol=0.02)
