"""The shell snippets of the documents are run as they are written, at tiny size."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import stat
import subprocess
import sys

import numpy as np
import pytest
from helpers import images
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])

pytestmark = pytest.mark.skipif(
    not (ROOT / "benchmarks").is_dir(), reason="the tests do not run from a checkout"
)

# What makes a command small; it comes last, so that it overrides what the document says.
RECIPE = [
    "--trainer.max_epochs=2", "--trainer.limit_train_batches=1", "--trainer.accelerator=cpu",
    "--trainer.precision=32-true", "--trainer.enable_progress_bar=false", "--data.num_workers=0",
    "--data.batch_size=16", "--monitor.max_probe_samples=4", "--monitor.max_embedding_samples=32",
    "--monitor.polarity_samples=2",
]  # fmt: skip
TINY: dict[str, list[str]] = {
    **dict.fromkeys(("ijepa", "mae", "lejepa", "vicreg", "dinov2"), RECIPE),
    "diet": [*RECIPE, "--old.epochs=1", "--old_monitor.max_probe_samples=4"],
    "llm_jepa": [
        *RECIPE,
        "--exact.pairs=8",
        "--data.train_pairs=48",
        "--data.held_out=80",
        "--trainer.limit_val_batches=1",
    ],
    "text_pairs": ["--seeds=1", "--arms", "lm", "--jobs=1", "--tiny"],
    "grokking": ["--seeds=1", "--steps=6", "--looks=2"],
    "sae": [
        "--images=24",
        "--encoder_epochs=0",
        "--atoms=24",
        "--k=2",
        "--epochs=1",
        "--image_size=16",
    ],
    "counting": ["--seeds", "0", "--steps=6", "--looks=2"],
    "known_density": ["--seeds=1", "--jobs=1", "--cases=1"],
    "gradients": [
        "--encoders=resnet18_32",
        "--images=1",
        "--rows=2",
        "--repeats=1",
        "--directions=1",
    ],
    "attention": ["--seeds=1", "--epochs=1", "--train=256"],
    "identifiability": ["--steps", "0", "1"],
    "fog": ["--seeds=1", "--epochs=1", "--train=128", "--test=64"],
    "tf32": ["--images=3", "--steps=2"],
    "world": ["--epochs=1", "--clips=64", "--held_out=32"],
    "lanczos": ["--images=8", "--steps=2", "--seeds=1", "--references=64", "--tolerance=0"],
    "layers": ["--images=1", "--repeats=1"],
    "cost": ["--most=1", "--repeats=1"],
    "gpu": ["--tiny", "--device=cpu"],
    "leverage_cost": ["--images=1", "--repeats=1"],
    "noise_floor": [],
    "curricula": ["--cases", "fast", "--seeds", "0", "--tiny"],
    "contrast": ["--steps=2", "--images=12"],
    "normality": ["--looks=0.01"],
    "overhead": ["--batch=2", "--images=32", "--repeats=1"],
    "paper_claims": ["--images=4", "--reference=48"],
    "recipes_speed": ["--recipes", "lejepa", "--steps=12", "--repeats=1"],
    "score_agreement": ["--seeds=1"],
    "score_speed": ["--cases", "vit_ti8_32", "--images=1", "--repeats=1"],
    "scoring_throughput": ["--cases", "vit_ti8_32", "--images=2", "--repeats=1"],
    "shrinkage": [],
    "sketch_recipe": [],
    "sketch_trust": ["--steps=2"],
    "task_priors": ["--seeds=2", "--epochs=2"],
    "collapse_zoo": ["--show"],
    "keep": [],
    "influence": ["--seeds=1", "--steps=2"],
    "predictive": ["--seeds=1", "--epochs=1"],
    "objectives": ["--seeds=1", "--data=digits", "--alphas", "1"],
}
# What cannot be made small or offline: the flags of these are checked by tests/test_benchmarks.py.
LEFT_OUT = {
    "classes_from_views": "takes the folder of a run that trained for minutes",
    "alarm_noise": "simulates for minutes",
    "collapse_long": "trains for an hour",
    "sketch_search": "trains for 20 minutes",
    "curation": "scores thousands of images",
    "predictors": "trains for minutes, and takes Fashion-MNIST",
    "missing_term": "scores hundreds of images by all rows",
    "detectors": "takes the weights of other packages",
    "gallery": "trains for minutes",
    "screen": "takes the texts of another package",
    "perception": "takes the texts and the weights of other packages",
    "ssti": "takes the texts and the weights of other packages",
    "text": "takes the texts and the weights of other packages",
    "efficientnet-lite0": "takes the weights of other packages",
    "tokens": "trains, and takes the weights of another package",
    "mnist": "downloads",
    "timm/vit_small_patch16_dinov3.lvd1689m": "downloads",
    "domain": "trains for minutes, and takes the weights and images of other packages",
    "hf/HuggingFaceTB/SmolLM2-135M": "downloads",
    "dictionaries": "trains for minutes, and takes Fashion-MNIST",
}

SHIM = """
import json, os, sys
words, tiny, left_out = sys.argv[1:], json.loads(TINY), json.loads(LEFT_OUT)
name = words[1].rsplit(".", 1)[-1] if words[0] == "-m" else os.path.basename(words[0])[:-3]
if name in left_out or set(words) & set(left_out):
    sys.exit(0)
