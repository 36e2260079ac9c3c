"""Encoders of Hugging Face transformers, built from small configurations with random weights."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from helpers import float64_score
from torch import Tensor, nn

from jepa_monitor import DensityMonitor, jepa_score

transformers = pytest.importorskip("transformers")

SMALL = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}


def _clip() -> nn.Module:
    return transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(**SMALL, projection_dim=12)
    )


def _video() -> nn.Module:
    config = transformers.VJEPA2Config(
        crop_size=16, frames_per_clip=4, patch_size=8, tubelet_size=2, hidden_size=24,
        num_hidden_layers=2, num_attention_heads=2, pred_hidden_size=24, pred_num_hidden_layers=1,
        pred_num_attention_heads=2,
    )  # fmt: skip
    return transformers.VJEPA2Model(config)


# How to build it, the shape of its inputs, and what of its output the score is of.
ENCODERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Callable[[object], Tensor]]] = {
    "Dinov2Model": (
        lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SMALL, layerscale_value=0.5)),
        (3, 32, 32),
        lambda output: output.pooler_output,
    ),
    "ViTModel": (
        lambda: transformers.ViTModel(transformers.ViTConfig(**SMALL)),
        (3, 32, 32),
        lambda output: output.pooler_output,
    ),
    "IJepaModel": (
        lambda: transformers.IJepaModel(transformers.IJepaConfig(**SMALL)),
        (3, 32, 32),
        lambda output: output.last_hidden_state.mean(1),
    ),
    "CLIPVisionModelWithProjection": (_clip, (3, 32, 32), lambda output: output.image_embeds),
    "VJEPA2Model": (_video, (4, 3, 16, 16), lambda output: output.last_hidden_state.mean(1)),
}


class Selected(nn.Module):
    """The textbook way to one embedding an image."""

    def __init__(self, encoder: nn.Module, select: Callable[[object], Tensor]) -> None:
        super().__init__()
        self.encoder, self.select = encoder, select

    def forward(self, inputs: Tensor) -> Tensor:
        return self.select(self.encoder(inputs))


@pytest.mark.parametrize("name", ENCODERS)
def test_scores_agree_with_float64(name: str) -> None:
    build, shape, select = ENCODERS[name]
    encoder = build().train()
    inputs = torch.randn(2, *shape)
    expected = float64_score(Selected(copy.deepcopy(encoder), select), inputs)
    torch.testing.assert_close(jepa_score(encoder, inputs), expected, rtol=0, atol=0.02)
    assert encoder.training


def test_half_precision() -> None:
    build, shape, select = ENCODERS["Dinov2Model"]
    encoder = build().to(torch.bfloat16)
    inputs = torch.randn(2, *shape)
    expected = float64_score(Selected(copy.deepcopy(encoder), select), inputs)
    torch.testing.assert_close(jepa_score(encoder, inputs), expected, rtol=0, atol=0.02)


def test_dictionaries_of_a_processor() -> None:
    build, shape, _ = ENCODERS["ViTModel"]
    batches = [{"pixel_values": torch.randn(3, *shape), "labels": torch.zeros(3)}]
    report = DensityMonitor(batches).evaluate(build())
    assert report.probe.scores.shape == (3,)


def test_token_ids_through_their_embeddings() -> None:
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=12, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24,
    )  # fmt: skip
    model = transformers.BertModel(config, add_pooling_layer=False)
    ids = torch.randint(50, (2, 7))
    with pytest.raises(TypeError, match="`images` must be floating point"):
        jepa_score(model, ids)

    def encoder(embeddings: Tensor) -> Tensor:
        return model(inputs_embeds=embeddings).last_hidden_state.mean(1)

    embeddings = model.get_input_embeddings()(ids).detach()
    reference = copy.deepcopy(model).double().eval()
    adapted = Selected(reference, lambda output: output.last_hidden_state.mean(1))
    adapted.forward = lambda x: reference(inputs_embeds=x).last_hidden_state.mean(1)
    expected = float64_score(adapted, embeddings)
    torch.testing.assert_close(jepa_score(encoder, embeddings), expected, rtol=0, atol=0.02)
