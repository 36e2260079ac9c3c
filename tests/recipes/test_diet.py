"""DIET-CP against its definition, and what a steered backbone must not lose."""

import lightning.pytorch as pl
import numpy as np
import pytest
import timm
import torch
from lightning.pytorch import Callback
from scipy.optimize import minimize
from scipy.special import log_softmax

from jepa_monitor.recipes.backbones import freeze_all_but_last
from jepa_monitor.recipes.data import ImageDataModule
from jepa_monitor.recipes.diet import Diet, IndexedDataModule, loss_floor
from jepa_monitor.recipes.dinov2 import DinoV2
from jepa_monitor.recipes.ijepa import IJepa
from jepa_monitor.recipes.lejepa import LeJepa
from jepa_monitor.recipes.mae import Mae
from jepa_monitor.recipes.vicreg import VicReg

TINY = {"image_size": 16, "patch_size": 4, "width": 8, "depth": 3, "heads": 2}


# ---------------------------------------------------------------------------------------- the loss
def smoothed_entropy(logits, target, smoothing):
    """Cross-entropy with label smoothing, as its definition says."""
    spread = np.full(len(logits), smoothing / len(logits))
    spread[target] += 1 - smoothing
    return -(spread * log_softmax(logits)).sum()


@pytest.mark.parametrize(("classes", "smoothing"), [(2, 0.1), (5, 0.3), (30, 0.8), (7, 0.0)])
def test_the_floor_is_what_an_optimiser_finds(classes, smoothing) -> None:
    found = minimize(smoothed_entropy, np.zeros(classes), (0, smoothing), tol=1e-10).fun
    assert loss_floor(classes, smoothing) == pytest.approx(found, abs=1e-5)


def test_the_floor_of_a_thousand_images() -> None:
    right, other = 1 - 0.3 + 0.0003, 0.0003
    expected = -right * np.log(right) - 999 * other * np.log(other)
    assert loss_floor(1000, 0.3) == pytest.approx(expected)
    assert loss_floor(1, 0.3) == 0


def test_loss_is_the_smoothed_cross_entropy_of_the_embedding_on_the_sphere() -> None:
    model = Diet(**TINY, images=9, label_smoothing=0.3).eval()
    torch.nn.init.normal_(model.head.weight)
    images, indices = torch.randn(4, 1, 16, 16), torch.tensor([8, 0, 3, 3])
    found = {name: value.item() for name, value in model.loss(images, indices).items()}
    z = model(images).detach().double().numpy()
    weight = model.head.weight.detach().double().numpy()
    logits = z / np.linalg.norm(z, axis=1, keepdims=True) @ weight.T
    pairs = list(zip(logits, indices.tolist(), strict=True))
    loss = np.mean([smoothed_entropy(row, index, 0.3) for row, index in pairs])
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["excess"] == pytest.approx(loss - loss_floor(9, 0.3), rel=1e-4)
    assert found["index_accuracy"] == np.mean([row.argmax() == index for row, index in pairs])
    assert (model.head.bias, model.head.weight.shape) == (None, (9, 8))


# ------------------------------------------------------------------------------------- the indices
def test_every_image_comes_with_its_own_number() -> None:
    # Without crops there is no chance in a view: it is the image that is evaluated.
    data = IndexedDataModule("digits", batch_size=100, image_size=16, crop_scale=1.0)
    data.setup()
    data.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    loader = data.train_dataloader()
    loader.sampler.set_epoch(3)
    seen = []
    for images, indices in loader:
        seen += indices.tolist()
        for image, index in list(zip(images, indices.tolist(), strict=True))[:5]:
            torch.testing.assert_close(image, data.plain_train_set[index][0])
    assert len(set(seen)) == len(seen) == 1400
    assert set(seen) <= set(range(1437))
    labels = torch.cat([labels for _, labels in data.val_dataloader()])
    assert labels.unique().tolist() == list(range(10))  # to evaluate on, there are still labels


# ------------------------------------------------------------------------------------- the schedule
class Recorder(Callback):
    """Keep the backbone, all of its buffers too, as it is after every step."""

    def __init__(self):
        self.states = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.states.append({n: v.clone() for n, v in pl_module.backbone.state_dict().items()})


