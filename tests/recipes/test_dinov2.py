"""DINOv2 against references written independently with NumPy, SciPy and plain loops."""

import copy
import itertools
import math

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from helpers import off_the_start
from scipy.spatial.distance import cdist
from scipy.special import log_softmax, softmax
from torch import nn

from jepa_monitor.recipes.data import ImageDataModule
from jepa_monitor.recipes.dinov2 import DinoV2
from jepa_monitor.recipes.distillation import (
    Centre,
    Head,
    dino_loss,
    ibot_loss,
    koleo,
    sinkhorn_knopp,
)
from jepa_monitor.recipes.masking import sample_patch_masks
from jepa_monitor.recipes.networks import build_vit, encode_masked
from jepa_monitor.recipes.schedules import cosine, linear, warmup_cosine
from jepa_monitor.recipes.views import Views

TINY = {
    "image_size": 16,
    "patch_size": 4,
    "width": 8,
    "depth": 2,
    "heads": 2,
    "head_hidden": 12,
    "bottleneck": 6,
    "prototypes": 10,
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


def views(batch=5, large=2, small=3):
    return Views(
        [normal(batch, 1, 16, 16, seed=i) for i in range(large)],
        [normal(batch, 1, 8, 8, seed=10 + i) for i in range(small)],
    )


# ------------------------------------------------------------------------------------- masking
@pytest.mark.parametrize("grid", [(4, 4), (16, 16), (6, 10)])
@pytest.mark.parametrize("probability", [0.5, 1.0])
def test_masked_shares_are_spread_over_their_range(grid, probability) -> None:
    masks = sample_patch_masks(40, grid, generator(), probability, (0.1, 0.5))
    shares = masks.float().mean(1)
    masked = shares[shares > 0].sort().values
    n, count = grid[0] * grid[1], round(40 * probability)
    assert len(masked) == count
    # The i-th share lies in the i-th of `count` equal parts of the range, rounded down to patches;
    # where rectangles no longer fit, fewer are hidden.
    for i, share in enumerate(masked.tolist()):
        assert max(0.1 + 0.4 * i / count - 2 / n, 1 / n) - 1e-6 <= share
        assert share <= max(0.1 + 0.4 * (i + 1) / count, 1 / n) + 1e-6


def test_masks_come_in_blocks() -> None:
    masks = sample_patch_masks(64, (16, 16), generator(), 1.0, (0.2, 0.4)).view(64, 16, 16)
    together = (masks[:, 1:] & masks[:, :-1]).float().mean() / masks.float().mean()
    scattered = masks.flatten(1)[:, torch.randperm(256, generator=generator(1))].view(64, 16, 16)
    apart = (scattered[:, 1:] & scattered[:, :-1]).float().mean() / masks.float().mean()
    assert float(together) > 0.6
    assert float(apart) < 0.5


def test_masks_follow_the_seed_and_the_masked_images_change() -> None:
    first, again, other = (sample_patch_masks(20, (8, 8), generator(s)) for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first.any(1), other.any(1))
    assert not sample_patch_masks(20, (8, 8), generator(), probability=0.0).any()


# --------------------------------------------------------------------------- the teacher's answers
def test_sinkhorn_knopp_is_the_balanced_rescaling() -> None:
    logits = normal(12, 5).double()
    found = sinkhorn_knopp(logits, 0.5, iterations=500).numpy()
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-9)
    np.testing.assert_allclose(found.sum(0), 12 / 5, rtol=1e-6)
    # The only balanced matrix of the form diag(u) exp(logits / T) diag(v): logs differ by a rank-1 sum.
    gap = np.log(found) - logits.numpy() / 0.5
    gap -= gap.mean(0) + gap.mean(1)[:, None] - gap.mean()
    np.testing.assert_allclose(gap, 0, atol=1e-9)


def test_three_rounds_of_sinkhorn_knopp_against_a_loop() -> None:
    logits = normal(7, 4)
    q = np.exp(logits.double().numpy() / 0.3)
    for _ in range(3):
        for p in range(4):
            q[:, p] /= q[:, p].sum()
        for n in range(7):
            q[n] /= q[n].sum()
    np.testing.assert_allclose(sinkhorn_knopp(logits, 0.3), q, rtol=1e-4)


def test_sinkhorn_knopp_of_nothing_is_nothing() -> None:
    assert sinkhorn_knopp(torch.zeros(0, 4), 0.1).shape == (0, 4)


