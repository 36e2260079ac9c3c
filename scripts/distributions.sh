#!/usr/bin/env bash
# Builds wheel and source distribution, checks what PyPI would, and tries the wheel in bare environments: the
# core alone, and each extra alone. PYTHON chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"$python" -m venv "$folder/tools"
"$folder/tools/bin/pip" install --quiet build twine
"$folder/tools/bin/python" -m build --quiet --outdir "$folder/dist" .
"$folder/tools/bin/twine" check --strict "$folder"/dist/*
wheel=$(ls "$folder"/dist/*.whl)

try() { # extra, then what must run
    local venv=$folder/venv
    rm -rf "$venv"
    "$python" -m venv "$venv"
    "$venv/bin/pip" install --quiet "$wheel${1:+[$1]}"
    "$venv/bin/pip" check
    (cd "$folder" && PATH=$venv/bin:$PATH bash -euc "$2")
    echo "${1:-core}: fine"
}

score='import torch
from jepa_monitor import DensityMonitor, JepaScoreCallback, jepa_score
encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))
assert jepa_score(encoder, torch.rand(3, 3, 2, 2)).isfinite().all()
assert DensityMonitor(torch.rand(32, 3, 2, 2)).evaluate(encoder).scalars
JepaScoreCallback()'
try "" "python -c '$score'; jepa-monitor --help > /dev/null"
try cli 'jepa-monitor score --help > /dev/null'
try recipes 'python -m jepa_monitor.recipes.ijepa --help > /dev/null'
try hf 'python -c "import transformers, jepa_monitor"'
try text 'python -c "import transformers, tokenizers, jepa_monitor.encoders.token_encoder"'
try open-clip 'python -c "import open_clip, jepa_monitor"'

# The source distribution builds the same wheel.
"$folder/tools/bin/pip" wheel --quiet --no-deps --wheel-dir "$folder/again" "$folder"/dist/*.tar.gz
diff <(unzip -Z1 "$wheel" | sort) <(unzip -Z1 "$folder"/again/*.whl | sort)
echo "wheel and source distribution have the same files"
