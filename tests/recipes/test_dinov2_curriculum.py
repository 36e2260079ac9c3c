"""DINOv2 in two stages: against runs without stages, and the anchor against its formula."""

import copy

import lightning.pytorch as pl
import pytest
import torch
from helpers import seldom
from lightning.pytorch.callbacks import ModelCheckpoint

from jepa_monitor.callbacks import JepaScoreCallback
from jepa_monitor.recipes.cli import parse, train
from jepa_monitor.recipes.data import ImageDataModule
from jepa_monitor.recipes.dinov2 import DEFAULTS, DinoV2
from jepa_monitor.recipes.distillation import dino_loss, ibot_loss, sinkhorn_knopp
from jepa_monitor.recipes.masking import patch_grid, sample_patch_masks
from jepa_monitor.recipes.networks import encode_masked
from jepa_monitor.recipes.schedules import cosine, linear, warmup_cosine
from jepa_monitor.recipes.views import Views

TINY = {
    "image_size": 16,
    "patch_size": 4,
    "width": 8,
    "depth": 1,
    "heads": 2,
    "head_hidden": 12,
    "bottleneck": 6,
    "prototypes": 10,
}
# Small images, then large ones with noise patches; denoised images, then noisy ones with an anchor.
FAST = ({"first_scale": 0.5, "noise_patch": 0.5}, {})
ANCHORED = (
    {"noise": "gaussian:100", "denoised": "blur:0.6", "paired": True},
    {"anchor_weight": 2.0, "centering": "centering"},
)


class Record(pl.Callback):
    """Keep the weights after every step, and how many steps the optimiser remembers."""

    def __init__(self) -> None:
        self.weights, self.remembered = [], []

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        self.weights.append(copy.deepcopy(pl_module.state_dict()))
        states = trainer.optimizers[0].state.values()
        self.remembered.append({int(state["step"]) for state in states})


def fit(model, record=None, folder=None, resume=None, epoch=0, **data_options):
    """Train for three epochs of two steps, from epoch number ``epoch`` on."""
    data = ImageDataModule(
        "digits", batch_size=40, image_size=16, global_views=2, local_views=1, **data_options
    )
    every = ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
    trainer = pl.Trainer(
        max_epochs=3,
        limit_train_batches=2,
        logger=False,
        enable_checkpointing=folder is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        callbacks=[*([record] if record else []), *([every] if folder else [])],
    )
    for field in ("ready", "started", "processed", "completed"):
        setattr(trainer.fit_loop.epoch_progress.current, field, epoch)
    trainer.fit(model, datamodule=data, ckpt_path=resume)
    return model


def build(cls=DinoV2, **options):
    torch.manual_seed(0)
    return cls(**{**TINY, **options})


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


# -------------------------------------------------------------------------------------- restart
class Later(DinoV2):
    """Plain DINOv2 whose schedules are as long as the second stage."""

    def on_train_start(self) -> None:
        super().on_train_start()
        self.total_steps -= 2


def test_two_stages_are_two_runs_of_plain_dinov2_the_second_from_the_weights_of_the_first() -> None:
    plain, staged, later = Record(), Record(), Record()
    fit(build(drop_path=0.2), plain)
    fit(build(drop_path=0.2, first_epochs=1), staged)
    assert [same(a, b) for a, b in zip(plain.weights, staged.weights, strict=True)] == [
        *(True, True),  # the schedules of the whole run, broken off
        *(False, False, False, False),
    ]
    second = build(Later, drop_path=0.2)
    second.load_state_dict(plain.weights[1])
    fit(second, later, epoch=1)
    assert all(same(a, b) for a, b in zip(later.weights, staged.weights[2:], strict=True))
    assert plain.remembered == [{1}, {2}, {3}, {4}, {5}, {6}]
    assert staged.remembered == [{1}, {2}, {1}, {2}, {3}, {4}]


@pytest.mark.parametrize("options", [FAST, ANCHORED], ids=["fast", "anchored"])
def test_a_resumed_run_equals_the_uninterrupted_one_in_both_stages(tmp_path, options) -> None:
    data, method = options
    method = {**method, "drop_path": 0.2, "first_epochs": 1}
    record = Record()
    straight = fit(build(**method), record, tmp_path, first_epochs=1, **data).state_dict()
    assert same(straight, record.weights[-1])
    assert not same(straight, record.weights[-2])
    for epoch in (0, 1):
        resume = tmp_path / f"epoch={epoch}.ckpt"
        again = fit(build(**method), resume=resume, first_epochs=1, **data)
        assert same(straight, again.state_dict())


