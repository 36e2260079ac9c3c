#!/usr/bin/env bash
# Runs the tests of the last commit with the lowest versions that pyproject.toml allows, in a virtual
# environment of its own. Arguments go to pytest. PYTHON chooses the interpreter (default: python3.10,
# the lowest too), VENV keeps the environment for the next time.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
venv=${VENV:-$folder/venv}
source_tree=$folder/jepa-monitor

mkdir "$source_tree"
git archive HEAD | tar -x -C "$source_tree"

# "torch>=2.6" becomes torch==2.6; linters have no part in what is tested, nor what integration.sh tests.
mapfile -t lowest < <(
    sed -nE 's/^ +"([A-Za-z0-9_-]+(\[[a-z]+\])?)>=([0-9.]+)".*/\1==\3/p' pyproject.toml |
        grep -vE '^(mypy|ruff|setuptools|transformers|tokenizers|open_clip_torch)=='
)

[ -d "$venv" ] || "${PYTHON:-python3.10}" -m venv "$venv"
# shellcheck source=/dev/null
source "$venv/bin/activate"
# lightning asks for no version of pytorch-lightning: the same one, then.
lowest+=("$(printf '%s\n' "${lowest[@]}" | sed -n 's/^lightning==/pytorch-lightning==/p')")
# setuptools below 81 still has pkg_resources, which that old a Lightning imports.
pip install --quiet "setuptools>=77,<81" "${lowest[@]}"
pip install --quiet --no-deps --no-build-isolation -e "$source_tree"

python --version
pip list 2>/dev/null | grep -iE '^(torch|torchvision|(pytorch-)?lightning|timm|torchmetrics|tensorboard|numpy|matplotlib|scikit-learn|scipy|jsonargparse|pyarrow|rich) '
cd "$source_tree"
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} pytest "$@"
