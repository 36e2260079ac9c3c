"""Advice: the rule as it is written, of nothing but the past, in words, and low where all embeddings are one."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from helpers import mlp, smooth_images

from jepa_monitor import DensityMonitor
from jepa_monitor.insights.registry import default_insights
from jepa_monitor.monitor.advice import Advisor, advice_sentence
from jepa_monitor.monitor.verdict import judge


def told(
    values: list[float | None], advisor: Advisor | None = None, first: int = 0
) -> list[dict[str, float]]:
    """What an advisor says of looks every 10 steps; ``None`` for a look without views."""
    advisor = advisor or Advisor()
    found = []
    for n, value in enumerate(values, first):
        scalars = {"collapse/state": 0.0} | ({} if value is None else {"views/retrieval": value})
        found.append(advisor.update(10 * n, scalars))
    return found


def some(count: int, seed: int = 0) -> list[float | None]:
    draw = random.Random(seed)
    return [draw.random() for _ in range(count)]


def test_the_rule_is_that_of_the_document() -> None:
    values = [x for x in some(9) if x is not None]
    quality = [look["advice/quality"] for look in told([*values])]
    for n, found in enumerate(quality):
        # The first look has the weight that is left over.
        weights = [(2 / 3) ** n, *((2 / 3) ** (n - i) / 3 for i in range(1, n + 1))]
        assert sum(weights) == pytest.approx(1)
        assert found == pytest.approx(sum(w * x for w, x in zip(weights, values, strict=False)))
    looks = told([*values])
    for n, look in enumerate(looks):
        assert look["advice/best"] == max(quality[: n + 1])
        assert look["advice/step"] == 10 * quality.index(max(quality[: n + 1]))


def test_later_looks_change_nothing_and_a_resumed_run_goes_on() -> None:
    values = some(12)
    whole = told(values)
    for n in (1, 5, 11):
        assert told(values[:n]) == whole[:n]
        first = Advisor()
        told(values[:n], first)
        second = Advisor()
        second.load_state_dict(first.state_dict())
        assert told(values[n:], second, n) == whole[n:]


def test_values_are_between_0_and_1_and_the_later_of_equals_is_kept() -> None:
    assert told([-0.01])[0] == {"advice/quality": 0.0, "advice/best": 0.0, "advice/step": 0.0}
    assert told([1.0, 1.0, 1.0])[-1] == {
        "advice/quality": 1.0,
        "advice/best": 1.0,
        "advice/step": 20.0,
    }
    assert [look["advice/step"] for look in told([0.3] * 4)] == [0, 10, 20, 30]


def test_a_look_without_views_is_passed_over_and_one_at_the_same_step_takes_its_place() -> None:
    without = told([0.2, None, 0.5, None])
    assert without[1] == without[3] == {}
    assert without[2]["advice/quality"] == pytest.approx(0.2 + 0.3 / 3)
    advisor = Advisor()
    told([0.2, 0.9], advisor)
    again = advisor.update(10, {"views/retrieval": 0.5})
    assert again == told([0.2, 0.5])[1]
    assert advisor.update(10, {}) == {}
    assert advisor.update(20, {"views/retrieval": 0.8})["advice/quality"] == pytest.approx(0.4)
    with pytest.raises(ValueError, match="must not decrease: got 10 after 20"):
        advisor.update(10, {"views/retrieval": 0.5})
    assert advisor.update(20, {"views/retrieval": 0.8})["advice/quality"] == pytest.approx(0.4)


def test_the_reason_is_said_and_no_accuracy_promised() -> None:
    rising = {**told([0.1, 0.4])[-1], "views/retrieval_pixels": 0.05}
    assert advice_sentence(rising).startswith("Advice: keep this one (advice/quality 0.2)")
    falling = {**told([0.1, 0.7, 0.1])[-1], "views/retrieval_pixels": 0.05}
    assert "keep the look at step 10 (advice/quality 0.3), not this one (0.23)" in advice_sentence(
        falling
    )
    poor = falling | {"views/retrieval_pixels": 0.3}
    assert advice_sentence(poor) == (
        "No advice: views of an image find each other hardly more often (0.3 at best) than those of raw pixels "
        "(0.3), which tells no look from another."
    )
    # 0.3 against 0.22 of pixels: by more than ± 0.05, and by less than ± 0.1.
    for half, founded in ((0.05, True), (0.1, False)):
        ends = {"views/retrieval_low": 0.2 - half, "views/retrieval_high": 0.2 + half}
        said = advice_sentence(falling | ends | {"views/retrieval_pixels": 0.22})
        assert said.startswith("No advice") is not founded
    assert advice_sentence({"views/retrieval": 0.5}) == ""
    # 0.30 and 0.23 are further apart than ± 0.05, and less far than ± 0.1.
    known = falling | {"views/retrieval_low": 0.05, "views/retrieval_high": 0.15}
    assert advice_sentence(known) == advice_sentence(falling)
    vague = falling | {"views/retrieval_low": 0.0, "views/retrieval_high": 0.2}
    assert "no look stands out" in advice_sentence(vague)
    assert "highest at step 10 (0.3), above this one (0.23)" in advice_sentence(vague)
    assert "(± 0.1)" in advice_sentence(vague)
    collapsed = advice_sentence(vague | {"collapse/state": 1.0})  # which is no noise
    assert collapsed == advice_sentence(falling)
    scalars = falling | {"collapse/state": 0.0, "collapse/alarm": 0.0}
    assert advice_sentence(falling) in str(judge(scalars, default_insights(0)))
    assert "accura" not in str(judge(scalars, default_insights(0)))


def test_a_collapsed_encoder_scores_low_in_a_run() -> None:
    watch = DensityMonitor(smooth_images(32), max_probe_samples=2).watch(
        max_overhead=None, patience_steps=2
    )
    sound = mlp(192, 16)
    point, line = torch.nn.Linear(192, 16), torch.nn.Linear(192, 16)
    with torch.no_grad():
        point.weight.zero_()
        line.weight.copy_(line.weight[:1] * torch.ones(16, 1))

    def flat(layer: torch.nn.Linear) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Flatten(), layer)

    encoders = [sound, sound, sound, *[flat(point)] * 6]
    with pytest.warns(UserWarning, match="complete collapse"):
        looks = [watch(encoder, step).scalars for step, encoder in enumerate(encoders)]
    quality = [look["advice/quality"] for look in looks]
    assert min(quality[:3]) > 0.2
    assert all(a > b for a, b in itertools.pairwise(quality[2:]))
    # Nothing is left but what the average remembers: a third less at each look.
    assert quality[-1] == pytest.approx(quality[2] * (2 / 3) ** 6)
    assert looks[-1]["advice/step"] == 2
    assert looks[-1]["collapse/alarm"] == 1
    one = DensityMonitor(smooth_images(32), max_probe_samples=2).watch()
    assert one(flat(line), 0).scalars["advice/quality"] < 0.2
