"""Whether an encoder tells groups, from the data to the sentence."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch
from helpers import Validated, images, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from jepa_monitor import DensityMonitor, JepaScoreCallback
from jepa_monitor.functional import group_leak, group_neighbors, knn_predict
from jepa_monitor.insights.groups import GroupKnowledge

COUNT = 96
CLOCKS = ("seconds", "overhead")


def cases(seed: int = 0, first: int = 0) -> list[dict[str, Any]]:
    """Images of 24 patients of two classes: the first pixel is the patient, the second the class."""
    draw = torch.Generator().manual_seed(seed)
    patient = torch.arange(COUNT) // 4
    label = patient % 2
    pixels = 0.1 * torch.randn(COUNT, 3, 2, 2, generator=draw)
    places = torch.randn(100, 6, generator=torch.Generator().manual_seed(9))
    pixels.flatten(1)[:, :6] += places[patient + first]
    pixels[:, 2, 1, 1] += 2.0 * label
    found = [
        {"image": x, "label": int(y), "patient": int(who) + first, "scanner": f"s{int(who) % 3}"}
        for x, y, who in zip(pixels, label, patient, strict=True)
    ]
    order = torch.randperm(COUNT, generator=draw).tolist()
    return [found[i] for i in order]


class Blind(nn.Module):
    """Sees the class alone."""

    def forward(self, batch: Tensor) -> Tensor:
        return batch.flatten(1)[:, 6:]


def loader(data: Any) -> Any:
    return torch.utils.data.DataLoader(data, 32)


def look(encoder: nn.Module, **settings: Any) -> tuple[dict[str, float], DensityMonitor]:
    monitor = DensityMonitor(
        loader(cases()), max_probe_samples=4, groups=["patient", "scanner"], **settings
    )
    return monitor.evaluate(encoder).scalars, monitor


def test_numbers_are_those_of_the_functions_and_the_sentence_names_them() -> None:
    scalars, monitor = look(nn.Flatten())
    z, labels = monitor.images.flatten(1).double(), monitor.labels
    assert labels is not None
    for name in ("patient", "scanner"):
        near = group_neighbors(z, monitor.groups[name], labels)
        leak = group_leak(z, monitor.groups[name], labels)
        expected = {
            "neighbor": near.share, "neighbor_expected": near.expected, "neighbor_low": near.lower, "neighbor_high": near.upper,
            "knn_across": leak.across, "knn_within": leak.within, "leak": leak.leak, "leak_low": leak.lower, "leak_high": leak.upper,
        }  # fmt: skip
        found = {
            t.rpartition("/")[2]: v for t, v in scalars.items() if t.startswith(f"groups/{name}/")
        }
        assert found == {key: pytest.approx(value.item()) for key, value in expected.items()}
    assert scalars["groups/patient/neighbor"] > 0.9
    said = GroupKnowledge().says(scalars)
    assert said.startswith("The embedding tells patient: ")
    assert "of their own, where" in said
    assert "points of its accuracy to that" in said


def test_an_encoder_that_sees_the_class_alone_is_left_in_peace() -> None:
    scalars, _ = look(Blind())
    near, low, high = (scalars[f"groups/patient/neighbor{end}"] for end in ("", "_low", "_high"))
    assert low <= near <= high
    assert scalars["groups/patient/leak_low"] <= 0
    assert GroupKnowledge().says(scalars) == ""


def test_patients_of_the_training_data_are_counted_and_not_learned_from() -> None:
    apart, _ = look(nn.Flatten(), reference=loader(cases(1, first=50)))
    assert apart["groups/patient/shared"] == 0
    assert apart["groups/scanner/shared"] == 1
    half, monitor = look(nn.Flatten(), reference=loader(cases(1, first=12)))
    assert half["groups/patient/shared"] == pytest.approx(0.5)
    assert (
        "50% of the probe are of a patient that the training images have"
        in GroupKnowledge().says(half)
    )
    # `quality/*` learns from patients alone that are not asked.
    assert monitor.reference is not None
    assert monitor.reference_labels is not None
    fresh = ~torch.isin(monitor.reference_groups["patient"], monitor.groups["patient"])
    known = monitor.reference.flatten(1)[fresh], monitor.reference_labels[fresh]
    right = knn_predict(*known, monitor.images.flatten(1)) == monitor.labels
    assert half["quality/knn"] == pytest.approx(right.double().mean().item())


def test_halves_of_the_probe_share_no_patient() -> None:
    # The patients tell the class in full, and nothing else does: known ones would give it away.
    data = cases()
    told = torch.randint(0, 2, (24,), generator=torch.Generator().manual_seed(3)).tolist()
    for case in data:
        case["image"][2, 1, 1], case["label"] = 0, told[case["patient"]]
    leaking = DensityMonitor(loader(data), max_probe_samples=4).evaluate(nn.Flatten()).scalars
    apart = DensityMonitor(loader(data), max_probe_samples=4, groups="patient")
    honest = apart.evaluate(nn.Flatten()).scalars
    assert leaking["quality/knn"] > 0.9
    assert honest["quality/knn"] < 0.75


def test_nothing_is_said_of_one_group_or_few_images() -> None:
    data = [{"image": x, "site": 0} for x in images(40)]
    scalars = DensityMonitor(loader(data), groups="site").evaluate(nn.Flatten()).scalars
    assert not [tag for tag in scalars if tag.startswith("groups/")]
    few = DensityMonitor(loader(cases()[:12]), groups="patient").evaluate(nn.Flatten()).scalars
    assert not [tag for tag in few if tag.startswith("groups/")]
    assert GroupKnowledge().says({}) == ""


class Training(Validated):
    """Takes dicts, and sees 12 numbers an image."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(12, 6))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step([batch["image"], batch["label"]], batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step([batch["image"]], batch_idx)


