"""Patch tokens of encoders as they come: stripped, on their grid, before the last norm, without a trace."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from helpers import images, interpreter_settings, mlp, off_the_start
from torch import Tensor, nn

from jepa_monitor.encoders import Embedder
from jepa_monitor.encoders.tokens import (
    EncoderTokens,
    TokenError,
    encoder_tokens,
    join_tokens,
)

SIDE, WIDTH = 24, 12
DATA = torch.randn(5, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def tokens_of(encoder: Any, data: Tensor = DATA) -> EncoderTokens:
    embedder = Embedder(encoder)
    return embedder.run(lambda: join_tokens(embedder.inside(data, encoder_tokens)), data.device)


class Blocks(nn.Module):
    """Two pre-norm blocks, with a norm in each that is not the last one."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            width, 2, 2 * width, 0.0, batch_first=True, norm_first=True
        )
        self.layer = nn.ModuleList(copy.deepcopy(layer) for _ in range(2))
        for block in self.layer:
            block.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.layer:
            x = block.norm(block(x))
        return x


class Patches(nn.Module):
    def __init__(self, size: int = 8) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, WIDTH, size, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(x).flatten(2).transpose(1, 2)


class HuggingFace(nn.Module):
    """The layout of transformers' ViT and DINOv2: class and register tokens in `embeddings`."""

    def __init__(self, registers: int) -> None:
        super().__init__()
        self.embeddings = nn.Module()
        self.embeddings.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.embeddings.mask_token = nn.Parameter(torch.randn(1, WIDTH))
        self.embeddings.position_embeddings = nn.Parameter(torch.randn(1, 10, WIDTH))
        if registers:
            self.embeddings.register_tokens = nn.Parameter(torch.randn(1, registers, WIDTH))
        self.embeddings.patch_embeddings = Patches()
        self.encoder = Blocks()
        self.layernorm = nn.LayerNorm(WIDTH)

    def before_the_norm(self, x: Tensor) -> Tensor:
        e, count = self.embeddings, len(x)
        z = torch.cat([e.cls_token.expand(count, -1, -1), e.patch_embeddings(x)], 1)
        z = z + e.position_embeddings
        if hasattr(e, "register_tokens"):
            registers = e.register_tokens.expand(count, -1, -1)
            z = torch.cat([z[:, :1], registers, z[:, 1:]], 1)
        return self.encoder(z)

    def forward(self, x: Tensor) -> SimpleNamespace:
        z = self.layernorm(self.before_the_norm(x))
        return SimpleNamespace(last_hidden_state=z, pooler_output=z[:, 0])


class DINOv2(nn.Module):
    """The layout of the official DINOv2: a dict of normalised tokens, or the class token alone."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.register_tokens = nn.Parameter(torch.randn(1, 4, WIDTH))
        self.mask_token = nn.Parameter(torch.randn(1, WIDTH))
        self.patch_embed, self.blocks = Patches(), Blocks()
        self.norm, self.head, self.whole = nn.LayerNorm(WIDTH), nn.Identity(), whole

    def before_the_norm(self, x: Tensor) -> Tensor:
        first = [t.expand(len(x), -1, -1) for t in (self.cls_token, self.register_tokens)]
        return self.blocks(torch.cat([*first, self.patch_embed(x)], 1))

    def forward(self, x: Tensor) -> Any:
        z = self.before_the_norm(x)
        norm = self.norm(z)
        found = {
            "x_norm_clstoken": norm[:, 0],
            "x_norm_regtokens": norm[:, 1:5],
            "x_norm_patchtokens": norm[:, 5:],
            "x_prenorm": z,
            "masks": None,
        }
        return found if self.whole else self.head(found["x_norm_clstoken"])


class IJEPA(nn.Module):
    """The layout of the official I-JEPA: no class token, normalised tokens are returned."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(1, 9, WIDTH))
        self.patch_embed, self.blocks, self.norm = Patches(), Blocks(), nn.LayerNorm(WIDTH)

    def before_the_norm(self, x: Tensor) -> Tensor:
        return self.blocks(self.patch_embed(x) + self.pos_embed)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.before_the_norm(x))


