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
from jepa_monitor.cli import ModelSettings, RefusedError, Settings, app, read_table

QUICK = ["--model", "cli_helpers:encoder", "--polarity-samples", "0"]


def test_every_option_of_the_records_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        app.main(["score", "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for record in (ScoreOptions, Settings, ModelSettings):
        for field in dataclasses.fields(record):
            assert f"--{field.name.replace('_', '-')}" in text
    assert "  jepa-monitor score --model timm/vit_small" in text
    with pytest.raises(SystemExit) as stopped:
        app.main(["score", "--wrong"])
    assert stopped.value.code == 2
    assert "[--max-memory" in capsys.readouterr().err


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
    assert app.main(words) == 0
    first, progress = capsys.readouterr()
    assert re.search(r"scores .*12/12 +[0-9.]+/s +0:00:00", progress)  # images a second, time left
    assert "images scored" in first
    assert "12" in first
    assert "a/" in first  # of the least likely
    assert app.main(words) == 0  # it is all there
    assert capsys.readouterr().out == first
    assert app.main([*words, "--eps", "1e-3"]) == 2
    assert "options.eps" in capsys.readouterr().err
    (tmp_path / "data" / "a" / "bad.png").write_bytes(b"bad")
    assert app.main([*words, "--overwrite"]) == 3
    assert "1 could not be read" in capsys.readouterr().out
    assert app.main([*words, "--overwrite", "--strict"]) == 1
    assert "'a/bad.png' is no image" in capsys.readouterr().err
    assert len(read_table(tmp_path / "s.parquet")) == 12


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--eps", "0"], "`eps` must be finite and above 0"),
        (["--limit", "0"], "`limit` must be at least 1"),
        (["--method", "guess"], "`method` must be one of"),
        (["--model", "nothing"], "`model` must be timm/NAME"),
        (["--data", "nowhere"], "'nowhere' does not exist"),
        (["--device", "nonsense"], "`device` 'nonsense' cannot be used"),
        (["--out", "x.txt"], "`out` must end in"),
    ],
)
def test_wrong_arguments_are_refused(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    make_folder(tmp_path / "data", 2)
    given = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "s.csv")]
    assert app.main(["score", *QUICK, *given, *words]) == 2
    assert message in capsys.readouterr().err


def test_interrupted_it_says_so(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "score_dataset", interrupted)
    assert app.main(["score", *QUICK, "--data", ".", "--out", str(tmp_path / "s.csv")]) == 130
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
    assert app.main(["score", *words, "--out", str(tmp_path / "one.parquet")]) == 3
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
