"""The command itself: options, exit status, what it prints; several processes."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
from cli_helpers import make_folder

from jepa_monitor import ScoreOptions
from jepa_monitor.cli import ModelSettings, RefusedError, Settings, read_table
from jepa_monitor.cli.entry import main

QUICK = ["--model", "cli_helpers:encoder", "--polarity-samples", "0"]


def test_every_option_of_the_records_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["score", "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for record in (ScoreOptions, Settings, ModelSettings):
        for field in dataclasses.fields(record):
            assert f"--{field.name.replace('_', '-')}" in text
    assert "  jepa-monitor score --model timm/vit_small" in text
    with pytest.raises(SystemExit) as stopped:
        main(["score", "--model", "m", "--data", "d", "--out", "o", "--wrong"])
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("jepa-monitor: error: ")
    assert "--wrong" in err
    assert err.count("\n") == 1


def test_exit_status_and_closing_table(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_folder(tmp_path / "data", 12)
    words = [
        "score",
        *QUICK,
        "--data",
        str(tmp_path / "data"),
        "--out",
        str(tmp_path / "s.parquet"),
    ]
    assert main(words) == 0
    first, progress = capsys.readouterr()
    assert re.search(r"scores .*12/12 +[0-9.]+/s +0:00:00", progress)  # images a second, time left
    assert "images scored" in first
    assert "12" in first
    assert "a/" in first  # of the least likely
    assert main(words) == 0  # it is all there
    assert capsys.readouterr().out == first
    assert main([*words, "--eps", "1e-3"]) == 2
    assert "--eps: 1e-06 → 0.001" in capsys.readouterr().err
    (tmp_path / "data" / "a" / "bad.png").write_bytes(b"bad")
    assert main([*words, "--overwrite"]) == 3
    assert "1 could not be read" in capsys.readouterr().out
    assert main([*words, "--overwrite", "--strict"]) == 1
    assert "'a/bad.png' is no image" in capsys.readouterr().err
    assert len(read_table(tmp_path / "s.parquet")) == 12


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--eps", "0"], "--eps must be finite and above 0"),
        (["--eps", "nan"], "--eps must be finite and above 0"),
        (["--limit", "0"], "--limit must be at least 1"),
        (["--limit", "1"], "--limit must be at least 2 without --reference"),
        (["--method", "guess"], "--method must be one of"),
        (["--method", "exact", "--rows", "4"], "--rows is for --method sketch"),
        (["--rows", "1000"], "--rows must be at most the width of the embeddings, 8"),
        (["--rows", "many"], "--rows must be an integer, got 'many'"),
        (["--seed", "-1"], "--seed must be from 0"),
        (["--seed", "9" * 30], "--seed must be from 0"),
        (["--workers", "-1"], "--workers must be at least 0"),
        (["--workers", "1000"], "--workers must be at most"),
        (["--batch-size", "foo"], "--batch-size must be a number of images or auto, got 'foo'"),
        (["--max-memory", "much"], "--max-memory must be bytes, such as 500MB or 2GiB"),
        (["--mean", "0.5"], "--mean and --std must be given together"),
        (["--mean", "a", "--std", "1"], "--mean must be numbers, got 'a'"),
        (["--mean", "nan", "--std", "1"], "--mean must be finite"),
        (["--model", "nothing"], "--model must be timm/NAME"),
        (["--model", "cli_helpers:failed"], "--model has parameters that are NaN"),
        (["--data", "nowhere"], "--data must be a folder"),
        (["--reference", "nowhere"], "--reference must be a folder"),
        (["--device", "nonsense"], "--device 'nonsense' cannot be used"),
        (["--out", "x.txt"], "--out must end in"),
        (["--out", "/proc/x.csv"], "--out: nothing can be written to '/proc'"),
        (["--random-weights"], "--random-weights is for timm/NAME"),
        (["--convert", "false"], "unrecognized arguments: false"),
    ],
)
def test_wrong_arguments_are_refused(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    make_folder(tmp_path / "data", 2)
    given = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "s.csv")]
    try:
        status = main(["score", *QUICK, *given, *words])
    except SystemExit as stopped:
        status = stopped.code
    printed, err = capsys.readouterr()
    assert status == 2
    assert err.startswith("jepa-monitor: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert "`" not in err
    assert printed == ""
    assert [path.name for path in tmp_path.iterdir()] == ["data"]  # refused before any work


def test_interrupted_it_says_so(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("jepa_monitor.cli.scoring.score_dataset", interrupted)
    assert main(["score", *QUICK, "--data", ".", "--out", str(tmp_path / "s.csv")]) == 130
    assert "goes on from here" in capsys.readouterr().err


def launch(processes: int, words: list[str]) -> list[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*torchrun, "--nproc-per-node", str(processes), "-m", "jepa_monitor", "score", *words]


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "batch_size"), [(2, "3"), (3, "3"), (4, "8")])
def test_several_processes_make_the_same_rows(
    tmp_path: pathlib.Path, processes: int, batch_size: str
) -> None:
    make_folder(tmp_path / "data", 18)
    (tmp_path / "data" / "a" / "bad.png").write_bytes(b"bad")
    words = [
        "--model", "cli_helpers:encoder", "--polarity-samples", "2", "--batch-size", batch_size,
        "--max-memory", "100000000", "--data", str(tmp_path / "data"),
    ]  # fmt: skip
    assert main(["score", *words, "--out", str(tmp_path / "one.parquet")]) == 3
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parent)}
    options = {"env": environment | {"OMP_NUM_THREADS": "1"}, "capture_output": True, "text": True}

    def check(out: pathlib.Path, ended: object) -> None:
        assert read_table(out).equals(read_table(tmp_path / "one.parquet")), ended
        errors = [path.with_suffix(".errors.jsonl") for path in (out, tmp_path / "one.parquet")]
        assert errors[0].read_text() == errors[1].read_text()
        assert not out.with_suffix(".unfinished").exists()

    out = tmp_path / "many.parquet"
    many = launch(processes, [*words, "--out", str(out)])
    check(out, subprocess.run(many, check=False, timeout=300, **options))

    out = tmp_path / "killed.parquet"
    launcher = subprocess.Popen(
        launch(processes, [*words, "--out", str(out)]),
        env=options["env"],
        stderr=subprocess.DEVNULL,
    )
    while launcher.poll() is None and not list(tmp_path.glob("killed.unfinished/scores/*.npz")):
        time.sleep(0.05)
    listed = ["ps", "-o", "pid=", "--ppid", str(launcher.pid)]
    workers = subprocess.run(listed, check=False, capture_output=True, text=True).stdout.split()
    for worker in workers[-1:]:
        os.kill(int(worker), signal.SIGKILL)  # torchrun ends the others
    launcher.wait(300)
    fewer = launch(processes - 1, [*words, "--out", str(out)])
    check(out, subprocess.run(fewer, check=False, timeout=300, **options))


def test_refusals_are_errors_of_value() -> None:
    assert issubclass(RefusedError, ValueError)
