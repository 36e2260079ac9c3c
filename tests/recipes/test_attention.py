"""Attention of arXiv 2507.20453 against NumPy, and what it must not change."""

import numpy as np
import pytest
import torch
from helpers import off_the_start
from scipy.special import expit, softmax
from torch.nn import functional as F

from jepa_monitor.recipes.attention import ATTENTIONS, OtherAttention, set_attention, sinkhorn
from jepa_monitor.recipes.dinov2 import DinoV2
from jepa_monitor.recipes.ijepa import IJepa
from jepa_monitor.recipes.lejepa import LeJepa
from jepa_monitor.recipes.mae import Mae
from jepa_monitor.recipes.networks import build_vit
from jepa_monitor.recipes.vicreg import VicReg

HEADS, WIDTH, COUNT = 3, 12, 7
OTHERS = [
    (kind, published)
    for kind in ATTENTIONS
    for published in (False, True)
    if (kind, published) != ("softmax", False)
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def made(kind, published=False):
    """An attention with logits large enough to matter."""
    torch.manual_seed(0)
    vit = build_vit(8, 4, 1, WIDTH, 1, HEADS)
    set_attention(vit, kind, published)
    attention = vit.blocks[0].attn.double()
    off_the_start(attention)
    with torch.no_grad():
        attention.qkv.weight.mul_(3)
    return attention


def scaled(kernel, half_steps):
    """Rows and columns by turns, as Sinkhorn wrote it."""
    for step in range(half_steps):
        kernel = kernel / kernel.sum(-2 if step % 2 else -1, keepdims=True)
    return kernel


def reference(attention, kind, published, tokens):
    weight = attention.qkv.weight.detach().numpy()
    x = tokens.numpy() @ weight.T
    if attention.qkv.bias is not None:
        x = x + attention.qkv.bias.detach().numpy()
    n, width = len(tokens), WIDTH // HEADS
    found, mixed = [], []
    for head in range(HEADS):
        q, k, v = (x[:, part * WIDTH + head * width :][:, :width] for part in range(3))
        products = q @ k.T
        logits = products / np.sqrt(width)
        cool = products / np.sqrt(WIDTH)
        if kind == "softmax":
            weights = softmax(cool, 1)
        elif kind == "sigmoid":
            weights = expit(cool) if published else expit(logits - np.log(n))
        elif kind == "linear":
            a, b = (np.where(y > 0, y + 1, np.exp(y)) for y in (q, k))
            weights = (a @ b.T) / (a @ b.T).sum(1, keepdims=True)
        elif kind == "sinkhorn":
            weights = scaled(np.exp(logits), 3) / n if published else scaled(np.exp(logits), 41)
        else:
            unit = [y / np.linalg.norm(y, axis=1, keepdims=True) for y in (q, k)]
            weights = unit[0] @ unit[1].T / n ** expit(attention.power.detach().numpy()[head])
        found.append(weights)
        mixed.append(weights @ v)
    out = np.concatenate(mixed, 1) @ attention.proj.weight.detach().numpy().T
    return np.stack(found), out + attention.proj.bias.detach().numpy()


@pytest.mark.parametrize(("kind", "published"), OTHERS)
def test_weights_and_outputs_are_those_of_the_definition(kind, published) -> None:
    attention = made(kind, published)
    tokens = torch.randn(2, COUNT, WIDTH, generator=generator(), dtype=torch.float64)
    weights, mixed = attention.attention_weights(tokens), attention(tokens)
    for image in range(2):
        expected, out = reference(attention, kind, published, tokens[image])
        np.testing.assert_allclose(weights[image].detach(), expected, atol=1e-9)
        np.testing.assert_allclose(mixed[image].detach(), out, atol=1e-9)
        assert expected.std() > 0.02


def test_published_softmax_is_that_of_pytorch_with_the_width_as_scale() -> None:
    attention = made("softmax", published=True)
    tokens = torch.randn(2, COUNT, WIDTH, generator=generator(), dtype=torch.float64)
    q, k, v = attention.parts(tokens)
    mixed = F.scaled_dot_product_attention(q, k, v, scale=WIDTH**-0.5)
    expected = attention.proj(mixed.transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(tokens), expected)


def test_softmax_is_left_as_timm_has_it() -> None:
    torch.manual_seed(0)
    vit = build_vit(8, 4, 1, WIDTH, 2, HEADS)
    before = [block.attn for block in vit.blocks]
    set_attention(vit, "softmax")
    assert [block.attn for block in vit.blocks] == before


@pytest.mark.parametrize(("spread", "tolerance"), [(1.0, 1e-6), (2.0, 2e-3), (3.0, 0.05)])
def test_sinkhorn_is_doubly_stochastic(spread, tolerance) -> None:
    logits = spread * torch.randn(50, 36, 36, generator=generator(), dtype=torch.float64)
    weights = sinkhorn(logits)
    torch.testing.assert_close(weights.sum(-1), torch.ones(50, 36, dtype=torch.float64))
    assert (weights.sum(-2) - 1).abs().max() < tolerance
    limit = torch.from_numpy(scaled(np.exp(logits.numpy()), 4001))
    assert (weights - limit).abs().max() < tolerance


def test_what_is_added_to_a_row_or_a_column_of_the_logits_changes_nothing() -> None:
    logits = torch.randn(4, 9, 9, generator=generator(), dtype=torch.float64)
    shift = torch.randn(9, generator=generator(1), dtype=torch.float64)
    for moved in (logits + shift, logits + shift[:, None]):
        torch.testing.assert_close(sinkhorn(moved), sinkhorn(logits), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(sinkhorn(torch.zeros(5, 5)), torch.full((5, 5), 0.2))


@pytest.mark.parametrize(
    ("kind", "published", "row"),
    [
        ("softmax", True, 1.0),
        ("linear", False, 1.0),
        ("sinkhorn", False, 1.0),
        ("sinkhorn", True, 1 / COUNT),
        ("sigmoid", False, COUNT / (COUNT + 1)),
        ("sigmoid", True, COUNT / 2),
    ],
)
def test_equal_tokens_are_weighed_alike(kind, published, row) -> None:
    """As published Sinkhorn's branch is N times smaller, and sigmoid's N/2 times larger."""
    attention = made(kind, published)
    with torch.no_grad():
        attention.qkv.weight.zero_()
        if attention.qkv.bias is not None:
            attention.qkv.bias.zero_()
    weights = attention.attention_weights(torch.randn(1, COUNT, WIDTH, dtype=torch.float64))
    expected = torch.full((1, HEADS, COUNT, COUNT), row / COUNT, dtype=torch.float64)
    torch.testing.assert_close(weights, expected)


def test_published_sinkhorn_has_no_biases_before_it_and_the_fair_one_has() -> None:
    assert made("sinkhorn", published=True).qkv.bias is None
    assert made("sinkhorn").qkv.bias is not None


@pytest.mark.parametrize("kind", ATTENTIONS)
@pytest.mark.parametrize("recipe", [IJepa, Mae, LeJepa, VicReg, DinoV2])
def test_recipes_have_it_and_the_names_of_parameters_stay(recipe, kind) -> None:
    options = {"image_size": 16, "width": 8, "depth": 2, "heads": 2}
    options |= {"patch_size": 2} if recipe is IJepa else {"patch_size": 4}
    usual = recipe(**options)
    model = recipe(**options, attention=kind).eval()
    images = torch.randn(3, 1, 16, 16, generator=generator())
    embeddings = model(images)
    assert torch.isfinite(embeddings).all()
    # An image's embedding does not depend on its batch.
    torch.testing.assert_close(model(images[:1]), embeddings[:1], atol=1e-5, rtol=1e-4)
    names = {name for name in model.state_dict() if not name.endswith("attn.power")}
    assert names == set(usual.state_dict())
    count = sum(isinstance(module, OtherAttention) for module in model.modules())
    assert (count > 0) == (kind != "softmax")
    if recipe is not DinoV2 and recipe is not IJepa:  # whose embedding is a teacher's
        embeddings.square().sum().backward()
        assert all(
            parameter.grad is not None and torch.isfinite(parameter.grad).all()
            for name, parameter in model.named_parameters()
            if "attn" in name and "encoder." in name
        )


def test_powers_are_not_decayed() -> None:
    mae = Mae(attention="cosine")
    (free,) = (group for group in mae.parameter_groups() if not group["decays"])
    powers = [p for name, p in mae.named_parameters() if name.endswith("power")]
    assert len(powers) == 4
    assert {id(p) for p in powers} <= {id(p) for p in free["params"]}


def test_masks_and_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="attention='linear' takes no mask"):
        made("linear")(torch.zeros(1, COUNT, WIDTH).double(), torch.zeros(COUNT, COUNT))
    with pytest.raises(ValueError, match="`attention` must be one of"):
        Mae(attention="hard")
