#!/usr/bin/env bash
# Says which share of single mutations of the core (functional/, jacobian/, monitor/) the tests of the last
# commit notice, and shows the ones that they do not: on a random sample of SAMPLE mutants (default 300, SEED
# 0), drawn by mutmut without those of the text of messages. PARTS ("functional jacobian") and TESTS
# ("tests/functional") narrow it. It takes hours: run it under nice. PYTHON chooses the interpreter, VENV keeps
# the environment, WORK the working copy for the next time.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
venv=${VENV:-$folder/venv}
work=${WORK:-$folder/work}

[ -d "$venv" ] || "${PYTHON:-python3}" -m venv "$venv"
# shellcheck source=/dev/null
source "$venv/bin/activate"
python -c "import jepa_monitor, scipy, pytest" 2>/dev/null || pip install --quiet ".[dev]"
pip install --quiet mutmut==3.8.1

rm -rf "$work"
mkdir -p "$work"
git archive HEAD | tar -x -C "$work"
cp scripts/mutants.py "$work/" # also where it is not committed yet
cd "$work"
for room in callbacks recipes; do # mutmut does not follow links
    rm "jepa_monitor/$room" && mv "$room" "jepa_monitor/$room"
done
cat >>pyproject.toml <<'CONFIG'

[tool.mutmut]
source_paths = ["jepa_monitor"]
only_mutate = ["jepa_monitor/functional/*.py", "jepa_monitor/jacobian/*.py", "jepa_monitor/monitor/*.py"]
do_not_mutate = ["*/__init__.py"]
# Doctests are left out, and what starts processes, which do not know which mutant is under test.
pytest_add_cli_args = ["-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=-m 'not slow'", "--ignore=tests/metrics/test_metric_processes.py"]
CONFIG
tests=${TESTS:-tests/functional tests/jacobian tests/insights tests/monitor tests/metrics}
echo "pytest_add_cli_args_test_selection = [\"${tests// /\", \"}\"]" >>pyproject.toml
export PYTHONPATH=$work/mutants OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
python mutants.py "${SAMPLE:-300}" "${SEED:-0}" "${PARTS:-functional jacobian monitor}"
