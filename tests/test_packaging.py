"""What a user installs: the package alone at the top level, whatever folders the repository has."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    if not (ROOT / "pyproject.toml").exists():
        pytest.skip("the tests do not run from a checkout")
    # Of a copy: setuptools writes beside its sources, where other processes may build as well.
    folder, copy = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("sources")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("jepa_monitor", "callbacks", "recipes"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignored)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", folder, copy]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_wheel_has_one_top_level_package(wheel: pathlib.Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "jepa_monitor",
        "jepa_monitor-0.1.0.dist-info",
    }


def test_wheel_has_every_module_and_config(wheel: pathlib.Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = [
        path
        for folder, prefix in (
            ("jepa_monitor", ""),
            ("callbacks", "jepa_monitor/"),
            ("recipes", "jepa_monitor/"),
        )
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".yaml", ".typed", ".html") and "__pycache__" not in path.parts
        for path in [prefix + path.relative_to(ROOT).as_posix()]
    ]
    assert len(sources) > 20
    assert set(sources) <= names
    assert "jepa_monitor/py.typed" in names


def test_wheel_imports_from_elsewhere(wheel: pathlib.Path, tmp_path: pathlib.Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import jepa_monitor, jepa_monitor.metrics; from jepa_monitor import JepaScoreCallback; "
        "print(jepa_monitor.__file__, JepaScoreCallback.__module__)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, check=True, capture_output=True
    )
    file, module = done.stdout.decode().split()
    assert pathlib.Path(file).is_relative_to(tmp_path)
    assert module == "jepa_monitor.callbacks.jepa_score"


def test_a_plain_loop_does_not_import_lightning() -> None:
    code = "import sys, jepa_monitor; sys.exit('lightning' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# What a plain loop has no use for: the imports take seconds.
DEAR = ("lightning", "matplotlib", "scipy", "sklearn", "tensorboard", "timm", "torchmetrics")


def test_nothing_dear_is_imported_that_a_plain_loop_does_not_need() -> None:
    code = (
        "import torch; from jepa_monitor import DensityMonitor, ScoreOptions, jepa_score, log_density; "
        "data = torch.rand(40, 3, 8, 8); "
        "encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4)); "
        "monitor = DensityMonitor(data, reference=data / 2, polarity_samples=2); "
        "assert monitor.evaluate(encoder).scalars['outliers/knn'] >= 0"
        f"; import sys; print(*(set(sys.modules) & set({DEAR!r})))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert done.stdout.split() == []