def fit(model, steps=4, data=None, **options):
    recorder = Recorder()
    trainer = pl.Trainer(
        max_epochs=1,
        limit_train_batches=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        callbacks=recorder,
        **options,
    )
    trainer.fit(model, datamodule=data or IndexedDataModule("digits", 20, image_size=16))
    return recorder, trainer


def same(first, second):
    return {name for name in first if torch.equal(first[name], second[name])}


@pytest.mark.parametrize(
    "backbone", [{"backbone": "resnet10t"}, TINY], ids=["batch norm", "layer norm"]
)
def test_the_backbone_stays_bit_for_bit_while_the_head_learns_alone(backbone) -> None:
    rates = {"learning_rate": 1e-2, "final_learning_rate": 1e-2, "backbone_lr": 1.0}
    model = Diet(**backbone, head_only=0.5, warmup=0.0, **rates)
    before = {n: v.clone() for n, v in model.backbone.state_dict().items()}
    recorder, trainer = fit(model, steps=4, gradient_clip_val=1.0)
    for state in recorder.states[:2]:
        assert same(before, state) == set(before)
    moved = set(before) - same(before, recorder.states[-1])
    assert moved >= {name for name, _ in model.backbone.named_parameters() if "weight" in name}
    # The moments of AdamW are no older than the backbone's training.
    states = trainer.optimizers[0].state
    assert {int(states[p]["step"]) for p in model.backbone.parameters()} == {2}
    assert int(states[model.head.weight]["step"]) == 4


def test_rates_rise_one_after_the_other() -> None:
    model = Diet(**TINY, head_only=0.1, warmup=0.2, learning_rate=1e-3, backbone_lr=0.5)
    model.total_steps = 100
    values = [model.scheduled(step) for step in range(100)]
    head, backbone = ([v[name] for v in values] for name in ("lr", "backbone_lr"))
    assert max(head) == head[19] == 1e-3
    assert backbone[:10] == [0.0] * 10
    assert backbone[10] == pytest.approx(0.5 * head[10] / 20)
    assert backbone[29:] == pytest.approx([0.5 * rate for rate in head[29:]])
    assert head[-1] == pytest.approx(1e-6)


def test_only_the_last_layers_train() -> None:
    model = Diet(**TINY, unfrozen_layers=2, head_only=0.0, warmup=0.0, learning_rate=1e-2)
    before = {n: v.clone() for n, v in model.backbone.state_dict().items()}
    state = fit(model, steps=2)[0].states[-1]
    moved = set(before) - same(before, state)
    assert {name.split(".")[0] for name in moved} == {"blocks", "norm"}
    assert {name.split(".")[1] for name in moved if name.startswith("blocks")} == {"1", "2"}


def test_frozen_batch_norms_keep_the_old_statistics() -> None:
    model = Diet(backbone="resnet10t", unfrozen_layers=1, head_only=0.0)
    before = {n: v.clone() for n, v in model.backbone.state_dict().items()}
    state = fit(model, steps=2)[0].states[-1]
    moved = {name for name in set(before) - same(before, state) if "running" in name}
    assert moved
    assert all(name.startswith("layer4.") for name in moved)


@pytest.mark.parametrize(
    ("name", "options", "layers", "trained"),
    [
        ("resnet18", {}, 1, {"layer4.1"}),
        ("resnet18", {}, 3, {"layer3.1", "layer4.0", "layer4.1"}),
        ("convnext_atto", {}, 1, {"stages.3", "head.norm"}),
        ("vit_tiny_patch16_224", {}, 1, {"blocks.11", "norm.weight", "norm.bias"}),
        # A norm after pooling is no layer of its own.
        (
            "vit_tiny_patch16_224",
            {"global_pool": "avg"},
            1,
            {"blocks.11", "fc_norm.weight", "fc_norm.bias"},
        ),
    ],
)
def test_layers_are_those_of_timm(name, options, layers, trained) -> None:
    backbone = timm.create_model(name, num_classes=0, **options)
    freeze_all_but_last(backbone, layers)
    names = [name for name, p in backbone.named_parameters() if p.requires_grad]
    assert {".".join(name.split(".")[:2]) for name in names} == trained


