"""Runs replayed from their checkpoints: what becomes of them, parts of them, and words that are wrong."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
import torch
from replay_runs import COSTS, Wide, content, pixels, save, tensors, write_data
from torch import Tensor

from jepa_monitor import DensityMonitor, ScoreOptions
from jepa_monitor.cli import RefusedError, Replay, ReplaySettings, looking, read_replay, replay_run
from jepa_monitor.cli.entry import main
from jepa_monitor.cli.kept_looks import read_look
from jepa_monitor.encoders import Embedder
from jepa_monitor.jacobian.engine import spectra

QUICK = ReplaySettings(
    max_probe_samples=8, max_embedding_samples=40, polarity_samples=0, patience_steps=10,
    detectors=["knn"], pictures=False,
)  # fmt: skip
WORDS = [
    "--model", "replay_runs:body", "--max-probe-samples", "8", "--max-embedding-samples", "40",
    "--polarity-samples", "0", "--patience-steps", "10", "--detectors", "knn", "--no-pictures",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with data, a run that stays healthy and one that collapses at step 12."""
    folder = tmp_path_factory.mktemp("runs")
    write_data(folder / "images.npz")
    for step in range(0, 17, 4):
        save(folder / "healthy", step)
    for step in range(0, 25, 4):
        save(folder / "broken", step, collapsed=step >= 12)
    return folder


def replayed(place: pathlib.Path, run: str, out: pathlib.Path, **changes: object) -> Replay:
    return replay_run(
        [str(place / run)], str(place / "images.npz"), out, model="replay_runs:body",
        settings=dataclasses.replace(QUICK, **changes),
    )  # fmt: skip


def test_a_healthy_run_and_one_that_collapses(place: pathlib.Path, tmp_path: pathlib.Path) -> None:
    healthy = replayed(place, "healthy", tmp_path / "a").closing
    assert (healthy.healthy, healthy.since, healthy.cause) == (True, 0, "")
    assert healthy.keep.step == 16
    assert healthy.path == str(place / "healthy/epoch=2-step=16.ckpt")
    broken = replayed(place, "broken", tmp_path / "b")
    closing = broken.closing
    assert closing.healthy is False
    assert closing.headline == "Complete collapse, which began at step 12"
    assert "It has lasted 12 steps, longer than an early collapse phase may (10)." in closing.cause
    assert "keeps the embeddings apart" in closing.cause
    assert (closing.since, closing.keep.step) == (12, 8)
    assert closing.path == str(place / "broken/epoch=1-step=8.ckpt")
    assert broken.said == [f"Alarm at step 24: {closing.cause}"]
    assert read_replay(tmp_path / "b") == broken


