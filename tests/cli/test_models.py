"""Encoders by name: they are what they claim to be, and nothing is unpickled unasked."""

from __future__ import annotations

import inspect
import pathlib
import sys

import lightning.pytorch as pl
import numpy as np
import pytest
import timm
import torch
from cli_helpers import Small
from helpers import seldom, without_pictures
from PIL import Image
from torch import nn

from jepa_monitor._extras import MissingExtraError
from jepa_monitor.cli import ModelSettings, load_encoder

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
TINY = "timm/test_vit.r160_in1k"


def test_timm_has_its_own_preprocessing_and_no_head() -> None:
    loaded = load_encoder(TINY, ModelSettings(random_weights=True))
    config = timm.data.resolve_model_data_config(timm.create_model("test_vit.r160_in1k"))
    assert loaded.transform is not None
    pixels = loaded.transform(IMAGE)
    assert pixels.shape == config["input_size"]
    middle = timm.data.create_transform(**config)(IMAGE)
    assert torch.equal(pixels, middle)
    assert loaded.encoder(pixels[None]).shape == (1, 64)
    assert "random" in loaded.assumed[0]


def test_random_weights_are_the_same_every_time() -> None:
    settings = ModelSettings(random_weights=True)
    first, second = (load_encoder(TINY, settings).fingerprint() for _ in range(2))
    assert first == second
    torch.manual_seed(1)
    assert load_encoder(TINY, settings).fingerprint() == first


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("hf/facebook/ijepa", "transformers", "hf"), ("open_clip/a/b", "open_clip", "open-clip")],
)
def test_a_library_that_is_missing_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    message = rf"{name!r} needs {package}: pip install 'jepa-monitor\[{extra}\]'"
    with pytest.raises(MissingExtraError, match=message):
        load_encoder(name)


def test_what_goes_wrong_in_a_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("there is no network")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(
        ValueError, match=f"'{TINY}' cannot be loaded: OSError: there is no network"
    ):
        load_encoder(TINY)


def test_timm_image_size() -> None:
    loaded = load_encoder(TINY, ModelSettings(random_weights=True, image_size=32))
    assert loaded.transform is not None
    assert loaded.encoder(loaded.transform(IMAGE)[None]).shape == (1, 64)
    assert loaded.transform(IMAGE).shape == (3, 32, 32)


