"""What the documents promise: every tag is explained, every link leads somewhere."""

from __future__ import annotations

import pathlib
import re

import pytest
import timm
import torch
from helpers import Tiny, images, mlp, trainer
from text_models import TextItems, TinyText, Tuned, opinions_loader
from torch import Tensor
from torch.utils.data import DataLoader

from jepa_monitor import DensityMonitor, JepaScoreCallback, ScoreOptions, ShortcutCallback
from jepa_monitor.callbacks import CollapseCallback
from jepa_monitor.insights import INSIGHTS, Clips
from jepa_monitor.insights.dashboard import dashboard
from jepa_monitor.insights.table import all_insights, render_table, tag_pattern
from jepa_monitor.monitor.pair_shortcut import follow_pairs
from jepa_monitor.monitor.tags import all_rows

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])


TAKEN = {
    "first": {"aligned": -1.0, "common_share": 0.0, "pair_gap": 2.0, "pair_gap_error": 0.0},
    "taken": True, "against": 0, "before": 0, "step": 0,
}  # fmt: skip


def test_the_table_of_tags_is_that_of_the_insights() -> None:
    text = (ROOT / "docs/metrics.md").read_text()
    start = text.index("| Tag |")
    table = text[start : text.index("\n\n", start) + 1]
    assert table == render_table(all_rows()), "python -m jepa_monitor.monitor.tags"


class Paired(Tiny):
    """Takes two views of each image."""

    def training_step(self, batch: list[list[Tensor]], batch_idx: int) -> Tensor:
        return super().training_step(batch[0], batch_idx)


def pairs() -> DataLoader:  # type: ignore[type-arg]
    views = list(zip(images(40, 5), images(40, 6), strict=True))
    data = [([a, b], label) for label, (a, b) in enumerate(views)]
    return DataLoader(data, 8)  # type: ignore[arg-type]


def test_no_tag_without_a_row_and_no_row_without_a_tag(tmp_path: pathlib.Path) -> None:
    settings = {"max_probe_samples": 40, "polarity_samples": 4}
    full = JepaScoreCallback(
        mlp(192, 20),
        images(160),
        reference=images(160, 2),
        ood={"dark": images(160) / 4},
        insights=[
            name for name in INSIGHTS if name not in ("tokens", "mae", "attention", "perception")
        ],
        labels=torch.arange(160) % 4,
        compare_with=mlp(192),
        online=mlp(192, 20),
        max_overhead=None,
        options=ScoreOptions("sketch", rows=16),
        **settings,
    )
    fast = CollapseCallback(mlp(192, 20), images(80), name="fast")
    trainer(tmp_path, [full, fast], max_epochs=1).fit(Paired(), pairs())
    report = DensityMonitor(images(80), **settings).evaluate(mlp(192))  # without a reference
    of_sites = [
        DataLoader(
            [{"image": x, "label": i % 2, "site": i // 8} for i, x in enumerate(images(160, seed))],
            32,
        )
        for seed in (0, 1)
    ]
    measured = DensityMonitor(
        of_sites[0],
        reference=of_sites[1],
        insights=["dimension"],
        groups="site",
        world=Clips(images(120).unflatten(0, (6, 20)), torch.rand(6, 19, 2), lambda z, a: z),
        max_probe_samples=2,
    )
    measured.memory["first_retrieval"] = -1.0  # dimensions wait until views find each other better
    report.scalars.update(measured.evaluate(mlp(192)).scalars)
    vit = timm.create_model("test_vit", num_classes=0, img_size=8, patch_size=2)
    vit.reconstruct = lambda data, hidden: data.mean((2, 3), keepdim=True).expand_as(data)
    asked = ["tokens", "mae", "attention"]
    tokens = DensityMonitor(images(16), insights=asked, max_probe_samples=2).evaluate(vit)
    views = TextItems(72, 3), TextItems(72, 4)
    told = DensityMonitor(TextItems(24, 3), insights=["perception"], text_pairs=views)
    texts = told.evaluate(TinyText())
    pairs_alike = follow_pairs({"pairs": TAKEN}, 1, texts.scalars)
    shortcuts = ShortcutCallback(max_overhead=None, on_shortcut=print)
    trainer(tmp_path, [shortcuts], max_epochs=1).fit(
        Tuned(), opinions_loader(128, 2, 1.0), opinions_loader(64, 3)
    )
    quick = {tag.removeprefix("fast/") for tag in fast.history[-1]}
    looks = (full.history[-1], shortcuts.history[-1])
    logged = {tag for look in looks for tag in look} - {"step"}
    logged |= {*report.scalars, *quick, *tokens.scalars, *texts.scalars, *pairs_alike} - {"step"}
    assert len(logged) >= 90
    rows = {tag: tag_pattern(tag) for row in all_rows() for tag in row.tags}
    assert [tag for tag in sorted(logged) if not any(p.fullmatch(tag) for p in rows.values())] == []
    assert [tag for tag, p in rows.items() if not any(p.fullmatch(t) for t in logged)] == []


def test_every_panel_shows_something() -> None:
    rows = [tag for row in all_rows() for tag in row.tags]
    tags = [tag.replace("<name>", "svhn") for tag in rows]
    tags = [
        tag.replace("<detector>", name)
        for tag in tags
        for name in ("knn", "combined", "log_density")
    ]
    shown = [
        pattern
        for charts in dashboard(all_insights(), "").values()
        for _, lines in charts.values()
        for pattern in lines
    ]
    assert len(shown) > 15
    assert [p for p in shown if not any(re.match(p, tag) for tag in tags)] == []


def test_the_rooms_hold_what_the_table_of_the_code_says() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rooms = dict(re.findall(r"^\| `(\w+)/` \| (.*) \|$", text, re.MULTILINE))
    package = ROOT / "jepa_monitor"
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    assert set(rooms) == folders
    for room, words in rooms.items():
        for file in re.findall(r"`(\w+\.py)`", words):
            assert (package / room / file).exists(), f"{room}/{file}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(document: pathlib.Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", document.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (document.parent / target).exists(), target


def test_the_first_screen_has_question_line_and_picture_and_pages_stay_short() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    first = "\n".join(lines[:25])
    assert first.index("?**") < first.index("JepaScoreCallback()") < first.index("](docs/images/")
    pages = sorted((ROOT / "docs/where").glob("*.md"))
    assert len(pages) >= 8
    for page in pages:
        text = page.read_text()
        assert len(text.splitlines()) <= 20, page
        assert re.search(r"\bran\b", text, re.IGNORECASE), page  # what was tried, and what was not
        assert (
            "not run" in text.lower()
            or "not been run" in text
            or "what did not" in text
            or "Nothing ran" in text
        ), page