def test_schedules_of_both_stages() -> None:
    model = build(first_epochs=3, teacher_temperature=(0.04, 0.07), freeze_last_layer=0.1)
    model.total_steps, model.first_steps = 50, 30
    for step in range(50):
        at, total = (step, 50) if step < 30 else (step - 30, 20)
        values = model.scheduled(step)
        lr = warmup_cosine(at, total, total // 10, 2e-3, 1e-6)
        assert values["lr"] == pytest.approx(lr)
        assert values["last_layer_lr"] == pytest.approx(0 if at < total // 10 else lr)
        assert values["weight_decay"] == pytest.approx(cosine(at, total, 0.04, 0.4))
        assert values["momentum"] == pytest.approx(cosine(at, total, 0.95, 1.0))
        warm = round(0.3 * total)
        assert values["teacher_temperature"] == pytest.approx(linear(at, warm, 0.04, 0.07))


# --------------------------------------------------------------------------------------- anchor
def test_the_anchor_is_the_teacher_at_the_restart_and_stays_so() -> None:
    record, (data, method) = Record(), ANCHORED
    model = fit(build(first_epochs=1, **method), record, first_epochs=1, **data)

    def part(weights, prefix):
        return {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}

    teacher = part(record.weights[1], "teacher.backbone.")
    assert len(teacher) > 10
    for weights in record.weights[2:]:
        assert same(part(weights, "anchor."), teacher)
        assert not same(part(weights, "teacher.backbone."), teacher)
    assert not same(part(record.weights[1], "anchor."), teacher)
    trained = {id(p) for group in model.parameter_groups() for p in group["params"]}
    assert not trained & {id(p) for p in model.anchor.parameters()}
    # Its own running means go on from the teacher's, and then their own way.
    means = [w["centres.anchor_dino.value"] for w in record.weights]
    assert not means[1].any()
    assert all(not torch.equal(means[i], means[i + 1]) for i in range(1, 5))
    assert not torch.equal(means[-1], record.weights[-1]["centres.dino.value"])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def views(clean=True):
    crops = [[normal(5, 1, 16, 16, seed=10 * k + i) for i in range(2)] for k in range(2)]
    small = [normal(5, 1, 8, 8, seed=90 + i) for i in range(3)]
    return Views(crops[0], small, crops[1] if clean else [])


def anchored_model(**options):
    model = build(first_epochs=1, anchor_weight=1.7, **options)
    with torch.no_grad():  # otherwise all three networks are the same
        for i, p in enumerate([*model.teacher.parameters(), *model.anchor.parameters()]):
            p.add_(0.1 * normal(*p.shape, seed=i))
    return model


def test_the_anchor_asks_the_same_of_the_student_as_the_teacher_does() -> None:
    model = anchored_model(dino_weight=0.7, ibot_weight=1.3)
    batch = views()
    masks = sample_patch_masks(10, (4, 4), torch.Generator().manual_seed(0), 0.5, (0.2, 0.5))
    found = model.loss(batch, masks, 0.05)
    without = model.loss(views(clean=False), masks, 0.05)
    assert set(found) == {*without, "anchor"}
    assert all(torch.equal(found[name], without[name]) for name in ("dino", "ibot", "koleo"))
    student, teacher = model.student, model.teacher
    with torch.no_grad():
        seen = model.anchor.forward_features(torch.cat(batch.clean_crops))
        answers = sinkhorn_knopp(teacher["dino_head"](seen[:, 0]), 0.05)
        asked = sinkhorn_knopp(teacher["ibot_head"](seen[:, 1:][masks]), 0.05)
        noisy = torch.cat(batch.global_crops)
        classes, patches = encode_masked(student["backbone"], noisy, model.mask_token, masks)
        logits = [student["dino_head"](classes[:5]), student["dino_head"](classes[5:])]
        logits += [student["dino_head"](student["backbone"](x)) for x in batch.local_crops]
        dino = dino_loss(logits, torch.stack([answers[:5], answers[5:]]), 0.1)
        ibot = ibot_loss(student["ibot_head"](patches[masks]), asked, masks, 0.1)
    expected = 0.7 * dino + 1.3 * ibot
    torch.testing.assert_close(found["anchor"].detach(), expected, rtol=1e-4, atol=1e-5)
    total = without["loss"] + 1.7 * expected
    torch.testing.assert_close(found["loss"], total, rtol=1e-5, atol=1e-5)


def test_gradients_reach_the_student_only() -> None:
    model = anchored_model()
    masks = sample_patch_masks(10, (4, 4), torch.Generator().manual_seed(0))
    model.loss(views(), masks, 0.05)["anchor"].backward()
    frozen = [*model.teacher.parameters(), *model.anchor.parameters()]
    assert all(p.grad is None and not p.requires_grad for p in frozen)
    assert all(p.grad is not None for p in model.student.parameters())


# ---------------------------------------------------------------------------------------- errors
def test_patches_must_cover_the_crops() -> None:
    assert patch_grid(torch.zeros(2, 1, 12, 8), 4) == (3, 2)
    with pytest.raises(ValueError, match=r"`patch_size` 4 must divide .* got 6x8"):
        patch_grid(torch.zeros(1, 6, 8), 4)
    with pytest.raises(ValueError, match=r"`patch_size` 4 must divide .* got 6x6"):
        fit(build(), local_size=6)


def test_what_does_not_fit_together_is_refused() -> None:
    for options in ({"anchor_weight": 1.0}, {"anchor_weight": -1.0, "first_epochs": 1}):
        with pytest.raises(ValueError, match="must be at least 0, and 0 without first_epochs"):
            build(**options)
    with pytest.raises(ValueError, match="first_epochs=-1 must be at least 0"):
        build(first_epochs=-1)
    with pytest.raises(ValueError, match="first_epochs=3 are 6 of 6 steps"):
        fit(build(first_epochs=3))
    with pytest.raises(ValueError, match=r"anchor_weight needs denoised copies: .* data\.paired"):
        fit(build(first_epochs=1, anchor_weight=1.0))


# ---------------------------------------------------------------------------------- command line
def test_one_flag_for_the_stages_of_data_and_method(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["dinov2"])
    arguments = ["--data.first_epochs", "22", "--data.denoised", "blur:0.6"]
    cli = parse(DinoV2, "dinov2", 30, [*arguments, "--model.anchor_weight", "1.5"], DEFAULTS)
    assert (cli.model.hparams["first_epochs"], cli.datamodule.first_epochs) == (22, 22)
    assert cli.datamodule.paired
    cli = parse(DinoV2, "dinov2", 30, arguments, DEFAULTS)
    assert cli.model.anchor is None
    assert not cli.datamodule.paired


@pytest.mark.parametrize(
    "options",
    [
        ["--data.noise=gaussian:100", "--data.denoised=digits"],
        *seldom(["--data.first_scale=0.5"], []),
    ],
    ids=["denoised", "small", "alike"],
)
def test_the_monitor_refers_to_images_of_the_second_stage(tmp_path, monkeypatch, options) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["dinov2"])
    words = ["--data=digits", "--data.first_epochs=1", "--trainer.limit_train_batches=1"]
    words += ["--trainer.max_epochs=2", "--trainer.logger=false", "--checkpoint.save_top_k=0"]
    words += ["--monitor.every_n_epochs=2", "--monitor.max_probe_samples=4", "--knn.linear=false"]
    words += ["--monitor.polarity_samples=0", "--trainer.enable_progress_bar=false", *options]
    words += ["--model.width=16", "--model.depth=1", "--monitor.max_embedding_samples=64"]
    cli = parse(DinoV2, "dinov2", 2, words, DEFAULTS)
    train(cli)
    monitor = next(c for c in cli.trainer.callbacks if isinstance(c, JepaScoreCallback)).monitor
    # Every reference image is the first global crop of one that the second stage sees.
    sees = ImageDataModule(
        "digits", noise=cli.datamodule.noise, image_size=16, global_views=2, local_views=2,
        crop_scale=0.6,
    )  # fmt: skip
    sees.setup()
    known = torch.stack([sees.train_set[1, i][0].global_crops[0] for i in range(1437)])
    pairs = (images.flatten(1).double() for images in (monitor.reference, known))
    apart = torch.cdist(*pairs, compute_mode="donot_use_mm_for_euclid_dist").min(1).values
    assert len(monitor.reference) == 64
    assert apart.max().item() < 1e-6