def test_centre_is_a_running_mean_that_answers_before_it_learns() -> None:
    centre, mean = Centre(4, momentum=0.8), np.zeros(4)
    for seed in range(4):
        logits = normal(9, 4, seed=seed) + 2
        expected = softmax((logits.double().numpy() - mean) / 0.5, axis=1)
        np.testing.assert_allclose(centre(logits, 0.5), expected, rtol=1e-4)
        mean = 0.8 * mean + 0.2 * logits.double().numpy().mean(0)
    np.testing.assert_allclose(centre.value, mean, rtol=1e-5)
    centre(torch.zeros(0, 4), 0.5)
    np.testing.assert_allclose(centre.value, mean, rtol=1e-5)


# ------------------------------------------------------------------------------------------ losses
def test_dino_loss_is_over_all_pairs_of_different_crops() -> None:
    students = [normal(6, 4, seed=i) for i in range(5)]
    teachers = torch.stack([normal(6, 4, seed=20 + i).softmax(1) for i in range(2)])
    terms = []
    for g in range(2):
        for s in range(5):
            if s != g:
                logs = log_softmax(students[s].double().numpy() / 0.1, axis=1)
                terms += [-(teachers[g].double().numpy()[i] * logs[i]).sum() for i in range(6)]
    assert len(terms) == (2 * 1 + 2 * 3) * 6
    assert float(dino_loss(students, teachers, 0.1)) == pytest.approx(np.mean(terms), rel=1e-5)


def test_ibot_loss_gives_every_masked_image_the_same_weight() -> None:
    masks = sample_patch_masks(6, (4, 4), generator(), 0.7, (0.1, 0.6))
    count = int(masks.sum())
    student, teacher = normal(count, 4), normal(count, 4, seed=1).softmax(1)
    owners = masks.nonzero()[:, 0].numpy()
    logs = log_softmax(student.double().numpy() / 0.2, axis=1)
    entropies = -(teacher.double().numpy() * logs).sum(1)
    expected = sum(entropies[owners == i].mean() for i in np.unique(owners)) / 6
    assert float(ibot_loss(student, teacher, masks, 0.2)) == pytest.approx(expected, rel=1e-5)
    nothing = torch.zeros(6, 16, dtype=torch.bool)
    assert float(ibot_loss(student[:0], teacher[:0], nothing, 0.2)) == 0


