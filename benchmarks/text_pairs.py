"""Does a term for pairs help a small decoder, and does its monitor see what the term does? The tables of docs/recipes/llm_jepa.md.

    python benchmarks/text_pairs.py --jobs 2

The recipe with its defaults (8,000 pairs, 3 epochs). Arms: the language model alone; LLM-JEPA with
the state before the answer as its prediction, with a predictor token, and with InfoNCE; Semantic Tube Prediction; and L2 with weight 100, which
collapses. Exact match and what the monitor says of 256 held-out pairs at the last look, mean ± standard deviation over seeds; paired t test
of exact match over seeds against the language model, two-sided; step at which the alarm of the shortcut begins, of each seed.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from _results import circumstances, parser, quiet_training, spread, store_runs
from scipy import stats
from tqdm import tqdm

ARMS: dict[str, list[str]] = {
    "lm": ["--arm=lm"],
    "jepa": ["--arm=jepa"],
    "jepa, a predictor": ["--arm=jepa", "--model.predictors=1"],
    "jepa, InfoNCE": ["--arm=jepa", "--model.distance=infonce"],
    "stp": ["--arm=stp"],
    "collapse": ["--arm=collapse"],
}
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
TINY = (
    "--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--exact.pairs=20",
    "--trainer.check_val_every_n_epoch=1",
)  # fmt: skip
KEPT = (
    "aligned", "pair_gap", "pair_gap_error", "retrieval", "common_share", "rank_first", "rank_second",
    "rank_difference", "rank_difference_shuffled", "linear_r2", "linear_r2_null", "curvature",
)  # fmt: skip


def run(arm: str, seed: int, tiny: bool) -> dict[str, Any]:
    """Train once, and keep what is told of it."""
    from jepa_monitor import JepaScoreCallback
    from jepa_monitor.recipes import llm_jepa

    torch.set_num_threads(1)
    words = [*ARMS[arm], f"--seed_everything={seed}", "--trainer.logger=false", "--checkpoint.save_last=false"]  # fmt: skip
    words += ["--checkpoint.save_top_k=0", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]  # fmt: skip
    words += ["--trainer.check_val_every_n_epoch=3"]
    words += ["--monitor.max_probe_samples=4"]  # JEPA-SCORE is not what this is about
    began = time.process_time()
    with quiet_training() as folder:
        words.append(f"--trainer.default_root_dir={folder}")
        trainer = llm_jepa.main([*words, *(TINY if tiny else ())])
    callback = next(c for c in trainer.callbacks if isinstance(c, JepaScoreCallback))
    end = callback.history[-1]
    rang = [look["step"] for look in callback.history if look.get("text/shortcut")]
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {
        "arm": arm,
        "seed": seed,
        "steps": trainer.global_step,
        "exact": metrics["eval/exact_match"],
        "rare": metrics.get("text/rare_recall"),
        "stp": metrics["val/stp"],
        "lm": metrics["val/lm"],
        **{name: end.get(f"text/{name}") for name in KEPT},
        "first_gap": callback.history[0]["text/pair_gap"],
        "state": end.get("collapse/state"),
        "rang": rang[0] if rang else None,
        "looks": [
            {"step": look["step"], **{n: look[f"text/{n}"] for n in ("aligned", "pair_gap", "pair_gap_error", "common_share")}}
            for look in callback.history
        ],
        "cpu_seconds": time.process_time() - began,
    }  # fmt: skip


def tested(rows: list[dict[str, Any]], base: list[dict[str, Any]]) -> str:
    """Compare exact match with the language model's, seed by seed."""
    known = {row["seed"]: row["exact"] for row in base}
    pairs = [(row["exact"], known[row["seed"]]) for row in rows if row["seed"] in known]
    mean = sum(a - b for a, b in pairs) / max(len(pairs), 1)
    if len(pairs) < 2 or len({a - b for a, b in pairs}) == 1:
        return f"{100 * mean:+.1f}"
    p = stats.ttest_rel(*zip(*pairs, strict=True)).pvalue
    return f"{100 * mean:+.1f}, p = {p:.2g}"


