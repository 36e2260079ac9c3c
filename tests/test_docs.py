"""What the documents promise: every tag is explained, every link leads somewhere."""

from __future__ import annotations

import pathlib
import re

import pytest
import torch
from helpers import images, mlp

from jepa_monitor import DensityMonitor

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])


def _documented() -> list[re.Pattern[str]]:
    """Every tag of the first table, with `/std` and `_p50` standing for the tag before them."""
    table = (ROOT / "docs/metrics.md").read_text().split("# The quantities")[0]
    tags: list[str] = []
    for cell in re.findall(r"^\| (`[^|]+?) \|", table, re.MULTILINE):
        names = re.findall(r"`([^`]+)`", cell)
        relative = "…_relative" in names
        first = names[0]
        for name in names:
            if name == "…_relative":
                continue
            if name.startswith("/"):
                name = first.rsplit("/", 1)[0] + name
            elif name.startswith("_"):
                stems = (first, first.rsplit("_", 1)[0])
                tags += [stem + name for stem in stems]
                continue
            elif "/" not in name:
                name = first.rsplit("/", 1)[0] + "/" + name
            tags += [name, name + "_relative"] if relative else [name]
    escaped = [
        re.escape(tag).replace("<detector>", "[a-z_]+?").replace("<name>", "[a-z]+") for tag in tags
    ]
    return [re.compile(f"^{tag}$") for tag in escaped]


def test_every_tag_is_explained() -> None:
    data = images(80)
    settings = {"max_probe_samples": 20, "polarity_samples": 4}
    monitors = [
        DensityMonitor(data, **settings),
        DensityMonitor(data, reference=images(80, 2), ood={"dark": data / 4}, **settings),
        DensityMonitor(
            data,
            insights=["alignment", "tasks", "separation", "neighbors"],
            labels=torch.arange(80) % 4,
            compare_with=mlp(192),
            **settings,
        ),
    ]
    patterns = _documented()
    logged = {tag for monitor in monitors for tag in monitor.evaluate(mlp(192)).scalars}
    assert len(logged) > 60
    missing = [tag for tag in sorted(logged) if not any(p.match(tag) for p in patterns)]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(document: pathlib.Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", document.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (document.parent / target).exists(), target