def test_epochs_are_called_epochs(place: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for epoch in range(4):
        (path,) = (place / "broken").glob(f"*step={4 * epoch + 8}.ckpt")
        content = torch.load(path, weights_only=True)
        torch.save(
            {"target_encoder": content["state_dict"], "epoch": epoch}, tmp_path / f"{epoch}.pth"
        )
    found = replay_run(
        [str(tmp_path)], str(place / "images.npz"), tmp_path / "out", model="replay_runs:body",
        settings=dataclasses.replace(QUICK, patience_steps=None, detectors=None),
    )  # fmt: skip
    assert found.closing.headline == "Complete collapse, which began at epoch 1"
    assert "lasted 1 epochs" in found.closing.cause
    assert found.closing.keep.step == 0
    assert dict(found.facts)["alarm's patience"] == "1 epochs"


@pytest.mark.slow
def test_numbers_do_not_depend_on_the_number_of_workers(
    place: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    one = replayed(place, "broken", tmp_path / "one")
    two = replayed(place, "broken", tmp_path / "two", workers=2)
    for first, second in zip(one.looks, two.looks, strict=True):
        assert first.keys() == second.keys()
        for tag in first.keys() - COSTS:
            assert second[tag] == pytest.approx(first[tag], rel=1e-9, abs=1e-9), tag
    assert one.closing == two.closing


def test_an_interrupted_replay_goes_on(
    place: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep, kept = looking.keep_look, []

    def interrupted(path: pathlib.Path, *rest: object) -> None:
        if len(kept) == 3:
            raise KeyboardInterrupt
        keep(path, *rest)  # type: ignore[arg-type]
        kept.append(path)

    undisturbed = replayed(place, "healthy", tmp_path / "whole")
    monkeypatch.setattr(looking, "keep_look", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replayed(place, "healthy", tmp_path / "parts")
    times = {path: path.stat().st_mtime_ns for path in kept}
    kept.clear()
    monkeypatch.setattr(
        looking, "keep_look", lambda path, *rest: (kept.append(path), keep(path, *rest))
    )
    found = replayed(place, "healthy", tmp_path / "parts")
    assert len(kept) == 2
    assert {path: path.stat().st_mtime_ns for path in times} == times
    for first, second in zip(undisturbed.looks, found.looks, strict=True):
        assert {t: first[t] for t in first.keys() - COSTS} == {
            t: second[t] for t in second.keys() - COSTS
        }
    replayed(place, "healthy", tmp_path / "parts", patience_steps=5)  # the story alone is told anew
    assert len(kept) == 2
    with pytest.raises(RefusedError, match=r"other settings \(`polarity_samples`: 0 → 2"):
        replayed(place, "healthy", tmp_path / "parts", polarity_samples=2)
    assert len(list((tmp_path / "parts").glob("events.out.tfevents.*"))) == 1


def test_more_rows_that_one_look_needs_are_those_of_all_later_ones(
    place: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the callback's monitor, whose sketch never takes fewer rows than before."""

    def demanding(
        options: ScoreOptions, images: Tensor, spectra_of: object, *_: object
    ) -> tuple[ScoreOptions, None]:
        # The third encoder wants all rows; told by its own Jacobians.
        value = float(spectra_of(images[:1], ScoreOptions()).embeddings.sum())  # type: ignore[operator]
        return (ScoreOptions() if value == wanted else options), None

    third = Wide()
    third.load_state_dict(torch.load(place / "healthy/epoch=1-step=8.ckpt")["state_dict"])
    first = tensors(pixels(50, 1)[:1])
    wanted = float(spectra(Embedder(third.encoder), first, ScoreOptions(), None).embeddings.sum())
    monkeypatch.setattr("jepa_monitor.insights.gathering.settle", demanding)
    found = replayed(place, "healthy", tmp_path)
    methods = [
        read_look(path).method  # type: ignore[union-attr]
        for path in sorted((tmp_path / "looks/kept").iterdir(), key=lambda p: int(p.name.split("=")[2].split(".")[0]))
    ]  # fmt: skip
    assert [method.split(",")[0] for method in methods] == [
        "sketch",
        "sketch",
        "exact",
        "exact",
        "exact",
    ]
    monitor = DensityMonitor(
        tensors(pixels(50, 1)[:40]), reference=tensors(pixels(70, 2)[torch.randperm(
            70, generator=torch.Generator().manual_seed(1))[:40]]), max_probe_samples=8, detectors=["knn"],
    )  # fmt: skip
    for step, look in zip(range(0, 17, 4), found.looks, strict=True):
        (path,) = (place / "healthy").glob(f"*step={step}.ckpt")
        module = Wide()
        module.load_state_dict(torch.load(path)["state_dict"])
        expected = monitor.evaluate(module.encoder).scalars["jepa_score/mean"]
        assert look["jepa_score/mean"] == pytest.approx(expected, rel=1e-6)


def test_a_checkpoint_that_comes_later_is_added(
    place: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    shutil.copytree(place / "healthy", tmp_path / "healthy")
    shutil.copy(place / "images.npz", tmp_path)
    (last,) = (tmp_path / "healthy").glob("*step=16.ckpt")
    later = last.rename(tmp_path / last.name)
    first = replayed(tmp_path, "healthy", tmp_path / "out")
    assert first.looks[-1]["step"] == 12
    shutil.copy2(later, last)
    second = replayed(tmp_path, "healthy", tmp_path / "out")
    assert [look["step"] for look in second.looks] == [0, 4, 8, 12, 16]
    assert second.looks[:-1] == first.looks


def test_the_command(
    place: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(place / "images.npz")
    for run in ("healthy", "broken"):
        words = [str(place / run / "*.ckpt"), "--data", data, "--out", str(tmp_path / run)]
        assert main(["replay", *words, *WORDS]) == 0
        out, err = capsys.readouterr()
        assert "verdict" in out
        assert f"Assumed: the probe is {data}:test, the training images are {data}:train" in err
        assert (
            "Assumed: the encoder's weights are those under 'state_dict.encoder' (--encoder)."
            in err
        )
    assert "Alarm at step 24" in err
    page = tmp_path / "page.html"
    pair = ["--compare", str(tmp_path / "healthy"), str(tmp_path / "broken"), "--page", str(page)]
    assert main(["replay", *pair]) == 0
    assert "collapse/normalized_std" in capsys.readouterr().out
    both = content(page)
    assert [run["headline"] for run in both["runs"]] == [
        "Healthy since step 0", "Complete collapse, which began at step 12"
    ]  # fmt: skip
    rows = {tag: values for tag, *values in both["numbers"]["rows"]}
    assert "jepa_score/mean, change since the first look" in rows
    assert "jepa_score/mean" not in rows  # a level, which two runs do not share
    expected = []
    for run in ("healthy", "broken"):
        found = read_replay(tmp_path / run)
        kept = next(look for look in found.looks if look["step"] == found.closing.keep.step)
        expected += [look["collapse/normalized_std"] for look in (kept, found.looks[-1])]
    assert rows["collapse/normalized_std"] == pytest.approx(expected, rel=1e-5)

    # The report of the event files is the same page, of one run and of two.
    for run in ("healthy", "broken"):
        own = (tmp_path / run / "run.html").read_text()
        assert main(["report", str(tmp_path / run), "--out", str(tmp_path / "again.html")]) == 0
        assert (tmp_path / "again.html").read_text() == own
        (told,) = content(tmp_path / "again.html")["runs"]
        closing = read_replay(tmp_path / run).closing
        assert (told["headline"], told["cause"]) == (closing.headline, closing.cause)
        assert (told["keep"]["step"], told["keep"]["sure"]) == (
            closing.keep.step,
            closing.keep.sure,
        )
    assert main(["report", str(tmp_path / "healthy"), str(tmp_path / "broken")]) == 0
    assert (tmp_path / "healthy" / "runs.html").read_text() == page.read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--data must be given"),
        (["x.ckpt", "--data", "images.npz"], "--out must be given"),
        (["none/*.ckpt"], "CHECKPOINTS must name files (.ckpt, "),
        (["ckpts", "--data", "gone"], "--data must be a folder"),
        (["ckpts", "--data", "few.npz"], "--data must hold at least 16 images"),
        (
            ["ckpts", "--data", "images.npz:test", "--reference", "two.npz"],
            "--reference must hold at least 3 images",
        ),
        (["ckpts", "--ood", "svhn"], "--ood must be NAME=DATA, got 'svhn'"),
        (["ckpts", "--pool", "max"], "--pool must be one of"),
        (["ckpts", "--workers", "0"], "--workers must be at least 1"),
        (["ckpts", "--insights", "many"], "--insights must be among"),
        (["ckpts", "--random-weights"], "--random-weights leaves nothing to replay"),
        (["ckpts", "--encoder", "head"], "CHECKPOINTS: none of 7 has an encoder"),
        (["ckpts", "--page", "p.html"], "--page is for --compare"),
        (["--compare", "a"], "--compare must be two folders, got 1"),
        (["--compare", "a", "b"], "--compare: there is no replay in 'a'"),
        (["ckpts", "--compare", "a", "b"], "--compare takes runs that were replayed"),
    ],
)
def test_wrong_arguments_are_refused_in_a_line(
    place: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, words: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ckpts").symlink_to(place / "broken")
    shutil.copy(place / "images.npz", "images.npz")
    np.savez("few.npz", images=pixels(15, 0))
    np.savez("two.npz", images=pixels(2, 0))
    given = ["--model", "replay_runs:body"]
    if len(words) > 1 and "--compare" not in words and "--out" not in message:
        given += ["--out", "out"]
        given += [] if "--data" in words else ["--data", "images.npz"]
    if words[:1] == ["none/*.ckpt"]:
        given += ["--out", "out", "--data", "images.npz"]
    try:
        status = main(["replay", *words, *given])
    except SystemExit as stopped:
        status = stopped.code
    err = capsys.readouterr().err
    assert status == 2
    assert err.startswith("jepa-monitor: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert "`" not in err
    assert not (tmp_path / "out" / "replay.json").exists()


def test_what_cannot_be_read_or_does_not_fit_is_listed_and_the_rest_goes_on(
    place: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ckpts = tmp_path / "ckpts"
    shutil.copytree(place / "healthy", ckpts)
    files = sorted(ckpts.iterdir(), key=lambda path: int(path.stem.split("step=")[1]))
    files[1].write_bytes(files[1].read_bytes()[:5000])
    content = torch.load(files[2])
    del content["state_dict"]["encoder.3.bias"]
    torch.save(content, files[2])
    content = torch.load(files[3])
    content["state_dict"] = {
        k: torch.full_like(v, torch.nan) for k, v in content["state_dict"].items()
    }
    torch.save(content, files[3])
    words = [str(ckpts), "--data", str(place / "images.npz"), "--out", str(tmp_path / "out")]
    assert main(["replay", *words, *WORDS]) == 3
    err = capsys.readouterr().err
    assert f"Left out: {files[1]} cannot be read" in err
    assert f"Left out: {files[2]} 1 of the encoder's 4 keys are missing (3.bias)" in err
    found = json.loads((tmp_path / "out" / "replay.json").read_text())
    assert [look["step"] for look in found["looks"]] == [0, 12, 16]
    assert found["looks"][1]["collapse/state"] == 2.0  # NaN throughout
    assert dict(found["facts"])["checkpoints"] == "3 of 5 looked at, step 0 to 16"
