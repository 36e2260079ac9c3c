"""Encoders as they come: attention kernels, checkpointed blocks, odd memory formats, any chunking."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import timm
import torch
from helpers import float64_score, mlp, seldom
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from jepa_monitor import DensityMonitor, ScoreOptions, jacobian_spectrum, jepa_score
from jepa_monitor.jacobian.memory import adaptive_chunks


def _vit(**kwargs: object) -> nn.Module:
    return timm.create_model("test_vit", num_classes=0, img_size=32, patch_size=8, **kwargs)


def _scaled(encoder: nn.Module) -> nn.Module:
    """LayerScale starts near 0; give it the size that it has after training."""
    for name, parameter in encoder.named_parameters():
        if name.endswith("gamma"):
            nn.init.constant_(parameter, 0.5)
    return encoder


class _Checkpointed(nn.Module):
    def __init__(self, blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, images: Tensor) -> Tensor:
        return checkpoint(self.blocks, images, use_reentrant=False)


def _checkpointing_vit() -> nn.Module:
    if not hasattr(timm.layers, "use_reentrant_ckpt"):
        pytest.skip(f"timm {timm.__version__} checkpoints re-entrantly, without input gradients")
    encoder = _vit()
    encoder.set_grad_checkpointing()
    return encoder


def _conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.GELU(), nn.Conv2d(8, 16, 3, 2, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    )  # fmt: skip


def _small(name: str, **kwargs: object) -> nn.Module:
    """A published architecture, block for block, but narrow, shallow and with random weights."""
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    return _scaled(timm.create_model(name, pretrained=False, num_classes=0, **(size | kwargs)))


def _resnet() -> nn.Module:
    torchvision = pytest.importorskip("torchvision")
    return torchvision.models.resnet18(num_classes=12)


def _smooth_resnet() -> nn.Module:
    encoder = _resnet()
    for name, module in list(encoder.named_modules()):
        if isinstance(module, nn.ReLU):
            encoder.set_submodule(name, nn.GELU())
    return encoder


ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "DINOv2": lambda: _small("vit_small_patch14_dinov2"),
    "DINOv2 with registers": lambda: _small("vit_small_patch14_reg4_dinov2"),
    "DINOv3": lambda: _small("vit_small_patch16_dinov3"),
    "EVA-02": lambda: _small("eva02_tiny_patch14_224"),
    "CLIP": lambda: _small("vit_base_patch16_clip_224"),
    "MetaCLIP": lambda: _small("vit_base_patch16_clip_quickgelu_224"),
    "ConvNeXt": lambda: timm.create_model(
        "convnext_tiny", num_classes=0, depths=(1, 1, 1, 1), dims=(8, 12, 16, 24)
    ),
    "ResNet of torchvision": _resnet,
    "ResNet of torchvision, with GELU": _smooth_resnet,
    "fused attention": _vit,
    "class token": lambda: _vit(global_pool="token"),
    "layer scale and drop path": lambda: _scaled(_vit(init_values=1e-5, drop_path_rate=0.5)),
    "dynamic size": lambda: _vit(dynamic_img_size=True),
    "registers": lambda: _vit(reg_tokens=4),
    "checkpointed timm": _checkpointing_vit,
    "checkpointed": lambda: _Checkpointed(nn.Sequential(nn.Flatten(), *mlp(3 * 32 * 32, 12)[1:])),
    "channels last": lambda: _conv().to(memory_format=torch.channels_last),
    "frozen": lambda: _conv().requires_grad_(False),
    "weight norm": lambda: nn.Sequential(
        nn.Flatten(), torch.nn.utils.parametrizations.weight_norm(nn.Linear(3072, 12))
    ),
}


@pytest.mark.parametrize("precision", ["float32", *seldom("float64")])
@pytest.mark.parametrize("name", ENCODERS)
def test_scores_without_a_warning(name: str, precision: str) -> None:
    encoder = ENCODERS[name]()
    images = torch.randn(3, 3, 32, 32)
    if name == "channels last":
        images = images.to(memory_format=torch.channels_last)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = jepa_score(encoder, images, precision=precision)
    reference = copy.deepcopy(encoder)
    if name.startswith("checkpointed"):
        reference = reference.blocks if name == "checkpointed" else reference
        if name == "checkpointed timm":
            reference.set_grad_checkpointing(False)
    tolerance = 0.02 if precision == "float32" else 1e-4
    if name == "ResNet of torchvision" and precision == "float32":
        tolerance = 0.1  # one of its 47 104 ReLUs, put on the other side of 0, makes 0.04 nats
    if name == "ResNet of torchvision, with GELU":
        tolerance = 1e-4
    torch.testing.assert_close(scores, float64_score(reference, images), rtol=0, atol=tolerance)


class _Mean(nn.Module):
    def __init__(self, encoder: nn.Module, axes: tuple[int, ...]) -> None:
        super().__init__()
        self.encoder, self.axes = encoder, axes

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.encoder(inputs)
        return outputs.mean(self.axes) if self.axes else outputs


class _Frames(nn.Sequential):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs[:, None]).mT  # (B, T, K)


@pytest.mark.parametrize("name", ["DINOv2 with registers", "DINOv3", "CLIP"])
def test_tokens_and_dictionaries_of_features(name: str) -> None:
    encoder = ENCODERS[name]()
    images = torch.randn(2, 3, 32, 32)
    # All tokens, of which the first is the class token; as tensor and as official DINOv2 gives it.
    tokens = jepa_score(encoder.forward_features, images, pool="cls")

    def official(batch: Tensor) -> dict[str, Tensor | None]:
        found = encoder.forward_features(batch)
        first = encoder.num_prefix_tokens
        return {
            "x_norm_clstoken": found[:, 0], "x_norm_regtokens": found[:, 1:first],
            "x_norm_patchtokens": found[:, first:], "x_prenorm": found / 2, "masks": None,
        }  # fmt: skip

    named = jepa_score(official, images)
    reference = copy.deepcopy(encoder).double().eval()
    reference.forward = lambda x: reference.forward_features(x)[:, 0]
    expected = float64_score(reference, images)
    torch.testing.assert_close(tokens, expected, rtol=0, atol=0.02)
    torch.testing.assert_close(named, expected, rtol=0, atol=0.02)


def test_tokens_without_a_class_token_are_averaged() -> None:
    """As the official I-JEPA gives them: (B, N, K), after a last LayerNorm."""
    encoder = _small("vit_small_patch14_dinov2", class_token=False, global_pool="")
    images = torch.randn(2, 3, 32, 32)
    assert encoder(images).shape == (2, 16, 24)
    expected = float64_score(_Mean(encoder, (1,)), images)
    torch.testing.assert_close(jepa_score(encoder, images), expected, rtol=0, atol=0.02)


def test_token_ids_are_scored_through_their_embeddings() -> None:
    table = nn.Embedding(50, 12)
    blocks = nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 2, 24, batch_first=True), 2)
    ids = torch.randint(50, (3, 7))
    embedded = table(ids).detach()
    scores = jepa_score(blocks, embedded)
    expected = float64_score(_Mean(blocks, (1,)), embedded)
    torch.testing.assert_close(scores, expected, rtol=0, atol=0.02)


def test_inputs_other_than_images() -> None:
    video = nn.Sequential(nn.Conv3d(3, 6, 3, 2, 1), nn.GELU())
    audio = _Frames(nn.Conv1d(1, 6, 9, 4), nn.GELU())
    for encoder, inputs, axes in (
        (video, torch.randn(2, 3, 4, 8, 8), (2, 3, 4)),
        (audio, torch.randn(2, 200), (1,)),
        (nn.Sequential(nn.Linear(20, 6), nn.Tanh()), torch.randn(2, 20), ()),
    ):
        expected = float64_score(_Mean(encoder, axes), inputs)
        torch.testing.assert_close(jepa_score(encoder, inputs), expected, rtol=0, atol=0.02)
        report = DensityMonitor(inputs).evaluate(encoder)
        assert report.figures() == {}  # no pictures of what are no images


@pytest.mark.parametrize("seed", range(25))
def test_random_shapes_ranks_chunks_and_types(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    batch, inputs, outputs, rank = draw(1, 7), draw(1, 40), draw(1, 40), draw(1, 40)
    dtype = [torch.float32, torch.float64, torch.bfloat16][draw(0, 2)]
    encoder = nn.Sequential(nn.Linear(inputs, rank), nn.Tanh(), nn.Linear(rank, outputs)).to(dtype)
    images = torch.randn(batch, inputs, generator=generator)
    tolerance = 0.02 if dtype != torch.float64 else 1e-6
    options = {"max_memory": 10 ** draw(0, 7)}
    spectrum = jacobian_spectrum(encoder, images, **options)
    assert spectrum.shape == (batch, min(inputs, outputs))
    assert spectrum.dtype == torch.float64
    assert bool((spectrum[:, :-1] >= spectrum[:, 1:]).all())
    torch.testing.assert_close(
        jepa_score(encoder, images, **options),
        float64_score(encoder, images),
        rtol=0,
        atol=tolerance,
    )


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_chunks_halve_until_they_fit_and_lose_nothing(limit: int) -> None:
    done: list[int] = []

    def work(part: slice) -> None:
        if part.stop - part.start > limit:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to")
        done.extend(range(part.start, part.stop))

    sizes = [size for _, size in adaptive_chunks(11, 8, work)]
    assert done == list(range(11))
    assert sizes[-1] <= max(limit, 1)


def test_an_image_that_does_not_fit_is_an_error() -> None:
    def work(part: slice) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(MemoryError, match="one image does not fit into memory: CUDA out of memory"):
        list(adaptive_chunks(4, 4, work))


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    def work(part: slice) -> None:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        list(adaptive_chunks(4, 4, work))


def test_an_encoder_that_runs_out_of_memory_is_scored_in_smaller_chunks() -> None:
    class Hungry(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(48, 6)

        def forward(self, images: Tensor) -> Tensor:
            if len(images) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return self.net(images)

    encoder = Hungry()
    images = torch.randn(10, 48)
    scores = jepa_score(encoder, images)
    torch.testing.assert_close(scores, float64_score(encoder.net, images), rtol=0, atol=0.02)


def test_the_report_names_copies_of_half_precision_parameters() -> None:
    monitor = DensityMonitor(torch.rand(6, 48))
    assert monitor.evaluate(mlp(48, 8)).method == "exact, 8 rows"
    half = monitor.evaluate(mlp(48, 8).bfloat16())
    assert half.method == "exact, 8 rows, float32 copies of bfloat16 parameters"


def test_float64_needs_no_float64_module() -> None:
    encoder = mlp(48, 8)
    options = ScoreOptions(precision="float64")
    monitor = DensityMonitor(torch.rand(6, 48), options=options)
    report = monitor.evaluate(encoder)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    expected = float64_score(encoder, monitor.images)
    torch.testing.assert_close(report.probe.scores, expected, rtol=0, atol=1e-9)