# ------------------------------------------------------------------------------------ the backbones
def saved(model, path):
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}, path)
    return str(path)


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        (IJepa, {"patch_size": 2}),
        (Mae, {"heads": 2, "decoder_width": 8}),
        (LeJepa, {}),
        (LeJepa, {"stem": "conv", "width": 16}),
        (VicReg, {}),
        (DinoV2, {"layer_scale": 0.1}),
        (Diet, {"images": 5}),
    ],
)
def test_it_takes_the_encoder_of_every_recipe(tmp_path, recipe, options) -> None:
    source = recipe(**{**TINY, **options}).eval()
    model = Diet(image_size=16, backbone_checkpoint=saved(source, tmp_path / "a.ckpt")).eval()
    images = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(model(images), source(images))
    # At another size the positions are interpolated.
    larger = Diet(image_size=24, backbone_checkpoint=str(tmp_path / "a.ckpt")).eval()
    assert larger(torch.randn(2, 1, 24, 24)).shape == (2, options.get("width", 8))
    # The result needs the source no more.
    again = Diet(**{k: v for k, v in model.hparams.items() if k != "images"})
    assert again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(images), model(images))


@pytest.mark.parametrize(
    "options", [{"attention": "sinkhorn"}, {"attention": "softmax", "attention_published": True}]
)
def test_encoders_of_other_attention_are_refused(tmp_path, options) -> None:
    path = saved(LeJepa(**TINY, **options), tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=f"'{options['attention']}' attention other than timm's"):
        Diet(image_size=16, backbone_checkpoint=path)


def test_it_takes_any_model_of_timm() -> None:
    for name, size in (("resnet10t", 32), ("vit_tiny_patch16_224", 32)):
        model = Diet(backbone=name, image_size=size, in_channels=3, images=7).eval()
        embeddings = model(torch.randn(2, 3, size, size))
        assert embeddings.shape == (2, model.head.in_features)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "resnet_10t"}, r"`backbone`='resnet_10t' is no model of timm"),
        ({"backbone": "resnet10t", "backbone_checkpoint": "a"}, "exclude each other"),
        ({"backbone_checkpoint": "a.ckpt"}, "there is no such file"),
        ({"pretrained": True}, "`pretrained` needs a `backbone`"),
        ({"unfrozen_layers": 9}, r"`unfrozen_layers`=9 must be from 1 to 4"),
        ({"unfrozen_layers": 0}, "`unfrozen_layers`=0"),
        ({"label_smoothing": 1.0}, r"`label_smoothing`=1\.0 must be in \[0, 1\)"),
        ({"head_only": -0.1}, r"`head_only`=-0\.1"),
        ({"warmup": 1.0}, r"`warmup`=1\.0"),
    ],
)
def test_bad_arguments_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        Diet(**{**TINY, **options})


def test_bad_checkpoints_are_refused(tmp_path) -> None:
    path = saved(LeJepa(**TINY, in_channels=3), tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="takes images of 3 channels, the data have 1"):
        Diet(**TINY, backbone_checkpoint=path)
    torch.save({"state_dict": {"weight": torch.zeros(1)}}, path)
    with pytest.raises(ValueError, match="no checkpoint of a recipe"):
        Diet(**TINY, backbone_checkpoint=path)


def test_bad_data_are_refused() -> None:
    with pytest.raises(TypeError, match="IndexedDataModule`, got ImageDataModule"):
        fit(Diet(**TINY), data=ImageDataModule("digits", image_size=16))
    with pytest.raises(ValueError, match="got 2 global and 0 local"):
        fit(Diet(**TINY), data=IndexedDataModule("digits", image_size=16, global_views=2))
    with pytest.raises(ValueError, match="knows 3 images, the data have 1437"):
        fit(Diet(**TINY, images=3))


def test_there_is_no_loss_without_a_head() -> None:
    with pytest.raises(RuntimeError, match=r"call `build_head\(images\)` first"):
        Diet(**TINY).loss(torch.randn(4, 1, 16, 16), torch.tensor([8, 0, 3, 3]))


def test_the_head_begins_by_telling_no_image_from_another() -> None:
    model = Diet(**TINY, images=9, label_smoothing=0.3)
    found = model.loss(torch.randn(4, 1, 16, 16), torch.tensor([8, 0, 3, 3]))
    assert found["loss"].item() == pytest.approx(np.log(9))