show = name != "collapse_zoo" and "--show" in words
words = [word for word in words if "\\u2026" not in word]
words += [] if show else tiny[name]
given = " ".join(words)
if "cifar10" in given and ".yaml" in given:
    words += ["--data=npz:IMAGES"]
if "--model.pretrained" in given:
    words += ["--model.backbone=vit_tiny_patch16_224", "--model.pretrained=false", "--data.image_size=32"]
if "--data.first_epochs" in given:
    words += ["--data.first_epochs=1"]
if name == "collapse_zoo":
    words = [words[0], "--show"]
os.execv(PYTHON, [PYTHON, *words])
"""


SMALL = """
import torch
from torch import nn
from torchvision.transforms import v2

def make():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3072, 24), nn.GELU(), nn.Linear(24, 8))
    return net, v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)])
"""


def snippets() -> dict[str, str]:
    """Every shell snippet that runs something of the package, by document and number."""
    found = {}
    for document in DOCUMENTS:
        blocks = re.findall(r"^```sh\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
        for number, block in enumerate(blocks, 1):
            if (
                re.search(r"jepa_monitor|jepa-monitor|benchmarks/", block)
                and "git clone" not in block
            ):
                found[f"{document.relative_to(ROOT).as_posix()}:{number}"] = block
    return found


def executable(path: pathlib.Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder in which the commands find what the documents speak of."""
    folder = tmp_path_factory.mktemp("place")
    programs = folder / "bin"
    programs.mkdir()
    shim = f"TINY = {json.dumps(TINY)!r}\nLEFT_OUT = {json.dumps(LEFT_OUT)!r}\n"
    executable(
        programs / "python", f"#!{sys.executable}\nPYTHON = {sys.executable!r}\n{shim}{SHIM}"
    )
    command = "import sys; from jepa_monitor.cli.entry import main; sys.exit(main())"
    executable(
        programs / "jepa-monitor", f'#!/bin/sh\nexec {sys.executable} {programs}/entry.py "$@"\n'
    )
    (programs / "entry.py").write_text(command)
    (folder / "small.py").write_text(SMALL)
    rows = [{"text": f"on 19{n}-01-01", "label": n % 2} for n in range(10, 60)]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name in ("pip", "pytest", "ruff", "mypy", "chromium"):
        executable(programs / name, "#!/bin/sh\n")
    for name in ("benchmarks", "recipes"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("lightning_logs/version_0", "runs/ijepa/version_0", "runs/a", "runs/b"):
        with SummaryWriter(str(folder / name)) as writer:
            for step in (0, 10):
                writer.add_scalar("monitor/images", 8, step)
                writer.add_scalar("collapse/state", 0, step)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (96, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(96) % 10
    arrays = {
        "train_images": pixels[:64], "train_labels": labels[:64],
        "test_images": pixels[64:], "test_labels": labels[64:],
        "classes": np.array(list("abcdefghij")),
    }  # fmt: skip
    for name in ("IMAGES", "cifar10_subset.npz"):
        with (folder / name).open("wb") as file:
            np.savez(file, **arrays)
    for split in ("photos", "PATH/one", "PATH/two"):
        (folder / split).mkdir(parents=True)
        for number, image in enumerate((images(20, len(split)) * 255).byte()):
            picture = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((32, 32))
            picture.save(folder / split / f"{number}.png")
    return folder


def run(place: pathlib.Path, script: str) -> str:
    environment = {
        **os.environ,
        "PATH": f"{place / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{place}",
        "JEPA_MONITOR_DATA": str(place),
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "Agg",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=place, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


# A folder of checkpoints, of a run that is over.
CKPTS = (
    "rm -rf runs ckpts; python -m jepa_monitor.recipes.lejepa; mkdir ckpts;"
    "cp runs/lejepa/version_0/checkpoints/last.ckpt ckpts; cp IMAGES images.npz"
)
# Images enough for closed forms: twice the numbers of one.
MANY = """rm -rf pictures; mkdir pictures; EXE -c "
import numpy as np
from PIL import Image
pixels = np.random.default_rng(0).integers(0, 256, (520, 16, 16, 3), dtype=np.uint8)
np.savez('cifar10.npz', train_images=pixels)
for n, image in enumerate(pixels):
    Image.fromarray(image).save(f'pictures/{n}.png')
"
""".replace("EXE", sys.executable)
CIFAR = "--config recipes/configs/lejepa_cifar10_cpu.yaml"
# What has to be there before: checkpoints of a recipe, tables of scores.
BEFORE = {
    "docs/theory.md:2": "rm -rf runs",
    "docs/sketching.md:1": "rm -rf runs; python -m jepa_monitor.recipes.ijepa --config recipes/configs/ijepa_digits.yaml",
    "docs/scoring.md:3": "rm -rf runs",
    "docs/claims.md:1": f"rm -rf runs; python -m jepa_monitor.recipes.lejepa {CIFAR}",
    **{f"docs/advise.md:{number}": MANY for number in (1, 2, 3, 4)},
    "docs/recipes/sae.md:1": "rm -rf runs; python -m jepa_monitor.recipes.lejepa",
    "docs/recipes/diet.md:2": "rm -rf runs; python -m jepa_monitor.recipes.lejepa --data digits",
    "README.md:2": CKPTS,
    "docs/replay.md:1": CKPTS,
    "docs/replay.md:2": (
        f"{CKPTS}; for run in a b; do jepa-monitor replay ckpts --data images.npz --out runs/replay_$run;"
        "done"
    ),
    "docs/scoring.md:2": (
        "rm -rf *.parquet keep.txt look; jepa-monitor score --model small:make --data photos --out scores.parquet;"
        "cp scores.parquet a.parquet; cp scores.parquet b.parquet"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("where", snippets())
def test_commands_run(where: str, place: pathlib.Path) -> None:
    for name in ("FILE", "CACHE"):  # what a snippet writes
        path = place / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if "npz:FILE" in snippets()[where]:
        shutil.copy(place / "IMAGES", place / "FILE")
    run(place, BEFORE.get(where, "true"))
    script = snippets()[where].replace("JEPA_MONITOR_DATA=…", "UNUSED=1")
    # The one model that has to be fetched: another takes its place.
    script = script.replace("timm/vit_small_patch14_dinov2.lvd142m", "small:make")
    run(place, script)


def test_every_script_has_a_size_or_a_reason() -> None:
    named = set(
        re.findall(r"(?:benchmarks/|jepa_monitor\.recipes\.)(\w+)", "\n".join(snippets().values()))
    )
    assert named <= set(TINY) | set(LEFT_OUT)