def test_koleo_is_the_mean_log_distance_to_the_nearest() -> None:
    z = normal(20, 5)
    unit = z.double().numpy() / np.linalg.norm(z.double().numpy(), axis=1, keepdims=True)
    distances = cdist(unit, unit) + 10 * np.eye(20)
    assert float(koleo(z)) == pytest.approx(-np.log(distances.min(1)).mean(), rel=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(koleo(z), koleo(z.clone()))


# ---------------------------------------------------------------------------------------- networks
def test_a_head_gives_cosines_with_its_prototypes() -> None:
    torch.manual_seed(0)
    head, x = Head(8, 12, 6, 10), normal(5, 8)
    hidden = head.mlp(x).detach().double().numpy()
    prototypes = head.last_layer.weight.detach().double().numpy()
    expected = 1 - cdist(hidden, prototypes, "cosine")
    np.testing.assert_allclose(head(x).detach(), expected, atol=1e-6)
    with torch.no_grad():
        head.last_layer.weight.mul_(3.0)  # the length of a prototype means nothing
    np.testing.assert_allclose(head(x).detach(), expected, atol=1e-6)


def test_heads_with_batch_normalisation_see_only_how_embeddings_differ() -> None:
    torch.manual_seed(0)
    model = DinoV2(**TINY, head_batchnorm=True).double()
    width = TINY["width"]
    differ, common = normal(9, width), 100 * normal(1, width)
    for network in (model.student, model.teacher):
        for kind in ("dino_head", "ibot_head"):
            logits = network[kind](differ.double())
            shifted = network[kind](differ.double() + common.double())
            torch.testing.assert_close(logits, shifted, atol=1e-9, rtol=0)
    plain = DinoV2(**TINY).double().student["dino_head"]
    assert (plain(differ.double()) - plain(differ.double() + common.double())).abs().max() > 0.1


def test_without_masks_it_is_the_timm_model_and_hidden_patches_do_not_leak() -> None:
    torch.manual_seed(0)
    vit = build_vit(16, 4, 1, 8, 2, 2, class_token=True).eval()
    x, token = normal(3, 1, 16, 16), normal(1, 1, 8, seed=1)
    classes, patches = encode_masked(vit, x, token)
    expected = vit.forward_features(x)
    torch.testing.assert_close(torch.cat([classes[:, None], patches], 1), expected)
    masks = torch.zeros(3, 16, dtype=torch.bool)
    masks[:, 5] = True  # second row, second column
    changed = x.clone()
    changed[:, :, 4:8, 4:8] = 9.0
    for a, b in zip(
        encode_masked(vit, x, token, masks), encode_masked(vit, changed, token, masks), strict=True
    ):
        assert torch.equal(a, b)
    assert not torch.allclose(encode_masked(vit, x, token, masks)[0], classes)
    # The token stands for the embedded patch, before its position is added.
    filled = vit.patch_embed(x).flatten(1, 2)
    filled[:, 5] = token[0, 0]
    tokens = torch.cat([vit.cls_token.expand(3, -1, -1), filled], 1) + vit.pos_embed
    torch.testing.assert_close(
        encode_masked(vit, x, token, masks)[0], vit.norm(vit.blocks(tokens))[:, 0]
    )


def test_without_a_class_token_the_embedding_is_the_mean_of_the_patches() -> None:
    torch.manual_seed(0)
    model, x = DinoV2(**TINY, class_token=False, drop_path=0.0), normal(3, 1, 16, 16)
    backbone = model.teacher["backbone"]
    embeddings, patches = encode_masked(backbone, x, model.mask_token)
    tokens = backbone.forward_features(x)
    assert patches.shape == (3, 16, TINY["width"])
    torch.testing.assert_close(patches, tokens)
    torch.testing.assert_close(embeddings, tokens.mean(1))
    torch.testing.assert_close(embeddings, model(x))
    batch, masks = views(), sample_patch_masks(10, (4, 4), generator())
    answers, asked = model.targets(torch.cat(batch.global_crops), masks, 0.05)
    tokens = backbone.forward_features(torch.cat(batch.global_crops))
    heads = model.teacher
    torch.testing.assert_close(answers, sinkhorn_knopp(heads["dino_head"](tokens.mean(1)), 0.05))
    torch.testing.assert_close(asked, sinkhorn_knopp(heads["ibot_head"](tokens[masks]), 0.05))
    loss = model.loss(batch, masks, 0.05)["loss"]
    loss.backward()
    parameters = model.student.named_parameters()
    assert not [name for name, p in parameters if p.grad is None or not p.grad.abs().sum() > 0]


@pytest.mark.parametrize("stem", ["conv", "conv_batchnorm"])
def test_hidden_patches_do_not_leak_through_a_stem_that_sees_beyond_them(stem) -> None:
    vit = build_vit(16, 4, 1, 16, 2, 2, class_token=True, stem=stem).eval()
    x, token = normal(3, 1, 16, 16), normal(1, 1, 16, seed=1)
    changed = x.clone()
    changed[:, :, 4:8, 4:8] = 9.0
    masks = torch.zeros(3, 16, dtype=torch.bool)
    unmasked = [encode_masked(vit, images, token, masks)[1][:, 6] for images in (x, changed)]
    assert not torch.equal(*unmasked)  # the patch to the right sees it
    masks[:, 5] = True
    masked = [encode_masked(vit, images, token, masks) for images in (x, changed)]
    assert all(torch.equal(a, b) for a, b in zip(*masked, strict=True))


# ------------------------------------------------------------------------------------------ method
@pytest.mark.parametrize("centering", ["sinkhorn_knopp", "centering"])
def test_loss_is_the_sum_of_its_terms(centering) -> None:
    torch.manual_seed(0)
    weights = {"dino_weight": 0.7, "ibot_weight": 1.3, "koleo_weight": 0.2}
    model = DinoV2(**TINY, **weights, drop_path=0.0, centering=centering)
    off_the_start(model.student, 1)
    off_the_start(model.teacher, 2)
    centres = {kind: normal(10, seed=number) for number, kind in enumerate(("dino", "ibot"))}
    for kind in centres if centering == "centering" else ():
        model.centres[kind].value.copy_(centres[kind])
    batch, masks = views(), sample_patch_masks(10, (4, 4), generator(), 0.5, (0.2, 0.5))
    found = model.loss(batch, masks, 0.05)
    crops = torch.cat(batch.global_crops)
    student, teacher = model.student, model.teacher

    def balanced(logits, kind):
        if centering == "centering":
            return ((logits - centres[kind]) / 0.05).softmax(1)
        return sinkhorn_knopp(logits, 0.05)

    with torch.no_grad():
        seen = teacher["backbone"].forward_features(crops)
        answers = balanced(teacher["dino_head"](seen[:, 0]), "dino")
        asked = balanced(teacher["ibot_head"](seen[:, 1:][masks]), "ibot")
        classes, patches = encode_masked(student["backbone"], crops, model.mask_token, masks)
        logits = [student["dino_head"](classes[:5]), student["dino_head"](classes[5:])]
        logits += [student["dino_head"](student["backbone"](x)) for x in batch.local_crops]
        dino = dino_loss(logits, torch.stack([answers[:5], answers[5:]]), 0.1)
        ibot = ibot_loss(student["ibot_head"](patches[masks]), asked, masks, 0.1)
        spread = koleo(classes[:5]) + koleo(classes[5:])
    for name, value in (("dino", dino), ("ibot", ibot), ("koleo", spread)):
        torch.testing.assert_close(found[name].detach(), value, rtol=1e-4, atol=1e-5)
    expected = 0.7 * dino + 1.3 * ibot + 0.2 * spread
    torch.testing.assert_close(found["loss"].detach(), expected, rtol=1e-4, atol=1e-5)


def test_gradients_reach_the_student_only() -> None:
    torch.manual_seed(0)
    model = DinoV2(**TINY)
    masks = sample_patch_masks(10, (4, 4), generator())
    model.loss(views(), masks, 0.05)["loss"].backward()
    assert all(p.grad is None for p in model.teacher.parameters())
    assert all(p.grad is not None for p in [*model.student.parameters(), model.mask_token])
    with pytest.raises(ValueError, match=r"global_views of at least 2, got 1"):
        model.loss(views(large=1), masks[:5], 0.05)


def test_teacher_starts_as_a_frozen_copy_without_stochastic_depth() -> None:
    model = DinoV2(**TINY, drop_path=0.5).train()
    pairs = zip(model.student.parameters(), model.teacher.parameters(), strict=True)
    assert all(torch.equal(a, b) and not b.requires_grad for a, b in pairs)
    x = normal(3, 1, 16, 16)
    assert torch.equal(model(x), model(x))
    assert not torch.equal(model.student["backbone"](x), model.student["backbone"](x))


def test_ema_follows_the_closed_form() -> None:
    model = DinoV2(**TINY).double()
    start = copy.deepcopy(model.teacher)
    for p in model.student.parameters():
        nn.init.normal_(p)
    for _ in range(7):
        model.after_step({"momentum": 0.9})
    for name, now in model.teacher.named_parameters():
        before, online = start.get_parameter(name), model.student.get_parameter(name)
        torch.testing.assert_close(now, 0.9**7 * before + (1 - 0.9**7) * online)


def test_groups_cover_the_student_with_its_layers_decay() -> None:
    model = DinoV2(**TINY, layer_decay=0.5, patch_embed_lr=0.2)
    names = {id(p): n for n, p in model.named_parameters()}
    seen = {}
    for group in model.parameter_groups():
        for p in group["params"]:
            assert id(p) not in seen
            seen[id(p)] = group
    trained = {i for i, n in names.items() if n.startswith("student") or n == "mask_token"}
    assert set(seen) == trained
    modules = dict(model.named_modules())
    for i, group in seen.items():
        name = names[i]
        owner, _, leaf = name.rpartition(".")
        expected = 1.0
        if "blocks.0" in name:
            expected = 0.5**2
        elif "blocks.1" in name:
            expected = 0.5
        elif "patch_embed" in name:
            expected = 0.5**3 * 0.2
        elif leaf in ("cls_token", "pos_embed", "mask_token"):
            expected = 0.5**3
        assert group["lr_scale"] == pytest.approx(expected), name
        matrix = leaf == "weight" and isinstance(modules[owner], nn.Linear | nn.Conv2d)
        assert group["decays"] == matrix, name
        assert group["last_layer"] == ("last_layer" in name), name


def test_schedules_are_those_of_the_paper() -> None:
    model = DinoV2(
        **TINY,
        momentum=(0.9, 1.0),
        freeze_last_layer=0.1,
        teacher_temperature=(0.04, 0.07),
        teacher_warmup=0.3,
    )
    model.total_steps = 50
    for step in range(50):
        values = model.scheduled(step)
        lr = warmup_cosine(step, 50, 5, 2e-3, 1e-6)
        assert values["lr"] == pytest.approx(lr)
        assert values["last_layer_lr"] == pytest.approx(0 if step < 5 else lr)
        assert values["weight_decay"] == pytest.approx(cosine(step, 50, 0.04, 0.4))
        assert values["momentum"] == pytest.approx(cosine(step, 50, 0.9, 1.0))
        assert values["teacher_temperature"] == pytest.approx(linear(step, 15, 0.04, 0.07))
    assert model.scheduled(0)["momentum"] == pytest.approx(0.9)
    assert model.scheduled(49)["momentum"] == pytest.approx(1.0)


class Follow(pl.Callback):
    """Keep the last layers and the learning rates after every step."""

    def __init__(self) -> None:
        self.last, self.backbone, self.rates = [], [], []

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        self.last.append(pl_module.student["dino_head"].last_layer.weight.detach().clone())
        self.backbone.append(pl_module.student["backbone"].cls_token.detach().clone())
        self.rates.append(pl_module.teacher["backbone"].cls_token.detach().clone())


def fit(seed=0, batches=4, follow=None, model=None, **options):
    torch.manual_seed(0)
    model = DinoV2(**TINY, seed=seed, freeze_last_layer=0.5) if model is None else model
    data = ImageDataModule("digits", batch_size=50, image_size=16, global_views=2, local_views=1)
    trainer = pl.Trainer(
        max_epochs=1,
        limit_train_batches=batches,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        callbacks=[follow] if follow else [],
        **options,
    )
    trainer.fit(model, datamodule=data)
    return model, trainer


def test_prototypes_are_frozen_at_first_and_then_learn() -> None:
    follow = Follow()
    fit(follow=follow)
    assert torch.equal(follow.last[0], follow.last[1])
    assert not torch.equal(follow.last[1], follow.last[2])
    assert not torch.equal(follow.backbone[0], follow.backbone[1])
    assert not torch.equal(follow.rates[0], follow.rates[1])  # the teacher follows


def test_masks_follow_the_seed() -> None:
    drawn = [
        DinoV2(**TINY, seed=seed).masks(10, (4, 4), epoch, batch)
        for seed, epoch, batch in [(0, 1, 0), (0, 1, 0), (1, 1, 0), (0, 2, 0), (0, 1, 1)]
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not any(torch.equal(drawn[0], other) for other in drawn[2:])


def test_every_step_and_every_process_draws_masks_of_its_own(monkeypatch) -> None:
    drawn, draw = [], DinoV2.masks

    def masks(self, *counters):
        drawn.append(draw(self, *counters))
        return drawn[-1]

    monkeypatch.setattr(DinoV2, "masks", masks)
    for rank in (0, 1):
        monkeypatch.setattr(DinoV2, "global_rank", rank)
        fit(batches=3)
    assert len(drawn) == 6
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(drawn, 2))


@pytest.mark.parametrize("options", [{"precision": "bf16-mixed"}, {"gradient_clip_val": 0.1}])
def test_trainer_flags_work(options) -> None:
    model, trainer = fit(batches=2, **options)
    names = ("loss", "dino", "ibot", "koleo", "lr", "last_layer_lr", "momentum")
    assert all(torch.isfinite(trainer.callback_metrics[f"train/{name}"]) for name in names)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_answers_of_the_untrained_teacher_use_all_prototypes() -> None:
    torch.manual_seed(0)
    model = DinoV2(**TINY)
    masks = sample_patch_masks(10, (4, 4), generator())
    classes, patches = model.targets(torch.cat(views().global_crops), masks, 0.04)
    for answers in (classes, patches):
        torch.testing.assert_close(answers.sum(1), torch.ones(len(answers)))
        entropy = -(answers.mean(0) * answers.mean(0).log()).sum()
        assert float(entropy) > 0.9 * math.log(10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 3}, "patch_size=3 does not divide image_size=16"),
        ({"warmup": 1.0}, r"warmup=1\.0 must be in \[0, 1\)"),
        ({"momentum": (0.9, 1.1)}, r"momentum=\(0\.9, 1\.1\) must lie in \[0, 1\]"),
        ({"centering": "none"}, "`centering` must be one of sinkhorn_knopp, centering"),
        ({"mask_probability": 1.5}, r"mask_probability=1\.5 must be in \[0, 1\]"),
        ({"freeze_last_layer": -1}, r"freeze_last_layer=-1 must be in \[0, 1\]"),
        ({"mask_ratio": (0.5, 0.1)}, r"mask_ratio=\(0\.5, 0\.1\) must rise within \(0, 1\]"),
        ({"student_temperature": 0.0}, r"student_temperature=0\.0 and .* must be positive"),
    ],
)
def test_bad_arguments_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        DinoV2(**{**TINY, **options})