LAYOUTS = {
    "Hugging Face": (HuggingFace(0), "layernorm", 1),
    "Hugging Face with registers": (HuggingFace(4), "layernorm", 5),
    "DINOv2, all it has": (DINOv2(True), "norm", 5),
    "DINOv2, its class token": (DINOv2(False), "norm", 5),
    "I-JEPA": (IJEPA(), "norm", 0),
}


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_of_other_libraries(name: str, wrapped: bool) -> None:
    encoder, norm, prefix = LAYOUTS[name]
    off_the_start(encoder.eval())
    found = tokens_of(nn.Sequential(nn.Identity(), encoder) if wrapped else encoder)
    with torch.no_grad():
        before = encoder.before_the_norm(DATA)
        after = getattr(encoder, norm)(before)
    assert found.grid == (3, 3)
    torch.testing.assert_close(found.patches, after[:, prefix:])
    torch.testing.assert_close(found.unnormalized, before[:, prefix:])
    assert (found.class_token is None) == (prefix == 0)
    if prefix:
        torch.testing.assert_close(found.class_token, after[:, 0])
    lengths = before[:, prefix:].norm(dim=2)
    assert lengths.std() > 0.01 * lengths.mean()  # else the two could not be told apart


@pytest.mark.parametrize("pooled", ["token", "avg", ""])
@pytest.mark.parametrize("registers", [0, 4])
def test_timm(pooled: str, registers: int) -> None:
    encoder = timm.create_model(
        "test_vit", num_classes=0, img_size=(32, 48), patch_size=8, global_pool=pooled,
        reg_tokens=registers, fc_norm=False,
    ).eval()  # fmt: skip
    data = torch.randn(3, 3, 32, 48)
    before: list[Tensor] = []
    handle = encoder.norm.register_forward_pre_hook(lambda module, inputs: before.append(*inputs))
    with torch.no_grad():
        after = encoder.forward_features(data)
    handle.remove()
    found = tokens_of(encoder, data)
    assert found.grid == (4, 6)
    torch.testing.assert_close(found.patches, after[:, 1 + registers :])
    torch.testing.assert_close(found.class_token, after[:, 0])
    torch.testing.assert_close(found.unnormalized, before[0][:, 1 + registers :])


def test_a_norm_after_pooling_leaves_tokens_as_they_are() -> None:
    encoder = timm.create_model(
        "test_vit", num_classes=0, img_size=32, patch_size=8, global_pool="avg", fc_norm=True
    ).eval()
    found = tokens_of(encoder, DATA.repeat(1, 1, 2, 2)[..., :32, :32])
    assert torch.equal(found.patches, found.unnormalized)