def test_module_and_function() -> None:
    loaded = load_encoder("cli_helpers:encoder")
    assert isinstance(loaded.encoder, Small)
    assert loaded.assumed == ()
    with_default = load_encoder("cli_helpers:Small", ModelSettings(image_size=6))
    assert with_default.transform is not None
    expected = np.asarray(IMAGE.crop((5, 0, 45, 40)).convert("RGB")) / 255
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    whole = load_encoder("cli_helpers:Small", ModelSettings(image_size=40)).transform
    assert whole is not None
    found = whole(IMAGE).movedim(0, -1).numpy()
    assert found == pytest.approx((expected - mean) / std, abs=1e-5)
    assert "mean" in with_default.assumed[0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet", "`model` must be timm/NAME"),
        ("timm/no_such_model", "timm has no model"),
        ("no_such_package:f", "cannot be imported"),
        ("cli_helpers:no_such", "cannot be imported"),
        ("gone.ckpt", "there is no checkpoint"),
        ("open_clip/ViT-B-32", "`model` must be open_clip/NAME/TAG"),
    ],
)
def test_names_that_are_none(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_encoder(name)


def test_settings_are_checked() -> None:
    for wrong, message in [
        ({"mean": [0.5]}, "`mean` and `std` must be given together"),
        ({"mean": [0.5], "std": [0.0]}, "`std` must be above 0"),
        ({"mean": [0.5], "std": [1.0, 1.0]}, "one number a channel"),
        ({"image_size": 0}, "`image_size` must be at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            ModelSettings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`mean` must have one number for each of 3 channels"):
        load_encoder("cli_helpers:Small", ModelSettings(mean=[0.5], std=[0.5]))
    with pytest.raises(
        ValueError, match="`random_weights` is for timm/NAME, hf/ORG/NAME, open_clip"
    ):
        load_encoder("cli_helpers:Small", ModelSettings(random_weights=True))


@pytest.fixture(scope="module")
def ijepa_run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    from jepa_monitor.recipes.cli import parse, train
    from jepa_monitor.recipes.ijepa import IJepa

    folder = tmp_path_factory.mktemp("ijepa")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        without_pictures(patch)
        run = parse(
            IJepa, "ijepa", 1,
            ["--data=digits", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1",
             "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu",
             "--trainer.max_epochs=1", "--model.depth=1", "--monitor.max_probe_samples=2"],
        )  # fmt: skip
        train(run)
    return folder / "runs/ijepa/version_0/checkpoints/last.ckpt"


@pytest.mark.parametrize(
    "place", ["its run", "older", *seldom("elsewhere", "extended", "older elsewhere")]
)
def test_a_recipes_checkpoint_needs_no_flag(
    ijepa_run: pathlib.Path, tmp_path: pathlib.Path, place: str
) -> None:
    from jepa_monitor.recipes.data import ImageDataModule
    from jepa_monitor.recipes.ijepa import IJepa

    state = torch.load(ijepa_run, weights_only=True)
    hyper = {
        k: v
        for k, v in state["hyper_parameters"].items()
        if k in inspect.signature(IJepa).parameters
    }
    state["hyper_parameters"] |= {"some.plugin": "a note of its own"}
    module = IJepa(**hyper)
    module.load_state_dict(state["state_dict"])
    data = ImageDataModule("digits")
    data.setup("fit")
    assert data.val_set is not None
    held_out = data.val_set[0][0]

    path = ijepa_run if place == "its run" else tmp_path / "a" / "b" / "x.ckpt"
    path.parent.mkdir(parents=True, exist_ok=True)
    if place == "extended":  # a data module that extends the recipes'
        state["IndexedDataModule"] = state.pop("ImageDataModule")
    if "older" in place:
        del state["ImageDataModule"]
    if place == "older":
        (tmp_path / "config.yaml").write_bytes((ijepa_run.parents[1] / "config.yaml").read_bytes())
        path = tmp_path / "a" / "x.ckpt"
    if path != ijepa_run:
        torch.save(state, path)
    loaded = load_encoder(str(path))
    if place == "older elsewhere":
        assert "resized to 24x24" in loaded.assumed[1]
        assert "normalised with mean [0.5]" in loaded.assumed[2]
        assert loaded.transform is not None
        assert loaded.transform(IMAGE).shape == (1, 24, 24)
        return
    assert loaded.assumed == ("the encoder is the module's `target_encoder` (`encoder`)",)

    from sklearn.datasets import load_digits  # the same picture, as a file would hold it

    raw = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    assert loaded.transform is not None
    prepared = [loaded.transform(Image.fromarray(image).convert("RGB")) for image in raw]
    distances = [float((image - held_out).abs().max()) for image in prepared]
    found = prepared[int(np.argmin(distances))]
    assert min(distances) < 1e-5
    with torch.no_grad():
        expected = module.eval().target_encoder(held_out[None])
        assert torch.allclose(loaded.encoder(found[None]), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["lejepa", "vicreg"])
def test_a_recipes_checkpoint_is_scored_by_what_its_monitor_watches(
    tmp_path: pathlib.Path, name: str
) -> None:
    from jepa_monitor.recipes import lejepa, vicreg

    recipe = {"lejepa": lejepa, "vicreg": vicreg}[name]
    cls = {"lejepa": lejepa.LeJepa, "vicreg": vicreg.VicReg}[name]
    watched = recipe.DEFAULTS["monitor.encoder"]
    module = cls(depth=1, width=8, heads=2).eval()
    path = tmp_path / f"{name}.ckpt"
    saved = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    torch.save(saved | {"ImageDataModule": {"mean": [0.5], "std": [0.25]}}, path)
    loaded = load_encoder(str(path))
    assert loaded.assumed == (f"the encoder is the module's `{watched}` (`encoder`)",)
    assert loaded.transform is not None
    images = loaded.transform(IMAGE)[None]
    assert torch.equal(loaded.encoder(images), module.get_submodule(watched)(images))
    loaded = load_encoder(str(path), ModelSettings(encoder="network.encoder"))
    assert torch.equal(loaded.encoder(images), module(images))


def test_an_encoder_that_cannot_be_found_is_asked_for(tmp_path: pathlib.Path) -> None:
    torch.save({"state_dict": Unusual().state_dict()}, tmp_path / "u.ckpt")
    settings = ModelSettings(module="test_models:Unusual")
    message = r"`encoder` must be given: .* Unusual has a usual name, but trunk \(Linear\)"
    with pytest.raises(ValueError, match=message):
        load_encoder(str(tmp_path / "u.ckpt"), settings)


class Unusual(pl.LightningModule):
    """With a forward pass of its own, which is not what is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(2, 2)


def test_a_recipes_normalisation_can_be_overruled(ijepa_run: pathlib.Path) -> None:
    settings = ModelSettings(encoder="encoder", mean=[0.25], std=[0.5], image_size=40)
    loaded = load_encoder(str(ijepa_run), settings)
    assert loaded.assumed == ()
    assert loaded.transform is not None
    grey = np.asarray(IMAGE.crop((5, 0, 45, 40)).convert("L"), dtype=float) / 255
    assert loaded.transform(IMAGE)[0].numpy() == pytest.approx((grey - 0.25) / 0.5, abs=0.01)


def test_images_of_two_channels_are_no_files(
    ijepa_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    state = torch.load(ijepa_run, weights_only=True)
    state["ImageDataModule"] = {"mean": [0.5, 0.5], "std": [1.0, 1.0]}
    torch.save(state, tmp_path / "two.ckpt")
    with pytest.raises(ValueError, match="images of 2 channels"):
        load_encoder(str(tmp_path / "two.ckpt"))


class Odd:
    """Not one of the types that are safe to load."""


def test_nothing_is_unpickled_unasked(ijepa_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    state = torch.load(ijepa_run, weights_only=True)
    state["hyper_parameters"]["odd"] = Odd()
    torch.save(state, tmp_path / "odd.ckpt")
    with pytest.raises(ValueError, match="set `trust_pickle`"):
        load_encoder(str(tmp_path / "odd.ckpt"))
    with pytest.raises(ValueError, match="of none of the recipes"):  # it was loaded, at least
        load_encoder(str(tmp_path / "odd.ckpt"), ModelSettings(trust_pickle=True))
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    with pytest.raises(ValueError, match="is no checkpoint"):
        load_encoder(str(tmp_path / "text.ckpt"))
    torch.save({"model": nn.Linear(2, 2).state_dict()}, tmp_path / "plain.pth")
    with pytest.raises(ValueError, match="is no Lightning checkpoint"):
        load_encoder(str(tmp_path / "plain.pth"))


def test_a_damaged_checkpoint_is_told(ijepa_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    whole = ijepa_run.read_bytes()
    for name, content in (("empty", b""), ("half", whole[: len(whole) // 2]), ("tail", whole[99:])):
        (tmp_path / f"{name}.ckpt").write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot be read|is no checkpoint"):
            load_encoder(str(tmp_path / f"{name}.ckpt"))


def test_any_lightning_module_by_its_class(tmp_path: pathlib.Path) -> None:
    from helpers import Tiny

    torch.save({"state_dict": Tiny().state_dict()}, tmp_path / "tiny.ckpt")
    path = str(tmp_path / "tiny.ckpt")
    loaded = load_encoder(path, ModelSettings(module="helpers:Tiny", image_size=8))
    assert loaded.transform is not None
    assert loaded.encoder(loaded.transform(IMAGE)[None]).shape == (1, 12)
    with pytest.raises(ValueError, match="does not fit the checkpoint"):
        load_encoder(path, ModelSettings(module="jepa_monitor.recipes.ijepa:IJepa"))
    with pytest.raises(ValueError, match="has no 'nothing'"):
        load_encoder(path, ModelSettings(module="helpers:Tiny", encoder="nothing"))
