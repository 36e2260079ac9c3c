"""I-JEPA against references written independently: masks, encoder, loss, EMA, schedules."""

import copy
import inspect
import itertools
import math
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import timm
import torch
from helpers import off_the_start
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from jepa_monitor.recipes.ijepa import IJepa
from jepa_monitor.recipes.masking import Masks, block_shapes, sample_masks
from jepa_monitor.recipes.schedules import cosine, linear, warmup_cosine
from jepa_monitor.recipes.seen_patches import build_encoder, encode_tokens, take

TINY = {
    "image_size": 16,
    "patch_size": 2,
    "width": 16,
    "depth": 2,
    "heads": 2,
    "predictor_width": 8,
    "predictor_depth": 1,
    "predictor_heads": 2,
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------------- masking
@pytest.mark.parametrize("grid", [(8, 8), (6, 6), (14, 14), (7, 14)])
@pytest.mark.parametrize("seed", range(3))
def test_masks_have_the_properties_of_the_paper(grid, seed) -> None:
    masks = sample_masks(16, grid, generator(seed), min_context=3)
    n = grid[0] * grid[1]
    assert masks.targets.shape[:2] == (16, 4)
    assert masks.context.shape[0] == 16
    sizes = set()
    for context, targets in zip(masks.context.tolist(), masks.targets.tolist(), strict=True):
        assert len(set(context)) == len(context) >= 3
        assert context == sorted(context)
        assert all(0 <= i < n for i in context)
        for target in targets:
            assert not set(context) & set(target)
            rows, columns = zip(*[divmod(i, grid[1]) for i in target], strict=True)
            height, width = max(rows) - min(rows) + 1, max(columns) - min(columns) + 1
            assert height * width == len(set(target)) == len(target)  # a full rectangle
            assert 0.15 <= height * width / n <= 0.2
            assert 0.75 <= height / width <= 1.5
            sizes.add((height, width))
    assert len(sizes) == 1  # one size for the batch


def test_context_is_a_block_of_the_right_size_without_the_targets() -> None:
    sizes = set()
    for seed in range(40):
        # One image, so nothing is left out; one tiny target, so that the block's outline is seen.
        masks = sample_masks(
            1, (14, 14), generator(seed), target_blocks=1, target_scale=(1 / 196, 1 / 196)
        )
        rows, columns = torch.stack([masks.context[0] // 14, masks.context[0] % 14])
        height = int(rows.max() - rows.min()) + 1
        width = int(columns.max() - columns.min()) + 1
        hole = masks.targets[0, 0, 0].item()
        inside = (
            rows.min() <= hole // 14 <= rows.max() and columns.min() <= hole % 14 <= columns.max()
        )
        assert height == width
        assert len(rows) == height * width - int(inside)
        sizes.add(height)
    assert sizes == {13, 14}  # 13²/14² = 0.862 and 1; 12²/14² = 0.735 is below 0.85


def test_places_are_uniform() -> None:
    masks = sample_masks(
        4000, (8, 8), generator(), target_blocks=1, target_aspect=(0.75, 0.75), min_context=1
    )
    counts = masks.targets[:, 0, 0].bincount(minlength=64)
    allowed = [8 * top + left for top in range(6) for left in range(5)]  # 3 × 4 blocks
    assert counts.sum() == counts[allowed].sum()
    chi2 = ((counts[allowed] - 4000 / 30) ** 2 / (4000 / 30)).sum()
    assert chi2 < 58.3  # 0.999 quantile of χ² with 29 degrees of freedom


def test_places_differ_between_images_and_blocks_but_not_between_equal_seeds() -> None:
    first, second = (sample_masks(8, (8, 8), generator(5)) for _ in range(2))
    assert torch.equal(first.context, second.context)
    assert torch.equal(first.targets, second.targets)
    assert len(first.targets[:, :, 0].unique()) > 5
    other = sample_masks(8, (8, 8), generator(6))
    assert not torch.equal(first.targets, other.targets)


def test_shortened_contexts_are_not_cut_at_one_end() -> None:
    masks = sample_masks(512, (8, 8), generator())
    last_row = (masks.context >= 56).float().sum() / masks.context.numel()
    first_row = (masks.context < 8).float().sum() / masks.context.numel()
    assert last_row.item() == pytest.approx(first_row.item(), abs=0.03)


def test_min_context_is_kept() -> None:
    for seed in range(10):
        assert sample_masks(64, (8, 8), generator(seed), min_context=28).context.shape[1] >= 28


def test_impossible_masks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"grid of 4x4 has scale=\(0\.15, 0\.2\) and aspect="):
        sample_masks(2, (4, 4), generator())
    with pytest.raises(ValueError, match=r"grid of 8x8 do not leave min_context=60"):
        sample_masks(2, (8, 8), generator(), min_context=60)


def test_block_shapes_are_all_that_fit() -> None:
    expected = {
        (h, w)
        for h, w in np.ndindex(15, 15)
        if h and w and 0.15 * 196 <= h * w <= 0.2 * 196 and 0.75 * w <= h <= 1.5 * w
    }
    assert set(block_shapes((14, 14), (0.15, 0.2), (0.75, 1.5))) == expected


# ------------------------------------------------------------------------------------ networks
def encoder():
    torch.manual_seed(0)
    return build_encoder(16, 4, 3, 24, 2, 3)


def test_with_all_patches_visible_it_is_the_timm_model() -> None:
    vit, x = encoder(), torch.randn(2, 3, 16, 16)
    everything = torch.arange(16).expand(2, -1)
    expected = vit.forward_features(x)
    torch.testing.assert_close(encode_tokens(vit, x), expected, rtol=0, atol=0)
    torch.testing.assert_close(encode_tokens(vit, x, everything), expected, rtol=0, atol=0)
    torch.testing.assert_close(vit(x), expected.mean(1))


def test_visible_tokens_equal_attention_masked_tokens_of_the_whole_image() -> None:
    vit, x = encoder().double(), torch.randn(3, 3, 16, 16, dtype=torch.float64)
    if "attn_mask" not in inspect.signature(vit.forward_features).parameters:
        pytest.skip(f"timm {timm.__version__} takes no attention mask")
    visible = torch.stack([torch.randperm(16)[:7].sort().values for _ in range(3)])
    mask = torch.zeros(3, 1, 16, 16, dtype=torch.bool)
    for image, indices in enumerate(visible):
        mask[image, :, :, indices] = True
    whole = vit.forward_features(x, attn_mask=mask)
    expected = torch.stack([whole[i, visible[i]] for i in range(3)])
    torch.testing.assert_close(encode_tokens(vit, x, visible), expected)


@pytest.mark.parametrize("stem", ["patch", "conv", "conv_batchnorm"])
def test_hidden_patches_do_not_leak(stem) -> None:
    vit, x = build_encoder(16, 4, 3, 16, 2, 2, stem=stem).eval(), torch.randn(1, 3, 16, 16)
    changed = x.clone()
    changed[:, :, :4, 4:8] = 100.0  # patch 1
    visible = torch.tensor([[0, 2, 9]])
    assert torch.equal(encode_tokens(vit, x, visible), encode_tokens(vit, changed, visible))


def test_positions_are_fixed_sines_and_cosines() -> None:
    vit = encoder()
    assert not vit.pos_embed.requires_grad
    table = vit.pos_embed[0].view(4, 4, 24)
    for row, column, band in [(0, 0, 0), (3, 1, 2), (2, 3, 5)]:
        frequency = 10000 ** (-band / 6)
        values = table[row, column].tolist()
        for axis in (row, column):  # in some order: sin and cos of every axis and band
            for f in (math.sin, math.cos):
                assert any(v == pytest.approx(f(axis * frequency), abs=1e-5) for v in values)
    assert len({tuple(v.tolist()) for v in table.flatten(0, 1)}) == 16


def test_blocks_are_predicted_one_by_one() -> None:
    model = IJepa(**TINY)
    masks = sample_masks(2, model.grid, generator())
    context = torch.randn(2, masks.context.shape[1], 16)
    together = model.predictor(context, masks)
    for block in range(4):
        alone = Masks(masks.context, masks.targets[:, block : block + 1])
        torch.testing.assert_close(model.predictor(context, alone)[:, 0], together[:, block])


def test_predictor_knows_only_values_and_places_of_the_context() -> None:
    model = IJepa(**TINY)
    masks = sample_masks(2, model.grid, generator())
    context = torch.randn(2, masks.context.shape[1], 16)
    order = torch.randperm(context.shape[1])
    shuffled = Masks(masks.context[:, order], masks.targets)
    torch.testing.assert_close(
        model.predictor(context[:, order], shuffled), model.predictor(context, masks)
    )
    moved = Masks((masks.context + 1) % 64, masks.targets)
    assert not torch.allclose(model.predictor(context, moved), model.predictor(context, masks))


# -------------------------------------------------------------------------------------- method
def test_target_encoder_starts_as_a_frozen_copy() -> None:
    model = IJepa(**TINY)
    for a, b in zip(model.encoder.parameters(), model.target_encoder.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a is not b
        assert not b.requires_grad
    assert model(torch.randn(3, 1, 16, 16)).shape == (3, 16)


def test_targets_are_normalised_tokens_of_the_whole_image_without_gradient() -> None:
    model, x = IJepa(**TINY), torch.randn(2, 1, 16, 16)
    off_the_start(model.target_encoder)  # a trained norm, and no copy of the encoder
    masks = sample_masks(2, model.grid, generator())
    targets = model.targets(x, masks)
    assert not targets.requires_grad
    tokens = model.target_encoder.forward_features(x)
    normal = (tokens - tokens.mean(-1, keepdim=True)) / torch.sqrt(
        tokens.var(-1, unbiased=False, keepdim=True) + 1e-5
    )
    for image in range(2):
        for block in range(4):
            expected = normal[image, masks.targets[image, block]]
            torch.testing.assert_close(targets[image, block], expected)


def test_loss_is_smooth_l1_and_reaches_encoder_and_predictor_only() -> None:
    model, x = IJepa(**TINY), torch.randn(2, 1, 16, 16)
    for seed, part in enumerate((model.encoder, model.predictor, model.target_encoder)):
        off_the_start(part, seed)
    masks = sample_masks(2, model.grid, generator())
    loss = model.loss(x, masks)
    predicted = model.predictor(encode_tokens(model.encoder, x, masks.context), masks)
    error = (predicted - model.targets(x, masks)).abs()
    expected = torch.where(error < 1, 0.5 * error**2, error - 0.5).mean()
    torch.testing.assert_close(loss, expected)
    assert 0.1 < (error < 1).double().mean() < 0.9  # both branches count
    loss.backward()
    assert all(p.grad is None for p in model.target_encoder.parameters())
    for part in (model.encoder, model.predictor):
        assert all(p.grad is not None for p in part.parameters() if p.requires_grad)


def test_ema_follows_the_closed_form() -> None:
    model = IJepa(**TINY).double()
    start = copy.deepcopy(model.target_encoder)
    nn.init.normal_(model.encoder.patch_embed.proj.weight)
    for _ in range(7):
        model.after_step({"momentum": 0.9})
    for name, now in model.target_encoder.named_parameters():
        before, online = start.get_parameter(name), model.encoder.get_parameter(name)
        torch.testing.assert_close(now, 0.9**7 * before + (1 - 0.9**7) * online)


def test_weight_decay_is_for_matrices_only() -> None:
    model = IJepa(**TINY)
    decayed, kept = model.configure_optimizers().param_groups
    names = {id(p): n for n, p in model.named_parameters()}
    with_decay = {names[id(p)] for p in decayed["params"]}
    without = {names[id(p)] for p in kept["params"]}
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert with_decay | without == trained
    assert not with_decay & without
    values = {"lr": 1e-3, "weight_decay": 0.3}
    for group in (decayed, kept):
        model.set_group(group, values)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0)
    assert not any(n.startswith("target_encoder") or "pos_embed" in n for n in trained)
    modules = dict(model.named_modules())
    for name in trained:
        owner, _, leaf = name.rpartition(".")
        matrix = leaf == "weight" and isinstance(modules[owner], nn.Linear | nn.Conv2d)
        assert (name in with_decay) == matrix, name


class Follow(pl.Callback):
    """Keep what an independent EMA needs: the encoder after every batch."""

    def __init__(self) -> None:
        self.encoders, self.groups = [], []

    def on_train_start(self, trainer, pl_module) -> None:
        self.start = copy.deepcopy(pl_module.target_encoder.state_dict())

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        self.encoders.append(copy.deepcopy(pl_module.encoder.state_dict()))
        groups = trainer.optimizers[0].param_groups
        self.groups.append([(g["lr"], g["weight_decay"]) for g in groups])


def fit(model, batches=6, **options):
    torch.manual_seed(0)
    images = torch.randn(8 * batches, 1, 16, 16)
    loader = DataLoader(TensorDataset(images, torch.zeros(8 * batches)), 8)
    follow = Follow()
    trainer = pl.Trainer(
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        callbacks=[follow],
        **options,
    )
    trainer.fit(model, loader)
    return follow, trainer


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_run_sets_the_schedules_and_moves_the_target_once_per_step(accumulate) -> None:
    torch.manual_seed(0)
    model = IJepa(**TINY, warmup=0.5, momentum=(0.5, 0.9))
    follow, trainer = fit(model, accumulate_grad_batches=accumulate)
    steps = 6 // accumulate
    assert trainer.global_step == steps
    expected = follow.start
    for step in range(steps):
        batch = (step + 1) * accumulate - 1
        m = linear(step, steps, 0.5, 0.9)
        online = follow.encoders[batch]
        expected = {n: m * expected[n] + (1 - m) * online[n] for n in expected}
        lr = warmup_cosine(step, steps, round(0.5 * steps), 1e-3, 1e-6)
        decay = cosine(step, steps, 0.04, 0.4)
        assert follow.groups[batch] == [pytest.approx((lr, decay)), pytest.approx((lr, 0.0))]
    for name, value in model.target_encoder.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert {"train/loss", "train/lr", "train/weight_decay", "train/momentum"} <= set(
        trainer.callback_metrics
    )


@pytest.mark.parametrize("options", [{"precision": "bf16-mixed"}, {"gradient_clip_val": 0.1}])
def test_trainer_flags_work(options) -> None:
    torch.manual_seed(0)
    model = IJepa(**TINY)
    _, trainer = fit(model, batches=2, **options)
    assert torch.isfinite(trainer.callback_metrics["train/loss"])
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_masks_depend_on_seed_epoch_and_batch() -> None:
    drawn = [
        IJepa(**TINY, seed=seed).masks(4, epoch, batch).targets
        for seed, epoch, batch in [(0, 1, 0), (0, 1, 0), (1, 1, 0), (0, 2, 0), (0, 1, 1)]
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not any(torch.equal(drawn[0], other) for other in drawn[2:])


def test_every_step_and_every_process_draws_masks_of_its_own(monkeypatch) -> None:
    drawn, draw = [], IJepa.masks

    def masks(self, *counters):
        drawn.append(draw(self, *counters))
        return drawn[-1]

    monkeypatch.setattr(IJepa, "masks", masks)
    for rank in (0, 1):
        monkeypatch.setattr(IJepa, "global_rank", rank)
        fit(IJepa(**TINY), batches=3)
    assert len(drawn) == 6
    pairs = itertools.combinations(drawn, 2)
    assert not any(torch.equal(a.targets, b.targets) for a, b in pairs)


def test_a_run_without_end_is_refused() -> None:
    model = IJepa(**TINY)
    model._trainer = SimpleNamespace(estimated_stepping_batches=float("inf"))
    with pytest.raises(ValueError, match=r"set trainer\.max_epochs or max_steps"):
        model.on_train_start()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 3}, "patch_size=3 does not divide image_size=16"),
        ({"warmup": 1.0}, r"warmup=1\.0 must be in \[0, 1\)"),
        ({"momentum": (0.9, 1.1)}, r"momentum=\(0\.9, 1\.1\) must lie in \[0, 1\]"),
        ({"patch_size": 4}, "grid of 4x4 has scale="),
    ],
)
def test_bad_arguments_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        IJepa(**{**TINY, **options})