def tell(runs: list[dict[str, Any]]) -> None:
    """Print two tables of the runs."""
    heads = ("arm", "exact match, %", "against lm", "rare suffix, %", "L_LM", "cosine of pairs", "gap", "retrieval, %", "common share", "alarm at step")  # fmt: skip
    more = ("arm", "L_STP", "curvature", "RankMe: first", "second", "difference", "of shuffled pairs", "linear R²", "of shuffled pairs")  # fmt: skip
    tables = [["| " + " | ".join(names) + " |", "|---" * len(names) + "|"] for names in (heads, more)]  # fmt: skip
    of = {arm: [row for row in runs if row["arm"] == arm] for arm in ARMS}
    for arm, rows in of.items():
        if not rows:
            continue

        def shown(name: str, digits: int = 2, times: float = 1.0, rows: Any = rows) -> str:
            known = [times * row[name] for row in rows if row[name] is not None]
            return spread(known, digits) if known else "–"

        rang = ", ".join("–" if row["rang"] is None else f"{row['rang']:.0f}" for row in rows)
        against = "" if arm == "lm" else tested(rows, of["lm"]) if of["lm"] else "–"
        cells = [arm, shown("exact", 1, 100), against, shown("rare", 0, 100), shown("lm")]
        cells += [shown("aligned", 3), shown("pair_gap", 3), shown("retrieval", 1, 100)]
        tables[0].append(f"| {' | '.join([*cells, shown('common_share'), rang])} |")
        names = ("rank_first", "rank_second", "rank_difference", "rank_difference_shuffled")
        cells = [arm, shown("stp"), shown("curvature"), *(shown(name, 0) for name in names)]
        tables[1].append(f"| {' | '.join([*cells, shown('linear_r2'), shown('linear_r2_null')])} |")
    for lines in tables:
        print("\n" + "\n".join(lines))


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Draw what the monitor saw over the steps, a line a seed; a ring is where the alarm begins."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    panels = figure.subplots(1, 3, sharex=True)
    names = {
        "aligned": "cosine of pairs",
        "pair_gap": "the same above shuffled pairs",
        "common_share": "common share",
    }
    for arm, colour in zip(ARMS, COLORS, strict=True):
        own = [row for row in runs if row["arm"] == arm]
        for number, row in enumerate(own):
            steps = [look["step"] for look in row["looks"]]
            for axes, name in zip(panels, names, strict=True):
                values = [look[name] for look in row["looks"]]
                label = arm if number == 0 else None
                axes.plot(steps, values, color=colour, alpha=0.8, lw=1.4, label=label)
                if row["rang"] is not None:
                    at = steps.index(row["rang"])
                    axes.plot(steps[at], values[at], "o", mfc="none", mec=colour, ms=9)
    for axes, title in zip(panels, names.values(), strict=True):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("training step")
        axes.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=len(labels), loc="outside lower center", frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, default=3, help="(default: %(default)s)")
    options.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    options.add_argument("--jobs", type=int, default=1, help="at a time, of one thread each")
    options.add_argument("--tiny", action="store_true", help="two steps a run, to try it")
    options.add_argument("--picture", type=Path, help="PNG of the looks (default: none)")
    options.add_argument("--show", type=Path, help="print the tables of a stored file only")
    args = options.parse_args()
    if args.show:
        runs = json.loads(args.show.read_text())["runs"]
    else:
        wanted = [(arm, seed) for seed in range(args.seeds) for arm in args.arms]
        if args.jobs == 1:
            runs = [run(*each, args.tiny) for each in tqdm(wanted, desc="runs")]
        else:
            with ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool:
                waiting = [pool.submit(run, *each, args.tiny) for each in wanted]
                for _ in tqdm(as_completed(waiting), total=len(waiting), desc="runs"):
                    pass
                runs = [each.result() for each in waiting]
        if args.out:
            store_runs(args.out, circumstances(1) | {"tiny": args.tiny}, runs)
    if args.picture:
        draw(runs, args.picture)
    tell(runs)


if __name__ == "__main__":
    main()