def test_the_callback_finds_groups_in_the_trainer_s_data_and_leaves_training_as_it_is(
    tmp_path: pathlib.Path,
) -> None:
    trained = []
    for watching in (True, False):
        torch.manual_seed(0)
        callback = JepaScoreCallback(
            max_overhead=None,
            max_probe_samples=2,
            groups="patient",
            insights=["generalist"],
            compare_with=nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Dropout()),
        )
        module = Training()
        fitting = trainer(tmp_path, [callback] if watching else [], max_epochs=1)
        fitting.fit(module, loader(cases(1, first=12)), loader(cases()))
        trained.append(module.state_dict())
        if watching:
            assert callback.failures == 0
            assert [look["groups/patient/shared"] for look in callback.history] == [0.5, 0.5]
            assert "generalist/knn_gain" in callback.history[-1]
    assert all(torch.equal(trained[0][key], trained[1][key]) for key in trained[0])


class Repeatable(Training):
    """Draws the noise of a step by its number, so that a resumed run draws what the whole one does."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        torch.manual_seed(self.global_step)
        return super().training_step(batch, batch_idx)


def test_a_resumed_run_says_what_an_uninterrupted_one_does(tmp_path: pathlib.Path) -> None:
    checkpoint, looks, trained = None, [], []
    for name in ("whole", "resumed"):
        torch.manual_seed(0)
        callback = JepaScoreCallback(
            max_overhead=None, max_probe_samples=2, polarity_samples=0, strict=True, groups=["patient", "scanner"],
            insights=["generalist"], compare_with=nn.Sequential(nn.Flatten(), nn.Linear(12, 3)),
        )  # fmt: skip
        saves = ModelCheckpoint(tmp_path / name, every_n_epochs=1, save_top_k=-1)
        fitting = trainer(tmp_path, [callback, saves], max_epochs=2, enable_checkpointing=True)
        module = Repeatable()
        fitting.fit(module, loader(cases(1, first=12)), loader(cases()), ckpt_path=checkpoint)
        (checkpoint,) = tmp_path.glob("whole/epoch=0-*.ckpt")
        trained.append(module.state_dict())
        looks.append(
            [
                {tag: value for tag, value in look.items() if not tag.endswith(CLOCKS)}
                for look in callback.history
            ]
        )
    assert all(torch.equal(trained[0][key], trained[1][key]) for key in trained[0])
    assert [look["step"] for look in looks[1]] == [0, 3, 6]
    assert looks[1] == looks[0]
    assert {"groups/scanner/leak", "generalist/linear_gain", "quality/knn"} <= looks[0][-1].keys()