def test_take_equals_indexing() -> None:
    tokens, indices = torch.randn(2, 5, 3), torch.tensor([[4, 0], [1, 1]])
    expected = torch.stack([tokens[0, [4, 0]], tokens[1, [1, 1]]])
    assert torch.equal(take(tokens, indices), expected)


def test_pairs_of_what_is_given_and_what_is_predicted_are_means_of_tokens() -> None:
    torch.manual_seed(0)
    model = off_the_start(IJepa(**TINY)).eval()
    pictures = torch.rand(3, 1, 16, 16, generator=generator())
    masks = model.draw(3, generator(1))
    inputs, targets = model.predictive_pairs(pictures, masks)
    every = model.target_encoder.norm(
        model.target_encoder.blocks(
            model.target_encoder.patch_embed(pictures) + model.target_encoder.pos_embed
        )
    )
    wanted = (every - every.mean(2, keepdim=True)) / (
        every.var(2, correction=0, keepdim=True) + 1e-5
    ).sqrt()
    count = masks.targets.shape[1]
    assert inputs.shape == targets.shape == (3 * count, 16)
    for image, blocks in enumerate(masks.targets.tolist()):
        for number, block in enumerate(blocks):
            expected = wanted[image, block].mean(0)
            torch.testing.assert_close(targets[image * count + number], expected, rtol=0, atol=1e-5)
            assert torch.equal(inputs[image * count + number], inputs[image * count])
    seen = encode_tokens(model.encoder, pictures, masks.context)
    torch.testing.assert_close(inputs[::count], seen.mean(1))
