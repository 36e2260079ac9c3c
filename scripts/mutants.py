"""Draw mutants, have mutmut run the tests on them, and say which share was killed.

Usage: see mutants.sh, which makes the working copy in which this runs.
"""

from __future__ import annotations

import ast
import contextlib
import io
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import libcst
from mutmut import __main__ as mutmut
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant, read_functions_from_index
from mutmut.mutation.trampoline import set_mutant_under_test
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import (
    copy_also_copy_files,
    copy_src_dir,
    setup_source_paths,
    walk_mutatable_files,
)

# Calls whose strings do nothing but appear in messages: checks that are told a name, and warnings.
_SPEAKING = re.compile(r"^_?(as_|check_|require_|warn)|Error$|^TypeVar$")


class _Speechless(ast.NodeTransformer):
    """Empty the strings, and what stands in for one, in errors, warnings and checks."""

    def __init__(self) -> None:
        self.inside = 0

    def _enter(self, node: ast.AST) -> ast.AST:
        self.inside += 1
        node = self.generic_visit(node)
        self.inside -= 1
        return node

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return self._enter(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        return self._enter(node) if _SPEAKING.search(name) else self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if self.inside and (isinstance(node.value, str) or node.value is None):
            return ast.Constant("")
        return node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        return ast.Constant("") if self.inside else self.generic_visit(node)


def is_text(name: str, path: Path) -> bool:
    """Whether a mutant changes nothing but what a message says."""
    functions = read_functions_from_index(name, path)
    assert functions is not None
    trees = [ast.parse(libcst.Module([function]).code.strip()) for function in functions]
    original, mutant = (ast.dump(_Speechless().visit(tree)) for tree in trees)
    return original == mutant


def data_of(path: Path) -> SourceFileMutationData:
    """What mutmut knows of a file's mutants."""
    data = SourceFileMutationData(path=path)
    data.load()
    return data


def main() -> None:
    """Draw, run, report."""
    sample, seed, groups = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3].split()
    set_mutant_under_test("mutant_generation")
    Path("mutants").mkdir(exist_ok=True)
    with contextlib.redirect_stdout(io.StringIO()):
        copy_src_dir()
        copy_also_copy_files()
        setup_source_paths()
        mutmut.create_mutants(1)
    paths = {
        name: Path(path)
        for path in walk_mutatable_files()
        if Path(path).parent.name in groups
        for name in data_of(path).exit_code_by_key
    }
    everything = sorted(paths)
    random.Random(seed).shuffle(everything)
    drawn: list[str] = []
    text = 0
    for name in everything:
        if len(drawn) == sample:
            break
        if is_text(name, paths[name]):
            text += 1
        else:
            drawn.append(name)
    print(
        f"{len(everything)} mutants of {', '.join(groups)}; drawn {len(drawn)} (seed {seed}), not "
        f"counting {text} of the text of messages",
        flush=True,
    )
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", "1", *drawn]
    with Path("mutmut.log").open("w") as log:
        subprocess.run(command, stdout=log, stderr=log, check=False)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    known = {path: data_of(path) for path in set(paths.values())}
    for name in drawn:
        status = status_by_exit_code[known[paths[name]].exit_code_by_key[name]]
        counts[paths[name].parent.name][status] += 1
        counts["all"][status] += 1
        if status not in ("killed", "timeout"):
            print(f"\n--- {status}: {name}")
            lines = get_diff_for_mutant(name, path=paths[name]).splitlines()[2:]
            print("\n".join(line for line in lines if line[:1] in "+-@"))
    print()
    for group, found in counts.items():
        killed, total = found["killed"] + found["timeout"], sum(found.values())
        print(f"{group}: {killed} of {total} killed, {killed / total:.1%} ({dict(found)})")


if __name__ == "__main__":
    main()
