"""Pages of the site that are no Markdown of docs/: in go README, tables, a notebook and modules, out come pages.

mkdocs calls the functions by their names (https://www.mkdocs.org/user-guide/configuration/#hooks).
"""

from __future__ import annotations

import ast
import json
import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OUTSIDE = {  # a file of the repository: its page
    "README.md": "index.md",
    "benchmarks/RESULTS.md": "benchmarks.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    "docs/watch_a_run.ipynb": "watch_a_run.md",
}
ROOMS = {  # what people import, and how it is called in the contents
    "jepa_monitor": "The monitor",
    "jepa_monitor.callbacks": "Callbacks",
    "jepa_monitor.metrics": "Metrics",
    "jepa_monitor.insights": "Insights",
    "jepa_monitor.detectors": "Detectors",
    "jepa_monitor.functional": "Functions",
    "jepa_monitor.probes": "Probes",
    "jepa_monitor.encoders": "Encoders",
    "jepa_monitor.jacobian": "Jacobians",
}
_LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")
_NOTE = re.compile(r"^> \[!(\w+)\]\n((?:^>.*\n?)+)", re.MULTILINE)


class Examples(griffe.Extension):
    """Take the section ``Example:`` for what griffe calls ``Examples:``, so that it is shown as code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the section.

        Args:
            obj: Whose docstring.
        """
        if obj.docstring is not None:
            text = obj.docstring.value
            obj.docstring.value = re.sub(
                r"^(\s*)Example:$", r"\1Examples:", text, flags=re.MULTILINE
            )


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are no files of docs/.

    Args:
        files: Those of docs/.
        config: Of mkdocs.

    Returns:
        The files.
    """
    for source, page in OUTSIDE.items():
        text = (ROOT / source).read_text("utf-8")
        content = _notebook(text) if source.endswith(".ipynb") else text
        files.append(File.generated(config, page, content=content))
    shown: set[str] = set()  # what one room has borrowed of another stands on the first page only
    for room in ROOMS:
        page = f"api/{room.rpartition('.')[2]}.md"
        files.append(File.generated(config, page, content=_api(room, shown)))
    return files


def _notebook(text: str) -> str:
    """Write a notebook, with what its cells have shown, as Markdown."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {"text/plain": output.get("text", "")})
            shown = "".join(data.get("text/html", data["text/plain"]))
            parts.append(shown if "text/html" in data else f"```text\n{shown.strip()}\n```")
    return "\n\n".join(parts) + "\n"


def _api(room: str, shown: set[str]) -> str:
    """Ask for the docstrings of all that a room offers, wherever in it they stand."""
    path = ROOT / room.replace(".", "/")
    text = (path / "__init__.py").read_text("utf-8")
    offered: dict[str, str] = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            for name in node.names:
                if node.module.startswith("jepa_monitor.") and not name.name.startswith("_"):
                    offered[name.asname or name.name] = f"{node.module}.{name.name}"
    offered.pop("imported_on_use", None)
    summary = (ast.get_docstring(ast.parse(text)) or "").partition("\n\n")[0]
    summary = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", summary)
    places = [place for _, place in sorted(offered.items()) if place not in shown]
    shown.update(places)
    asked = "\n".join(f"::: {place}" for place in places)
    return f"# `{room}`\n\n{summary}\n\n{asked}\n"


def on_config(config: Any) -> Any:
    """Arrange the pages.

    Args:
        config: Of mkdocs.

    Returns:
        It, with a table of contents.
    """
    docs = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
    recipes = sorted(path.name for path in (ROOT / "docs" / "recipes").glob("*.md"))
    recipes.remove("README.md")
    where = sorted(path.name for path in (ROOT / "docs" / "where").glob("*.md"))
    config.nav = [
        {"Start": "index.md"},
        {"Guides": ["watch_a_run.md", *docs]},
        {"In your project": [f"where/{name}" for name in where]},
        {"Recipes": ["recipes/README.md", *(f"recipes/{name}" for name in recipes)]},
        {"API": [{title: f"api/{room.rpartition('.')[2]}.md"} for room, title in ROOMS.items()]},
        {"Project": ["benchmarks.md", "contributing.md", "changes.md"]},
    ]
    return config


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:  # noqa: ARG001
    """Point links at pages instead of files, and draw notes as mkdocs does.

    Args:
        markdown: Of a page.
        page: The page.
        config: Of mkdocs.
        files: All files.

    Returns:
        The text to render.
    """
    own = page.file.src_uri
    back = {page: source for source, page in OUTSIDE.items()}
    folder = posixpath.dirname(back.get(own, f"docs/{own}"))

    def link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[1]))
        page = OUTSIDE.get(target, target.removeprefix("docs/"))
        if target.startswith("docs/") or target in OUTSIDE:
            return f"]({posixpath.relpath(page, posixpath.dirname(own) or '.')}{match[2] or ''})"
        # Code is no page: its name stays, without a link.
        return "]" if not (ROOT / target).exists() else "](#)"

    def note(match: re.Match[str]) -> str:
        body = re.sub(r"^> ?", "    ", match[2], flags=re.MULTILINE)
        return f"!!! {match[1].lower()}\n\n{body}\n"

    text = _NOTE.sub(note, markdown)
    text = _LINK.sub(link, text)
    return re.sub(r"\[([^\][]*)\]\(#\)", r"\1", text)
