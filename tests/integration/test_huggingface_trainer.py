"""In Hugging Face's Trainer: the curves appear in its own logs, and the run is what it would have been."""

from __future__ import annotations

import json
import pathlib
import re
import warnings
from typing import Any

import pytest
import torch
from helpers import float64_score, images
from torch import nn
from torch.utils.data import Dataset

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from jepa_monitor.callbacks.huggingface import HuggingFaceCallback
from jepa_monitor.cli import report

SMALL = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "image_size": 8, "patch_size": 4,
}  # fmt: skip


class Pictures(Dataset):  # type: ignore[type-arg]
    def __init__(self, count: int, seed: int) -> None:
        self.images = images(count, seed)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": self.images[index], "labels": index % 2}


def trainer(folder: pathlib.Path, steps: int = 12, **settings: Any) -> Any:
    transformers.set_seed(5)
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL, num_labels=2))
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=8, logging_steps=4, use_cpu=True,
        disable_tqdm=True, learning_rate=1e-2, **({"save_strategy": "no", "report_to": []} | settings),
    )  # fmt: skip
    return transformers.Trainer(
        model, arguments, train_dataset=Pictures(48, 2), eval_dataset=Pictures(16, 3)
    )


def watch(run: Any, **settings: Any) -> HuggingFaceCallback:
    defaults = {"max_probe_samples": 2, "max_overhead": None, "every_n_steps": 4}
    callback = HuggingFaceCallback(run, **(defaults | settings))
    run.add_callback(callback)
    return callback


def own(run: Any) -> list[dict[str, float]]:
    """What the Trainer itself has logged."""
    ours = ("jepa_score", "monitor")
    theirs = [log for log in run.state.log_history if not any(k.startswith(ours) for k in log)]
    clocks = ("runtime", "per_second")
    return [{k: v for k, v in log.items() if not k.endswith(clocks)} for log in theirs]


def test_curves_are_logged_and_the_run_is_what_it_would_have_been(tmp_path: pathlib.Path) -> None:
    plain, run = trainer(tmp_path / "plain"), trainer(tmp_path / "watched")
    callback = watch(run)
    transformers.set_seed(6)
    plain.train()
    transformers.set_seed(6)
    run.train()
    assert [values["step"] for values in callback.history] == [0, 4, 8, 12]
    logged = [log for log in run.state.log_history if "jepa_score/mean" in log]
    assert [log["step"] for log in logged] == [0, 4, 8, 12]
    assert {"collapse/state", "log_density/mean", "monitor/failures"} <= set(logged[-1])

    class Pooled(nn.Module):
        def __init__(self, vit: nn.Module) -> None:
            super().__init__()
            self.vit = vit

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            found = self.vit(batch)
            if found.pooler_output is not None:
                return found.pooler_output
            return found.last_hidden_state.mean(1)

    pooled = Pooled(run.model.vit)
    exact = score_of(pooled)
    assert logged[-1]["jepa_score/mean"] == pytest.approx(exact, abs=0.02)
    assert own(run) == own(plain)
    for (name, value), other in zip(
        run.model.state_dict().items(), plain.model.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), name


def content(page: pathlib.Path) -> dict[str, Any]:
    found = re.search(r'type="application/json">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    (shown,) = json.loads(found[1])["runs"]
    return shown  # type: ignore[no-any-return]


def test_at_the_end_there_is_the_page_and_that_of_the_event_files_says_the_same(
    tmp_path: pathlib.Path,
) -> None:
    pytest.importorskip("tensorboard")
    run = trainer(tmp_path, report_to=["tensorboard"])
    callback = watch(run)
    run.train()
    shown = content(tmp_path / "run.html")
    assert [look["collapse/state"] for look in callback.history] == [0, 2, 2, 2]  # random labels
    assert shown["headline"] == "Complete collapse since step 4, too new to be an alarm"
    assert shown["series"]["jepa_score/mean"][0] == [0, 4, 8, 12]
    for tag, value in callback.history[-1].items():
        if tag != "step":
            assert shown["series"][tag][1][-1] == pytest.approx(value, rel=1e-5), tag
    assert dict(shown["settings"])["encoder"] == "ViTModel"
    assert {picture["tag"] for picture in shown["pictures"]} >= {"jacobian/spectra"}
    told = content(report(str(tmp_path), str(tmp_path / "again.html"), name="train"))
    assert (told["headline"], told["keep"]["step"]) == (shown["headline"], shown["keep"]["step"])
    for tag, (steps, values) in shown["series"].items():
        assert told["series"][tag][0] == steps, tag
        assert told["series"][tag][1] == pytest.approx(values, rel=1e-5, abs=1e-6), tag


def score_of(encoder: nn.Module) -> float:
    return float64_score(encoder, images(16, 3)[:2]).mean().item()


class Dying(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        if state.global_step >= 4:
            model.vit.layernorm.weight.data.zero_()
            model.vit.layernorm.bias.data.fill_(1.0)


@pytest.mark.parametrize("reaction", ["warn", "stop", "call"])
def test_alarm(tmp_path: pathlib.Path, reaction: str) -> None:
    called: list[Any] = []
    run = trainer(tmp_path, steps=16)
    run.add_callback(Dying())
    callback = watch(
        run, every_n_steps=2, patience_steps=1, encoder="vit",
        on_collapse=(lambda t, reading: called.append(reading)) if reaction == "call" else reaction,
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.train()
    said = [str(w.message) for w in caught if "HuggingFaceCallback at step" in str(w.message)]
    assert len(said) == (reaction != "call")
    assert len(called) == (reaction == "call")
    assert callback.history[-1]["collapse/alarm"] == 1
    assert (run.state.global_step < 16) == (reaction == "stop")


def test_a_resumed_run_goes_on_with_its_story(tmp_path: pathlib.Path) -> None:
    first = trainer(tmp_path, steps=8, save_strategy="steps", save_steps=4)
    callback = watch(first)
    first.train()
    second = trainer(tmp_path, steps=12, save_strategy="steps", save_steps=4)
    again = watch(second)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert again.history[:3] == callback.history
    assert [values["step"] for values in again.history] == [0, 4, 8, 12]


def test_an_encoder_that_fails_ends_nothing(tmp_path: pathlib.Path) -> None:
    run = trainer(tmp_path, steps=4)
    callback = watch(run, encoder="nowhere", every_n_steps=1)
    with pytest.warns(UserWarning, match=r"could not evaluate at step 0: AttributeError"):
        run.train()
    assert run.state.global_step == 4
    assert callback.history == []
    assert [log["monitor/failures"] for log in run.state.log_history if "monitor/failures" in log][
        -1
    ] == 5


def test_without_held_out_images_it_warns(tmp_path: pathlib.Path) -> None:
    run = trainer(tmp_path, steps=1)
    run.eval_dataset = None
    callback = watch(run)
    with pytest.warns(UserWarning, match="they are not held out"):
        run.train()
    assert len(callback.history) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoder": 3}, "`encoder` must be a dotted path"),
        ({"on_collapse": "shout"}, "`on_collapse` must be one of warn, stop"),
    ],
)
def test_arguments_are_checked(
    tmp_path: pathlib.Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        HuggingFaceCallback(None, **arguments)
