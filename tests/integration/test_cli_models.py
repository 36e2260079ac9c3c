"""Encoders of transformers and open_clip by name, from folders and files written here."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from cli.cli_helpers import make_folder
from PIL import Image
from torch import Tensor, nn

from jepa_monitor.cli import LoadedEncoder, ModelSettings, load_encoder, read_table
from jepa_monitor.cli.entry import main
from jepa_monitor.encoders.embedder import Embedder

transformers = pytest.importorskip("transformers")
open_clip = pytest.importorskip("open_clip")

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
SMALL = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}
RANDOM = ModelSettings(random_weights=True)


def embed(loaded: LoadedEncoder, pixels: Tensor) -> Tensor:
    embedder = Embedder(loaded.encoder)
    with torch.no_grad():
        return embedder.run(lambda: embedder(pixels[None]), torch.device("cpu"))[0]


def pixels_of(loaded: LoadedEncoder) -> Tensor:
    assert loaded.transform is not None
    return loaded.transform(IMAGE)


def vit() -> nn.Module:
    return transformers.ViTModel(transformers.ViTConfig(**SMALL))


def dinov2() -> nn.Module:
    return transformers.Dinov2Model(transformers.Dinov2Config(**SMALL))


def ijepa() -> nn.Module:
    return transformers.IJepaModel(transformers.IJepaConfig(**SMALL))


def clip() -> nn.Module:
    text = {key: SMALL[key] for key in list(SMALL)[:4]} | {"vocab_size": 50}
    config = transformers.CLIPConfig(text_config=text, vision_config=SMALL, projection_dim=12)
    return transformers.CLIPModel(config)


# How to build it, and the textbook way to its embedding.
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, Tensor], Tensor]]] = {
    "vit": (vit, lambda model, x: model(x).pooler_output),
    "dinov2": (dinov2, lambda model, x: model(x).last_hidden_state[:, 0]),
    "ijepa": (ijepa, lambda model, x: model(x).last_hidden_state.mean(1)),
    "clip": (
        clip,
        lambda model, x: model.visual_projection(model.vision_model(x).pooler_output),
    ),
}


def processor() -> transformers.BitImageProcessor:
    return transformers.BitImageProcessor(
        size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}
    )


@pytest.mark.parametrize("kind", MODELS)
def test_transformers_weights_and_preprocessing_are_the_models_own(
    tmp_path: pathlib.Path, kind: str
) -> None:
    build, textbook = MODELS[kind]
    model = build().eval()
    model.save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    loaded = load_encoder(f"hf/{tmp_path}")
    assert loaded.assumed == ()
    pixels = processor()(IMAGE, return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels_of(loaded), pixels[0])
    with torch.no_grad():
        expected = textbook(model, pixels)[0]
    torch.testing.assert_close(embed(loaded, pixels[0]), expected)
    assert loaded.fingerprint() == load_encoder(f"hf/{tmp_path}").fingerprint()


def test_transformers_random_weights_need_the_configuration_alone(tmp_path: pathlib.Path) -> None:
    ijepa().config.save_pretrained(tmp_path)
    loaded = load_encoder(f"hf/{tmp_path}", RANDOM)
    assert "random" in loaded.assumed[0]
    assert "resized to 32x32" in loaded.assumed[1]
    assert pixels_of(loaded).shape == (3, 32, 32)
    assert embed(loaded, pixels_of(loaded)).shape == (24,)
    torch.manual_seed(1)
    assert load_encoder(f"hf/{tmp_path}", RANDOM).fingerprint() == loaded.fingerprint()


def test_transformers_makes_up_no_weights(tmp_path: pathlib.Path) -> None:
    whole = vit()
    transformers.ViTModel(whole.config, add_pooling_layer=False).save_pretrained(tmp_path)
    loaded = load_encoder(f"hf/{tmp_path}")  # no pooler: as most are published
    state = torch.nn.Module.state_dict(loaded.encoder)
    assert not [name for name in state if "pooler" in name]
    pixels = pixels_of(loaded)
    with torch.no_grad():
        expected = loaded.encoder(pixels[None]).last_hidden_state.mean(1)[0]
    torch.testing.assert_close(embed(loaded, pixels), expected)

    deeper = json.loads((tmp_path / "config.json").read_text()) | {"num_hidden_layers": 3}
    (tmp_path / "config.json").write_text(json.dumps(deeper))
    with pytest.raises(ValueError, match=r"there are no weights for .*2\..* in all"):
        load_encoder(f"hf/{tmp_path}")


def test_transformers_runs_no_code_of_a_model(tmp_path: pathlib.Path) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(ran)!r}, 'w')")
    config = {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_encoder(f"hf/{tmp_path}")
    assert not ran.exists()


class Odd:
    """Not one of the types that are safe to load."""


def test_transformers_unpickles_nothing_unasked(tmp_path: pathlib.Path) -> None:
    model = ijepa()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict() | {"odd": Odd()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="set `trust_pickle`"):
        load_encoder(f"hf/{tmp_path}")
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    loaded = load_encoder(f"hf/{tmp_path}")
    torch.testing.assert_close(loaded.encoder.state_dict(), dict(model.state_dict()))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf/no/such/place", "cannot be loaded"),
        ("hf/{folder}", "cannot be loaded"),
        ("open_clip/ViT-B-32/no_such_tag", "cannot be loaded: .*no_such_tag"),
        ("open_clip/no_such_model/openai", "cannot be loaded: .*no_such_model"),
    ],
)
def test_names_that_are_none(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=message):
        load_encoder(name.format(folder=tmp_path))


def test_preprocessing_of_its_own_is_not_overruled(tmp_path: pathlib.Path) -> None:
    ijepa().save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has preprocessing of its own: BitImageProcessor"):
        load_encoder(f"hf/{tmp_path}", ModelSettings(image_size=48))


@pytest.fixture(scope="module")
def clip_weights(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    model = open_clip.create_model("RN50", load_weights=False)
    place = tmp_path_factory.mktemp("open_clip") / "weights.pt"
    torch.save(model.state_dict(), place)
    return place


def test_open_clip_is_its_vision_tower(clip_weights: pathlib.Path) -> None:
    loaded = load_encoder(f"open_clip/RN50/{clip_weights}")
    assert loaded.assumed == ()
    model, _, preprocess = open_clip.create_model_and_transforms("RN50", str(clip_weights))
    pixels = preprocess(IMAGE)
    assert torch.equal(pixels_of(loaded), pixels)
    with torch.no_grad():
        expected = model.eval().encode_image(pixels[None])[0]
    torch.testing.assert_close(embed(loaded, pixels), expected)


def test_open_clip_settings() -> None:
    settings = ModelSettings(random_weights=True, image_size=64, mean=[0.5] * 3, std=[0.25] * 3)
    loaded = load_encoder("open_clip/ViT-B-32/openai", settings)
    assert "random" in loaded.assumed[0]
    white = Image.new("RGB", (64, 64), "white")
    assert loaded.transform is not None
    assert torch.equal(loaded.transform(white), torch.full((3, 64, 64), 2.0))
    assert embed(loaded, loaded.transform(white)).shape == (512,)


def test_open_clip_unpickles_nothing_unasked(tmp_path: pathlib.Path) -> None:
    torch.save({"odd": Odd()}, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match="set `trust_pickle`"):
        load_encoder(f"open_clip/RN50/{tmp_path / 'odd.pt'}")


def test_the_command(tmp_path: pathlib.Path) -> None:
    make_folder(tmp_path / "data", 12)
    dinov2().save_pretrained(tmp_path / "model")
    processor().save_pretrained(tmp_path / "model")
    words = [
        "score", "--model", f"hf/{tmp_path / 'model'}", "--data", str(tmp_path / "data"),
        "--out", str(tmp_path / "s.csv"), "--polarity-samples", "2", "--workers", "2",
    ]  # fmt: skip
    assert main(words) == 0
    scores = read_table(tmp_path / "s.csv")["jepa_score"].to_pylist()
    assert len(scores) == 12
    assert np.isfinite(scores).all()
    assert main(words) == 0  # the same command: all is there
