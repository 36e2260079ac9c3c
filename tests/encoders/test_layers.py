"""Blocks of encoders are found, and what leaves them is what the blocks themselves give."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from helpers import mlp
from torch import Tensor, nn

from jepa_monitor import jepa_score
from jepa_monitor.encoders import Embedder
from jepa_monitor.encoders.layers import (
    LayerEncoder,
    LayerError,
    find_layers,
    layer_embeddings,
)

DATA = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def made(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=0, **options).double().eval()


def passed(encoder: nn.Module, data: Tensor = DATA) -> dict[str, Tensor]:
    with torch.no_grad():
        return layer_embeddings(encoder, [encoder], data.double())


@pytest.mark.parametrize(
    ("name", "options", "first", "kinds"),
    [
        ("test_vit", {"img_size": 32}, "blocks.0", {"Block"}),
        ("test_convnext", {}, "stages.0.blocks.0", {"ConvNeXtBlock"}),
        ("test_resnet", {}, "layer1.0", {"BasicBlock", "Bottleneck"}),
        (
            "test_efficientnet",
            {},
            "blocks.0.0",
            {"ConvBnAct", "DepthwiseSeparableConv", "EdgeResidual", "InvertedResidual"},
        ),
    ],
)
def test_blocks_are_found_in_stages_or_not(
    name: str, options: dict[str, Any], first: str, kinds: set[str]
) -> None:
    encoder = made(name, **options)
    found = passed(encoder)
    assert next(iter(found)) == first
    expected = [n for n, module in encoder.named_modules() if type(module).__name__ in kinds]
    assert list(found) == expected
    assert all(z.shape[0] == len(DATA) for z in found.values())
    assert not any(module._forward_hooks for module in encoder.modules())  # none is left behind


def test_tokens_are_averaged_without_the_class_token() -> None:
    encoder = made("test_vit", img_size=32)
    found = passed(encoder)
    with torch.no_grad():
        x = encoder.norm_pre(encoder._pos_embed(encoder.patch_embed(DATA.double())))
        for (name, z), block in zip(found.items(), encoder.blocks, strict=True):
            x = block(x)
            assert encoder.get_submodule(name) is block
            torch.testing.assert_close(z, x[:, 1:].mean(1))


def test_maps_are_averaged_over_places_whichever_way_they_lie() -> None:
    encoder = made("test_resnet")
    maps = []
    for layer in ("layer1.0", "layer4.0"):
        encoder.get_submodule(layer).register_forward_hook(lambda _, __, out: maps.append(out))
    found = passed(encoder)
    torch.testing.assert_close(found["layer1.0"], maps[0].mean((2, 3)))
    torch.testing.assert_close(found["layer4.0"], maps[1].mean((2, 3)))

    class Last(nn.Module):  # as in a Swin transformer
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.line = nn.LayerNorm(6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.line(self.norm(x))

    blocks = nn.Sequential(Last(), Last()).double()
    x = torch.randn(4, 3, 5, 6).double()
    found = passed(blocks, x)
    torch.testing.assert_close(found["1"], blocks(x).mean((1, 2)))


def test_a_plain_network_has_the_layers_of_its_sequence() -> None:
    encoder = mlp(3072, 8, 4).double()
    found = passed(encoder)
    x = DATA.double()
    linear = 0
    for name, layer in encoder.named_children():
        x = layer(x)
        if isinstance(layer, nn.Linear):
            torch.testing.assert_close(found[name], x)
            linear += 1
    assert linear == len(found) == 2


def test_who_is_no_chain_is_told_so() -> None:
    with pytest.raises(LayerError, match="no chain of blocks"):
        passed(nn.Flatten())
    assert find_layers([nn.Linear(3, 3)]) == {}
    with pytest.raises(LayerError, match=r"no layer 'blocks\.9'"):
        LayerEncoder(made("test_vit", img_size=32), "blocks.9")(DATA.double())


def test_the_score_of_a_layer_is_that_of_the_network_cut_there() -> None:
    encoder = mlp(3072, 8, 4).double()
    cut = nn.Sequential(*list(encoder.children())[:2])  # flatten, the first linear layer
    whole = LayerEncoder(encoder, "1")
    torch.testing.assert_close(jepa_score(whole, DATA), jepa_score(cut, DATA))
    embedder = Embedder(whole)
    z = embedder.run(lambda: embedder(DATA.double()), DATA.device)
    torch.testing.assert_close(z, cut(DATA.double()))
