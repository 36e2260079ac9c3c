"""A run beside a frozen encoder of somebody else's, from its name to the sentence."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from helpers import images, mlp
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from jepa_monitor import DensityMonitor
from jepa_monitor.encoders.pretrained import Generalist
from jepa_monitor.functional import knn_predict, paired_interval, rankme, ridge_predict
from jepa_monitor.insights.generalist import AgainstGeneralist

PREFIX = "generalist/"
NAME = "timm/test_vit.r160_in1k"  # timm's smallest: 160 px, three channels


def classes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    labels = torch.arange(count) % 3
    return images(count, seed) + 0.4 * labels[:, None, None, None], labels


def watching(other: Any, reference: bool = True) -> DensityMonitor:
    (probe, labels), (bank, bank_labels) = classes(90, 0), classes(150, 1)
    known = TensorDataset(bank, bank_labels)
    return DensityMonitor(
        probe,
        reference=known if reference else None,
        labels=labels,
        ood={"dark": images(40, 5) / 3},
        max_probe_samples=4,
        insights=["generalist"],
        compare_with=other,
    )


def look(encoder: nn.Module, other: Any, reference: bool = True) -> dict[str, float]:
    return watching(other, reference).evaluate(encoder).scalars


def test_numbers_are_those_that_quality_has_of_either() -> None:
    torch.manual_seed(0)
    mine, other = mlp(192, 6).double(), mlp(192, 4).double()
    scalars = look(mine, other)
    alone = look(other, mine)
    found = {tag.removeprefix(PREFIX): v for tag, v in scalars.items() if tag.startswith(PREFIX)}
    for key in ("knn", "linear", "few_shot_1", "few_shot_5", "few_shot_10"):
        for end in ("", "_low", "_high"):
            assert found.pop(f"{key}{end}") == pytest.approx(alone[f"quality/{key}{end}"])
    for key in ("knn", "linear"):
        gain = scalars[f"quality/{key}"] - alone[f"quality/{key}"]
        assert found[f"{key}_gain"] == pytest.approx(gain)
        assert alone[f"{PREFIX}{key}_gain"] == pytest.approx(-gain)
        low, high = found.pop(f"{key}_gain_low"), found.pop(f"{key}_gain_high")
        assert low < found.pop(f"{key}_gain") < high
        assert alone[f"{PREFIX}{key}_gain_low"] == pytest.approx(-high)
    monitor = watching(other)
    assert monitor.reference is not None
    sets = (monitor.images, monitor.reference, monitor.ood["dark"])
    with torch.no_grad():
        embedded = [[m(x.double()) for x in sets] for m in (mine, other)]
    assert found.pop("rankme") == pytest.approx(rankme(embedded[1][0]).item())
    areas = []
    for probe, bank, dark in embedded:
        # Those that are scored do not belong to the law, nor to its neighbours.
        units = [F.normalize(z, dim=1).numpy() for z in (bank[4:], probe, dark)]
        search = NearestNeighbors(n_neighbors=10).fit(units[0])
        far = [search.kneighbors(z)[0][:, -1] for z in units[1:]]
        areas.append(roc_auc_score([1] * 90 + [0] * 40, -torch.tensor([*far[0], *far[1]])))
    assert found.pop("dark/auroc") == pytest.approx(areas[1])
    assert found.pop("dark/auroc_gain") == pytest.approx(areas[0] - areas[1], abs=1e-9)
    assert (
        found.pop("dark/auroc_gain_low") <= areas[0] - areas[1] <= found.pop("dark/auroc_gain_high")
    )
    assert found == {}


def test_what_quality_has_asked_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[int] = []

    def counted(known: Tensor, labels: Tensor, asked: Tensor) -> Tensor:
        fitted.append(known.shape[1])
        return ridge_predict(known, labels, asked)

    for module in ("labelled", "generalist"):  # whoever asks
        monkeypatch.setattr(f"jepa_monitor.insights.{module}.ridge_predict", counted, raising=False)
    torch.manual_seed(0)
    mine, other = mlp(192, 6).double(), mlp(192, 4).double()
    (probe, labels), (bank, bank_labels) = classes(90, 0), classes(150, 1)
    held_out, known = TensorDataset(probe, labels), TensorDataset(bank, bank_labels)
    watched = DensityMonitor(
        held_out, reference=known, max_probe_samples=4, insights=["generalist"], compare_with=other
    )
    both = watched.evaluate(mine).scalars
    assert sorted(fitted) == [4, 6]  # a classifier for each encoder, once
    without = DensityMonitor(held_out, reference=known, max_probe_samples=4)
    alone = without.evaluate(mine).scalars
    quality = {tag for tag in alone if tag.startswith("quality/")}
    assert {tag: both[tag] for tag in quality} == {tag: alone[tag] for tag in quality} != {}
    with torch.no_grad():
        sets = [[m(x.double()) for x in (bank, probe)] for m in (mine, other)]
    for key, predict in (("knn", knn_predict), ("linear", ridge_predict)):
        told = [predict(taught, bank_labels, asked) == labels for taught, asked in sets]
        gain, ends = paired_interval(told[0], told[1])
        for end, value in zip(("", "_low", "_high"), (gain, *ends), strict=True):
            assert both[f"{PREFIX}{key}_gain{end}"] == pytest.approx(value.item(), abs=1e-12)


def test_halves_of_the_probe_serve_where_training_images_have_no_classes() -> None:
    torch.manual_seed(0)
    mine, other = mlp(192, 6).double(), mlp(192, 4).double()
    scalars, alone = look(mine, other, reference=False), look(other, mine, reference=False)
    assert scalars[f"{PREFIX}linear"] == pytest.approx(alone["quality/linear"])
    assert not [tag for tag in scalars if tag.startswith(f"{PREFIX}dark")]


def test_the_sentence_says_who_is_ahead() -> None:
    class Blind(nn.Module):
        def forward(self, batch: Tensor) -> Tensor:
            return batch.flatten(1)[:, :5] - batch.flatten(1).mean(1, keepdim=True)

    class Seeing(nn.Module):
        def forward(self, batch: Tensor) -> Tensor:
            return torch.stack([batch.flatten(1).mean(1), torch.ones(len(batch))], 1)

    says = AgainstGeneralist().says
    ahead = look(Seeing(), Blind())
    assert says(ahead).startswith("Against the encoder to compare with: k-NN ahead by ")
    assert ahead["generalist/knn_gain_low"] > 0
    behind = look(Blind(), Seeing())
    assert ", linear behind by " in says(behind)
    assert "k-NN level (-" in says(look(Seeing(), Seeing()))
    assert says({}) == ""


def test_what_is_not_finite_is_not_compared() -> None:
    scalars = look(mlp(192, 6), lambda batch: batch.flatten(1)[:, :3] * torch.nan)
    assert not [tag for tag in scalars if tag.startswith(PREFIX)]


# ------------------------------------------------------------------------------------------ by its name
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("raw", [True, False])
def test_images_of_any_size_and_one_channel_are_what_the_model_takes(
    channels: int, raw: bool
) -> None:
    generalist = Generalist(NAME, raw, pretrained=False)
    batch = images(3)[:, :channels, :, :7]
    shown = F.interpolate(batch, (160, 160), mode="bicubic", antialias=True)
    if channels == 1:
        shown = torch.cat([shown] * 3, 1)
    if raw:  # as timm says of this model
        shown = (shown - 0.5) / 0.5
    with torch.no_grad():
        torch.testing.assert_close(generalist(batch), generalist.model(shown))
    assert not any(p.requires_grad for p in generalist.parameters())
    with pytest.raises(
        ValueError, match=r"takes images of 3 channels, or of one, got shape \(3, 2"
    ):
        generalist(batch[:, :1].expand(-1, 2, -1, -1))


def test_a_name_is_loaded_once_and_embeds_once(monkeypatch: pytest.MonkeyPatch) -> None:
    make, calls = timm.create_model, []

    def without_a_network(name: str, pretrained: bool, **options: Any) -> nn.Module:
        calls.append((name, pretrained))
        made: nn.Module = make(name, pretrained=False, **options)
        return made

    def counted(self: Generalist, batch: Tensor) -> Any:
        calls.append("forward")
        return forward(self, batch)

    forward = Generalist.forward
    monkeypatch.setattr(Generalist, "forward", counted)

    monkeypatch.setattr(timm, "create_model", without_a_network)
    state = torch.get_rng_state()
    monitor = DensityMonitor(
        images(24).sigmoid(), reference=images(30, 1).sigmoid(), max_probe_samples=2,
        labels=torch.arange(24) % 2, insights=["generalist", "neighbors"], compare_with=NAME,
    )  # fmt: skip
    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(monitor.compare_with, Generalist)
    assert monitor.compare_with.raw
    first = monitor.evaluate(mlp(192, 6)).scalars
    assert calls[0] == ("test_vit.r160_in1k", True)
    forwards = calls.count("forward")
    second = monitor.evaluate(mlp(192, 6)).scalars
    assert calls.count("forward") == forwards > 0
    assert second[f"{PREFIX}knn"] == first[f"{PREFIX}knn"]
    normalised = DensityMonitor(images(24) - 0.5, compare_with=NAME).compare_with
    assert not normalised.raw


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            "timm/resnet_of_nobody",
            ValueError,
            "`compare_with`: timm has no model 'resnet_of_nobody'",
        ),
        (
            "dinov2",
            TypeError,
            "`compare_with` must be a module, a function, 'timm/NAME' or None, got 'dinov2'",
        ),
        (3, TypeError, "`compare_with` must be a module"),
    ],
)
def test_what_cannot_be_is_an_error(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DensityMonitor(images(8), compare_with=given)


def test_weights_that_cannot_be_fetched_are_an_error_that_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def offline(*_: Any, **__: Any) -> nn.Module:
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        ValueError, match="`compare_with`: 'timm/test_vit' cannot be loaded: OSError: no route"
    ):
        DensityMonitor(images(8), compare_with="timm/test_vit")
