"""Whatever happens, the command ends in one line and an exit status, and its help comes at once."""

from __future__ import annotations

import dataclasses
import errno
import inspect
import os
import pathlib
import subprocess
import sys
import urllib.error

import pytest
import timm
from cli_helpers import make_folder
from torchvision import datasets

from jepa_monitor import ScoreOptions
from jepa_monitor.cli import (
    ModelSettings,
    Settings,
    UnreachableError,
    compare,
    curate,
    read_table,
    report,
)
from jepa_monitor.cli.app import COMMANDS
from jepa_monitor.cli.entry import main

QUICK = ["--model", "cli_helpers:encoder", "--polarity-samples", "0"]
# Imports take seconds; a name on this list is imported when something is computed, not before.
HEAVY = (
    "torch",
    "numpy",
    "pyarrow",
    "rich",
    "torchvision",
    "timm",
    "lightning",
    "PIL",
    "jsonargparse",
)


def one_line(err: str) -> str:
    """Check the style of an error, and return what it says."""
    assert err.startswith("jepa-monitor: error: ")
    assert err.count("\n") == 1
    return err.removeprefix("jepa-monitor: error: ").strip()


def help_of(capsys: pytest.CaptureFixture[str], command: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "words", [["--help"], *([name, "--help"] for name in COMMANDS), ["score", "--rows", "x"]]
)
def test_help_and_errors_need_no_heavy_import(words: list[str]) -> None:
    code = (
        "import sys\n"
        "from jepa_monitor.cli.entry import main\n"
        f"try: main({words!r})\n"
        "except SystemExit: pass\n"
        f"sys.exit(','.join(name for name in {HEAVY!r} if name in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"  {name}" in text
        assert command.summary in text
    assert "Args:" not in text
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "jepa-monitor 0.1.0\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "a command is missing: one of score, report, compare, curate"),
        (["scor"], "there is no command 'scor': did you mean score?"),
        (["--rows"], "there is no command '--rows': one of score"),
    ],
)
def test_a_word_that_is_no_command(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(words) == 2
    assert message in one_line(capsys.readouterr().err)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_all_defaults_and_examples(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    text = help_of(capsys, command)
    assert f"jepa-monitor {command} " in text.partition("examples:")[2]
    parser = COMMANDS[command].parser(command)
    explained = {action.dest: action.help or "" for action in parser._actions}
    for option in parser.options:
        name = option.name.upper() if option.positional else "--" + option.name.replace("_", "-")
        assert f" {name} " in text.replace(",", " ")
        said = explained[option.name]
        assert option.positional or "default: " in said or "(required)" in said, name
    assert "`" not in text
    assert "None" not in text


def test_help_states_the_defaults_that_hold(capsys: pytest.CaptureFixture[str]) -> None:
    explained = {a.dest: a.help or "" for a in COMMANDS["score"].parser("score")._actions}
    for record in (ModelSettings, ScoreOptions, Settings):
        for field in dataclasses.fields(record):
            shown = "auto" if field.name == "method" else field.default
            if shown is not None and not isinstance(shown, bool):
                assert f"(default: {shown})" in explained[field.name], field.name
    for function in (report, compare, curate):
        text = help_of(capsys, function.__name__)
        for parameter in inspect.signature(function).parameters.values():
            if isinstance(parameter.default, float | str) and parameter.default != "":
                assert f"(default: {parameter.default})" in text, parameter.name


def test_lists_and_sizes_as_people_write_them() -> None:
    parser = COMMANDS["score"].parser("score")
    must = ["--model", "m", "--data", "d", "--out", "o"]
    for words in (["0.1", "-0.2", "3"], ["0.1,-0.2,3"], ["[0.1,-0.2,3]"]):
        assert parser.parse([*must, "--mean", *words])["mean"] == [0.1, -0.2, 3.0]
    for text, size in (
        ("1000", 1000), ("1GB", 10**9), ("1.5GiB", 1.5 * 2**30), ("500 MB", 5 * 10**8), ("2k", 2000),
    ):  # fmt: skip
        assert parser.parse([*must, "--max-memory", text])["max_memory"] == size
    given = parser.parse([*must, "--max_memory", "5", "--no-convert", "--strict"])
    assert given["max_memory"] == 5
    assert given["convert"] is False
    assert given["strict"] is True


@pytest.mark.parametrize("command", ["report", "compare", "curate"])
def test_wrong_values_of_the_other_commands(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    make_folder(tmp_path / "data", 12)
    scores = str(tmp_path / "s.parquet")
    assert main(["score", *QUICK, "--data", str(tmp_path / "data"), "--out", scores]) == 0
    capsys.readouterr()
    before = sorted(tmp_path.iterdir())
    wrong = {
        "report": [
            (["gone.parquet"], "RESULTS: there is no file 'gone.parquet'"),
            ([], "RESULTS must be a table, the folder of a run, or two folders, got 0: nothing"),
            ([scores, scores], "RESULTS must be a table, the folder of a run, or two folders, got 2"),
            ([str(tmp_path)], "RESULTS: there are no event files in"),
            (["s.txt"], "RESULTS must end in one of .parquet"),
            ([scores, "--thumbnails", "0"], "--thumbnails must be at least 1"),
            ([scores, "--images", "x"], "--images must be an integer"),
            ([scores, "--rank-by", "label"], "--rank-by must be one of jepa_score"),
            ([scores, "--data", "nowhere"], "--data must be a folder"),
            ([scores, "--out", "/proc/p.html"], "--out: nothing can be written to '/proc'"),
            ([scores, "--out", str(tmp_path)], "--out must be a file"),
        ],
        "compare": [
            ([scores], "the following arguments are required: SECOND"),
            ([scores, "gone.parquet"], "SECOND: there is no file 'gone.parquet'"),
            ([scores, scores, "--rank-by", "label"], "--rank-by must be one of jepa_score"),
            ([scores, scores, "--out", "x.txt"], "--out must end in one of .parquet"),
            ([scores, scores, "--page", "/proc/p.html"], "--page: nothing can be written"),
        ],
        "curate": [
            ([scores, "k.txt", "--low", "2"], "--low must lie in [0, 1], got 2.0"),
            ([scores, "k.txt", "--low", "0.5", "--high", "0.5"], "--low must be below --high"),
            ([scores, "k.txt", "--budget", "0"], "--budget must be at least 1"),
            ([scores, "k.zip"], "OUT must end in one of .txt"),
            ([scores, "/proc/k.txt"], "OUT: nothing can be written to '/proc'"),
            ([scores, "/proc/k"], "OUT: nothing can be written to '/proc'"),
            ([scores, str(tmp_path / "k.txt"), "--data", str(tmp_path)], "--data: there is no file"),
        ],
    }  # fmt: skip
    for words, message in wrong[command]:
        try:
            status = main([command, *words])
        except SystemExit as stopped:
            status = stopped.code
        assert status == 2, words
        assert message in one_line(capsys.readouterr().err), words
        assert sorted(tmp_path.iterdir()) == before, words


def test_a_table_that_is_damaged(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in (
        ("a.parquet", b"PAR1 and no more"),
        ("b.parquet", b""),
        ("c.csv", b"\xff\xfe\x00"),
        ("d.csv", b""),
        ("e.jsonl", b"\xff"),
        ("f.jsonl", b"[1]\n"),
        ("g.jsonl", b"{\n"),
        ("h.jsonl", b""),
        ("i.csv", b"path,jepa_score\na.png,high\n"),
    ):
        (tmp_path / name).write_bytes(content)
        assert main(["report", str(tmp_path / name)]) == 2, name
        assert name in one_line(capsys.readouterr().err), name


def test_a_full_disk_is_one_line_and_loses_nothing(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path / "data", 12)
    words = ["score", *QUICK, "--batch-size", "4", "--data", str(tmp_path / "data")]
    out = tmp_path / "s.parquet"
    write, left = os.fsync, [5]

    def full(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    assert main([*words, "--out", str(out)]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert errors == [
        "jepa-monitor: error: No space left on device. What is done is kept: the same command goes on"
    ]
    assert len(list((tmp_path / "s.unfinished").rglob("*.npz"))) >= 1
    monkeypatch.setattr(os, "fsync", write)
    assert main([*words, "--out", str(out)]) == 0
    assert len(read_table(out)) == 12


class OfflineError(OSError):
    """As huggingface_hub has it: it wraps what the connection raised."""


def unreachable(*_: object, **__: object) -> None:
    try:
        raise urllib.error.URLError("Name or service not known")
    except OSError as error:
        raise OfflineError("We couldn't connect to 'https://huggingface.co'") from error


def not_there(*_: object, **__: object) -> None:
    raise urllib.error.HTTPError("https://huggingface.co/x", 404, "Not Found", {}, None)  # type: ignore[arg-type]


def test_a_hub_that_does_not_answer_is_no_wrong_argument(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path / "data", 4)
    name = "timm/test_vit.r160_in1k"
    words = ["score", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "s.csv")]
    monkeypatch.setattr(timm, "create_model", unreachable)
    assert main([*words, "--model", name]) == 1
    text = one_line(capsys.readouterr().err)
    assert text.startswith(
        f"--model: {name!r} cannot be fetched: OfflineError: We couldn't connect"
    )
    monkeypatch.setattr(timm, "create_model", not_there)
    assert main([*words, "--model", name]) == 2
    assert "cannot be loaded" in one_line(capsys.readouterr().err)


def test_a_data_set_that_cannot_be_fetched_is_no_wrong_argument(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.MNIST, "download", unreachable)
    words = ["score", *QUICK, "--out", str(tmp_path / "s.csv"), "--download"]
    data = f"torchvision/MNIST:test@{tmp_path}"
    assert main([*words, "--data", data]) == 1
    assert "cannot be fetched" in one_line(capsys.readouterr().err)
    assert issubclass(UnreachableError, OSError)


BLOCKED = """
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: (
    None if name.partition(".")[0] in {missing!r} else find_spec(name, *rest)
)
"""


def blocked(tmp_path: pathlib.Path, missing: tuple[str, ...]) -> dict[str, str]:
    """Play an environment that lacks some packages, in every Python that it starts."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKED.format(missing=missing))
    root = str(pathlib.Path(__file__).parents[2])
    here = str(pathlib.Path(__file__).parent)
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), root, here])}


@pytest.mark.parametrize("missing", ["pyarrow", "rich", "torchvision"])
@pytest.mark.parametrize("command", ["score", "report", "compare", "curate"])
def test_without_the_extra_a_sentence_says_what_to_install(
    tmp_path: pathlib.Path, command: str, missing: str
) -> None:
    make_folder(tmp_path / "data", 4)
    words = {
        "score": [*QUICK, "--data", str(tmp_path / "data"), "--out", str(tmp_path / "s.csv")],
        "report": ["s.parquet"],
        "compare": ["a.parquet", "b.parquet"],
        "curate": ["s.parquet", "k.txt"],
    }[command]
    done = subprocess.run(
        [sys.executable, "-m", "jepa_monitor", command, *words],
        env=blocked(tmp_path, (missing,)), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert one_line(done.stderr) == f"this command needs {missing}: pip install 'jepa-monitor[cli]'"


@pytest.mark.parametrize("missing", ["jsonargparse", "sklearn", "torchvision", "rich"])
def test_without_theirs_so_do_the_recipes(tmp_path: pathlib.Path, missing: str) -> None:
    for recipe in ("ijepa", "known_density"):
        done = subprocess.run(
            [sys.executable, "-m", f"jepa_monitor.recipes.{recipe}", "--help"],
            env=blocked(tmp_path, (missing,)), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert done.stderr == f"this recipe needs {missing}: pip install 'jepa-monitor[recipes]'\n"


def test_from_python_the_error_says_so_too(tmp_path: pathlib.Path) -> None:
    code = "from jepa_monitor.cli import score_dataset"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=blocked(tmp_path, ("pyarrow",)), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr.splitlines()[-1].endswith(
        "Error: jepa_monitor.cli.score_dataset needs pyarrow: pip install 'jepa-monitor[cli]'"
    )