class Gated(nn.Module):
    """Squeeze-and-excitation, a pooling that is a gate; then a pooling, or a mean without a module."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, WIDTH, 3, 2, 1)
        self.squeeze, self.excite = nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.pooled = pooled

    def map(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x * self.excite(self.squeeze(x)).sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        x = self.map(x)
        return (self.pool(x).flatten(1) if self.pooled else x.mean((2, 3))).tanh()


def test_a_convolutional_network() -> None:
    encoder = Gated(pooled=True)
    expected = encoder.map(DATA).detach()
    for given in (encoder, encoder.map):
        found = tokens_of(given)
        torch.testing.assert_close(found.patches, expected.flatten(2).transpose(1, 2))
        assert found.grid == (6, 6)
        assert found.class_token is None
        assert torch.equal(found.patches, found.unnormalized)
    with pytest.raises(TokenError, match=r"returns shape \(5, 12\).*Pass an encoder that returns"):
        tokens_of(Gated(pooled=False))  # the pooling that it has is a gate


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "convnext_atto", "resnet18"])
def test_hierarchies_of_timm(name: str) -> None:
    small = {"img_size": 64, "depths": (1, 1), "num_heads": (2, 4), "embed_dim": 16}
    settings = small if "swin" in name else {}
    encoder = timm.create_model(name, num_classes=0, **settings).eval()
    data = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        maps = encoder.forward_features(data)
    if "swin" in name:  # (B, H, W, C)
        maps = maps.permute(0, 3, 1, 2)
    found = tokens_of(encoder, data)
    assert found.grid == tuple(maps.shape[2:])
    torch.testing.assert_close(found.patches, maps.flatten(2).transpose(1, 2))
    assert torch.equal(found.unnormalized, found.patches) == ("swin" not in name)


def test_a_norm_of_channels_that_come_first_is_seen() -> None:
    norm = timm.layers.LayerNorm2d(WIDTH)
    encoder = nn.Sequential()
    encoder.add_module("stem", nn.Conv2d(3, WIDTH, 8, 8))
    encoder.add_module("norm", norm)
    encoder.add_module("pool", nn.AdaptiveAvgPool2d(1))
    encoder.add_module("flat", nn.Flatten())
    found = tokens_of(encoder)
    with torch.no_grad():
        before = encoder.stem(DATA)
        torch.testing.assert_close(found.unnormalized, before.flatten(2).transpose(1, 2))
        torch.testing.assert_close(found.patches, norm(before).flatten(2).transpose(1, 2))


def test_plain_tokens_of_a_function() -> None:
    patches = Patches()
    found = tokens_of(lambda x: patches(x).tanh())
    torch.testing.assert_close(found.patches, patches(DATA).tanh().detach())
    assert found.grid == (3, 3)
    assert found.class_token is found.unnormalized is None  # a last norm was not found
    unlaid = tokens_of(lambda x: patches(x)[:, :7])
    assert unlaid.grid is None  # seven patches are no grid of squares on a square image
    assert unlaid.patches.shape == (5, 7, WIDTH)


def test_tokens_that_were_stripped_before_are_not_stripped_again() -> None:
    vit = timm.create_model("test_vit", num_classes=0, img_size=SIDE, patch_size=8).eval()
    found = tokens_of(lambda x: vit.forward_features(x)[:, 1:])
    whole = tokens_of(vit)
    assert found.class_token is None
    assert torch.equal(found.patches, whole.patches)
    assert torch.equal(found.unnormalized, whole.unnormalized)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (mlp(3 * SIDE * SIDE, 8), r"gives no tokens: it returns shape \(5, 8\), and inside it"),
        (lambda x: {"image_embeds": x.flatten(1)}, "it returns a dict without tokens"),
    ],
)
def test_encoders_without_tokens_say_so(encoder: Any, message: str) -> None:
    with pytest.raises(TokenError, match=message):
        tokens_of(encoder)


def test_one_patch_is_no_tokens() -> None:
    vit = timm.create_model("test_vit", num_classes=0, img_size=8, patch_size=8).eval()
    with pytest.raises(TokenError, match="of 2 an image 1 are class and register tokens"):
        tokens_of(vit, DATA[..., :8, :8])


def everything(encoder: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = dict(interpreter_settings())
    for path, module in encoder.named_modules():
        found[f"{path} attributes"] = {name: id(value) for name, value in vars(module).items()}
        found[f"{path} hooks"] = (list(module._forward_hooks), list(module._forward_pre_hooks))
    for name, tensor in encoder.state_dict(keep_vars=True).items():
        found[name] = (id(tensor), tensor._version, tensor.tolist())
    return found


class Counting(HuggingFace):
    """Counts its passes, drops at random in eval mode too, and has a hook of its own."""

    def __init__(self) -> None:
        super().__init__(0)
        self.register_buffer("passes", torch.zeros(()))
        self.seen: list[int] = []
        self.layernorm.register_forward_hook(lambda module, inputs, output: self.seen.append(1))

    def forward(self, x: Tensor) -> SimpleNamespace:
        self.passes += 1
        return super().forward(nn.functional.dropout(x, 0.3, training=True))


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(fails: bool) -> None:
    encoder = Counting().train()
    encoder.encoder.eval()
    before, seen = everything(encoder), list(encoder.seen)
    data = DATA[:, :2] if fails else DATA
    if fails:
        with pytest.raises(RuntimeError, match="`encoder` was given"):
            tokens_of(encoder, data)
    else:
        with pytest.warns(UserWarning, match="gives other embeddings at every pass"):
            found = tokens_of(encoder, data)
        alone = torch.cat([tokens_of(encoder, image[None]).patches for image in data])
        assert torch.equal(found.patches, alone)  # one image has the same tokens whoever is with it
    assert encoder.seen == seen
    assert everything(encoder) == before


def test_tokens_are_those_of_the_embedding() -> None:
    encoder = timm.create_model("test_vit", num_classes=0, img_size=8, patch_size=2).half()
    data = images(6)
    embedder = Embedder(encoder)
    found, z = embedder.run(
        lambda: (join_tokens(embedder.inside(data, encoder_tokens)), embedder(data)), data.device
    )
    assert found.patches.dtype == torch.float32
    torch.testing.assert_close(found.class_token, z.detach())
    assert not found.patches.requires_grad
