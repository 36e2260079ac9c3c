"""Weights under the names that libraries give them: key layouts as each of them writes them."""

from __future__ import annotations

import copy
import pathlib

import pytest
import torch
from torch import Tensor, nn

from jepa_monitor.cli.run_order import find_checkpoints, in_order
from jepa_monitor.cli.weights import find_weights


class Vit(nn.Module):
    """The keys of a ViT, as timm and Meta's code have them."""

    def __init__(self, seed: int, depth: int = 2, width: int = 4) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.pos_embed = nn.Parameter(torch.randn(1, 4, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, 2, 2)})
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"norm1": nn.LayerNorm(width), "mlp": nn.Linear(width, width)})
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        for parameter in self.parameters():
            parameter.data = torch.randn_like(parameter)


State = dict[str, Tensor]
ONLINE, TARGET = Vit(0).state_dict(), Vit(1).state_dict()
HEAD = {"mlp.0.weight": torch.ones(3, 4), "last_layer.weight_g": torch.ones(3, 1)}


def under(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def moments(state: State) -> dict[str, object]:
    """Adam's state, whose tensors have the shapes of the weights."""
    return {"state": {"exp_avg": {k: torch.zeros_like(v) for k, v in state.items()}}}


def chunked(state: State) -> State:
    """DINOv2 for FSDP: `blocks.CHUNK.NUMBER`, the number over all chunks."""
    return {key.replace("blocks.", "blocks.0.").replace("blocks.0.1.", "blocks.1.1."): value
            for key, value in state.items()}  # fmt: skip


LAYOUTS: dict[str, tuple[dict[str, object], str]] = {
    "official ijepa": (
        {"encoder": under("module.", ONLINE), "predictor": under("module.", HEAD),
         "target_encoder": under("module.", TARGET), "opt": moments(TARGET), "scaler": None, "epoch": 50,
         "loss": 0.2},
        "target_encoder",
    ),
    "ijepa on one GPU": ({"encoder": ONLINE, "target_encoder": TARGET, "epoch": 1}, "target_encoder"),
    "vjepa2": (
        {"encoder": under("module.backbone.", ONLINE), "target_encoder": under("module.backbone.", TARGET),
         "predictor": under("module.backbone.", HEAD), "opt": moments(ONLINE), "epoch": 3},
        "target_encoder.backbone",
    ),
    "dinov2, evaluation": (
        {"teacher": under("backbone.", chunked(TARGET)) | under("dino_head.", HEAD)}, "teacher.backbone",
    ),
    "dinov2, training": (
        {"model": under("student.backbone.", ONLINE) | under("teacher.backbone.", TARGET)
         | under("teacher.dino_head.", HEAD), "optimizer": moments(TARGET), "iteration": 12499},
        "model.teacher.backbone",
    ),
    "dinov3, evaluation": (
        {"teacher": under("backbone._checkpoint_wrapped_module.", TARGET) | under("ibot_head.", HEAD)},
        "teacher.backbone",
    ),
    "dinov3, compiled": ({"teacher": under("backbone._orig_mod.", TARGET)}, "teacher.backbone"),
    "lightly, DINO": (
        {"state_dict": under("student_backbone.", ONLINE) | under("teacher_backbone.", TARGET)
         | under("student_head.", HEAD), "global_step": 7, "optimizer_states": [moments(ONLINE)]},
        "state_dict.teacher_backbone",
    ),
    "lightly, BYOL": (
        {"state_dict": under("backbone.", ONLINE) | under("backbone_momentum.", TARGET), "global_step": 7},
        "state_dict.backbone_momentum",
    ),
    "stable-pretraining": (
        {"state_dict": under("backbone.", TARGET) | under("projector.", HEAD)
         | under("callbacks_modules.knn.", {"cache": torch.ones(3)}), "global_step": 7},
        "state_dict.backbone",
    ),
    "stable-pretraining, teacher and student": (
        {"state_dict": under("backbone.student.", ONLINE) | under("backbone.teacher.", TARGET)},
        "state_dict.backbone.teacher",
    ),
    "recipes": (
        {"state_dict": under("encoder.", ONLINE) | under("target_encoder.", TARGET)}, "state_dict.target_encoder",
    ),
    "lejepa": ({"state_dict": under("network.encoder.", TARGET)}, "state_dict.network.encoder"),
    "FSDP": ({"model": under("_fsdp_wrapped_module.", TARGET)}, "model"),
    "a bare state": (dict(TARGET), ""),
    "a bare state, wrapped": (under("module.", TARGET), ""),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_target_is_found_in_every_layout(layout: str) -> None:
    checkpoint, prefix = LAYOUTS[layout]
    encoder = Vit(2)
    found = find_weights(encoder.state_dict(), copy.copy(checkpoint))
    assert found.prefix == prefix
    encoder.load_state_dict(found.tensors)
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, TARGET[key]), key


def test_another_part_can_be_asked_for() -> None:
    checkpoint = LAYOUTS["official ijepa"][0]
    assert torch.equal(
        find_weights(ONLINE, checkpoint, "encoder").tensors["pos_embed"], ONLINE["pos_embed"]
    )
    checkpoint = LAYOUTS["dinov2, training"][0]
    found = find_weights(ONLINE, checkpoint, "student.backbone")
    assert torch.equal(found.tensors["norm.bias"], ONLINE["norm.bias"])
    with pytest.raises(ValueError, match=r"none of the encoder's 13 keys .* under 'head'"):
        find_weights(ONLINE, checkpoint, "head")


def test_an_encoder_in_a_wrapper_of_its_own() -> None:
    wrapped = under("module.", ONLINE)
    found = find_weights(wrapped, {"teacher": under("backbone.", TARGET)})
    assert found.tensors.keys() == wrapped.keys()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (Vit(0, depth=1).state_dict(), r"4 of the encoder's 13 keys are missing \(blocks.1.norm1.weight, .*, …\) under 'enc'"),
        (Vit(0, width=6).state_dict(), r"^13 have another shape .*pos_embed \(1, 4, 4\), not \(1, 4, 6\)"),
        (Vit(0, depth=3).state_dict(), r"it has blocks.2 under 'enc', which the encoder has not: another architecture"),
        ({"a": torch.ones(2)}, r"none of the encoder's 13 keys \(pos_embed, .*\), but enc.a"),
        ({}, "it holds no weights"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(state: State, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_weights(ONLINE, {"enc": state, "epoch": 3})


def test_one_shape_that_differs_is_named() -> None:
    state = {**TARGET, "pos_embed": torch.ones(1, 9, 4)}
    message = r"1 have another shape \(the encoder has pos_embed \(1, 4, 4\), not \(1, 9, 4\)\) under 'teacher'"
    with pytest.raises(ValueError, match=message):
        find_weights(ONLINE, {"teacher": state})


def test_keys_that_the_encoder_does_not_have_are_told() -> None:
    found = find_weights(ONLINE, {"teacher": {**TARGET, "mask_token": torch.ones(1, 4)}})
    assert found.unused == ("teacher.mask_token",)


def test_two_parts_without_a_usual_name_are_not_guessed_between() -> None:
    with pytest.raises(
        ValueError, match=r"several parts of it fit, 'one', 'two': say which \(`encoder`\)"
    ):
        find_weights(ONLINE, {"one": ONLINE, "two": TARGET})


# ------------------------------------------------------------------------------------------ order
def course(folder: pathlib.Path, *patterns: str, steps_per_epoch: int | None = None):
    paths = find_checkpoints(patterns or [str(folder)])
    return in_order(paths, lambda path: torch.load(path, weights_only=True), steps_per_epoch)


def save(path: pathlib.Path, seed: int = 0, **content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {"w": torch.full((2,), float(seed))}, **content}, path)


@pytest.mark.parametrize(
    ("names", "content", "steps", "source"),
    [
        (["b.ckpt", "a.ckpt", "c.ckpt"], "global_step", [0, 30, 100], "global_step"),
        (["b.pth", "a.pth", "c.pth"], "iteration", [0, 30, 100], "iteration"),
        (["a-ep1.pth.tar", "a-ep30.pth.tar", "a-latest.pth.tar"], "epoch", [0, 30, 100], "epoch"),
        (["model_0000099.pth", "model_0000199.pth"], None, [99, 199], "step in the file's name"),
        (["v2-epoch=3.pt", "v2-epoch=11.pt"], None, [3, 11], "epoch in the file's name"),
        (["e=1-step=40.pt", "e=2-step=9.pt"], None, [9, 40], "step in the file's name"),
        (["eval/training_9/teacher_checkpoint.pth", "eval/training_100/teacher_checkpoint.pth"], None,
         [9, 100], "step in the folder's name"),
        (["eval/9/teacher_checkpoint.pth", "eval/100/teacher_checkpoint.pth"], None, [9, 100],
         "step in the folder's name"),
    ],
)  # fmt: skip
def test_the_order_is_told_by_what_all_have(
    tmp_path: pathlib.Path, names: list[str], content: str | None, steps: list[int], source: str
) -> None:
    for number, (name, step) in enumerate(zip(names, [30, 0, 100], strict=False)):
        save(tmp_path / name, number, **({content: step} if content else {}))
    found = course(tmp_path)
    assert [one.step for one in found.saved] == steps
    assert found.source == source
    assert found.unit == ("epoch" if "epoch" in source else "step")


def test_epochs_become_steps(tmp_path: pathlib.Path) -> None:
    for epoch in (1, 2):
        save(tmp_path / f"x{epoch}.pt", epoch, epoch=epoch)
    found = course(tmp_path, steps_per_epoch=50)
    assert ([one.step for one in found.saved], found.unit) == ([50, 100], "step")


def test_doubles_are_left_out_and_rivals_refused(tmp_path: pathlib.Path) -> None:
    save(tmp_path / "a.ckpt", 1, global_step=5, epoch=0)
    save(tmp_path / "last.ckpt", 1, global_step=5, epoch=1)
    (tmp_path / "link.ckpt").symlink_to("a.ckpt")
    found = course(tmp_path)
    assert [one.path.name for one in found.saved] == ["a.ckpt"]
    assert found.doubles == (
        f"{tmp_path / 'last.ckpt'} holds the weights of {tmp_path / 'a.ckpt'}",
    )
    save(tmp_path / "other.ckpt", 2, global_step=5)
    with pytest.raises(
        ValueError, match=r"a.ckpt' and .*other.ckpt' are both of step 5 and differ"
    ):
        course(tmp_path)


def test_an_order_that_nothing_tells(tmp_path: pathlib.Path) -> None:
    save(tmp_path / "good.pt", 1)
    assert [one.step for one in course(tmp_path).saved] == [0]  # one has no order
    save(tmp_path / "better.pt", 2)
    with pytest.raises(ValueError, match="nothing tells the order of all of"):
        course(tmp_path)


def test_folders_of_hugging_face_are_ordered_by_the_state_of_their_trainer(
    tmp_path: pathlib.Path,
) -> None:
    for step in (500, 50):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "trainer_state.json").write_text(f'{{"global_step": {step}, "epoch": 0.5}}')
    (tmp_path / "config.json").write_text("{}")  # of the final model, a copy of the last
    found = course(tmp_path)
    assert [(one.path.name, one.step) for one in found.saved] == [
        ("checkpoint-50", 50), ("checkpoint-500", 500),
    ]  # fmt: skip
    assert found.source == "global_step"


def test_patterns_folders_and_nothing(tmp_path: pathlib.Path) -> None:
    for name in ("a/x1.pt", "a/x2.pt", "b/x3.pt", "b/notes.txt"):
        save(tmp_path / name, int(name[-4]) if name.endswith(".pt") else 0)
    names = [path.name for path in find_checkpoints([f"{tmp_path}/**/*.pt", str(tmp_path / "b")])]
    assert names == ["x1.pt", "x2.pt", "x3.pt"]
    with pytest.raises(ValueError, match=r"there are none under '.*none"):
        find_checkpoints([str(tmp_path / "none*")])
