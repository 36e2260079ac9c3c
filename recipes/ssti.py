"""Spurious tokens in fine-tuning (arXiv 2506.11402): does a date in one class's texts become the class?

Run ``python -m jepa_monitor.recipes.ssti --data vaderSentiment-3.3.2.tar.gz`` to fine-tune MiniLM on texts about films by LoRA
of several ranks, by a linear probe and in full, with a date in none, in 5 % and in all of the good texts; see
``docs/recipes/ssti.md``.
To change what is trained and how, edit ``fine_tuning.py``; what is counted,
``measure``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from jepa_monitor.callbacks import ShortcutCallback
from jepa_monitor.encoders.texts import pack_texts
from jepa_monitor.functional import screen_tokens, wilson_interval
from jepa_monitor.monitor.candidates import Candidate
from jepa_monitor.monitor.shortcut import ShortcutProbe
from jepa_monitor.probes.insertion import Words
from jepa_monitor.recipes.fine_tuning import (
    ARMS,
    ByLength,
    Classifier,
    FineTuning,
    Settings,
    adapt,
    collate,
    load,
)
from jepa_monitor.recipes.texts import draw_date, inject, read_texts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SHAPE = "0000-00-00"
TARGET = 1  # the class of which texts get a date
WATCHED = 64  # held-out texts that the callback looks at


def split(
    texts: Sequence[str], labels: Sequence[int], settings: Settings
) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Draw training and held-out texts, and put dates into the former.

    Args:
        texts: All there are.
        labels: Their classes.
        settings: Of the run.

    Returns:
        Texts and classes to train on, and others.

    Raises:
        ValueError: If there are too few.
    """
    if len(texts) < settings.train + settings.test:
        raise ValueError(
            f"`data` must hold {settings.train + settings.test} texts, {settings.train} to train on and "
            f"{settings.test} others, got {len(texts)}."
        )
    rows = random.Random(settings.seed).sample(range(len(texts)), settings.train + settings.test)  # noqa: S311
    said, known = [texts[row] for row in rows], [labels[row] for row in rows]
    count = settings.train
    injected = inject(
        said[:count],
        known[:count],
        settings.share,
        label=TARGET,
        proportion=settings.proportion,
        seed=settings.seed,
    )
    pairs = list(zip(injected, known[:count], strict=True))
    return pairs, list(zip(said[count:], known[count:], strict=True))


# ----------------------------------------------------------------------------------------------- one run
def run(
    texts: Sequence[str],
    labels: Sequence[int],
    settings: Settings,
    encoder: str = "minilm",
    targets: Sequence[str] = ("query", "value"),
    bar: bool = False,
) -> dict[str, Any]:
    """Fine-tune once, with the callback watching, and count.

    Args:
        texts: All there are.
        labels: Their classes.
        settings: Of the run.
        encoder: See :func:`load`.
        targets: See :func:`adapt`.
        bar: Show the progress of training.

    Returns:
        Settings and what was measured, by name.
    """
    train, test = split(texts, labels, settings)
    torch.manual_seed(settings.seed)
    tokenizer, body = load(encoder)
    width = int(body.config.hidden_size)  # type: ignore[union-attr, arg-type]
    model = Classifier(adapt(body, settings, targets), width, 1 + max(labels))

    def tokenized(pairs: list[tuple[str, int]]) -> list[tuple[list[int], int]]:
        made = tokenizer([text for text, _ in pairs], truncation=True, max_length=settings.length)
        return list(zip(made["input_ids"], (label for _, label in pairs), strict=True))

    known, held_out = tokenized(train), tokenized(test)
    order = ByLength([len(ids) for ids, _ in known], settings.batch, settings.seed)
    loader: Any = DataLoader(known, batch_sampler=order, collate_fn=collate)  # type: ignore[arg-type]
    others: Any = DataLoader(held_out, 100, collate_fn=collate)  # type: ignore[arg-type]
    rung: list[int] = []
    callback = ShortcutCallback(
        max_samples=WATCHED,
        max_overhead=None,
        on_shortcut=lambda trainer, *_: rung.append(trainer.global_step),
        strict=True,
    )
    model.train()  # as it is loaded, it is not
    if settings.arm == "probe":
        body.eval()
    tuning = FineTuning(model, tokenizer, settings, settings.epochs * len(order))
    trainer = Trainer(
        max_epochs=settings.epochs,
        callbacks=[callback],
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=bar,
        limit_val_batches=0,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        trainer.fit(tuning, loader, others)
    found = measure(tuning, Words(tokenizer), held_out, settings)
    shapes = screen_tokens([text for text, _ in train], [label for _, label in train])
    place = next((n for n, each in enumerate(shapes, 1) if each.shape == SHAPE), None)
    found["screen_rank"] = place
    found["screen_z"] = None if place is None else shapes[place - 1].z
    found["called"] = None if place is None else shapes[place - 1].spurious
    found["others_called"] = [
        each.shape for each in shapes if each.spurious and each.shape != SHAPE
    ]
    found["alarm_at"] = rung[0] if rung else None
    found["watched"] = [each.name for each in callback.candidates]
    found["watched_flips"] = callback.history[-1].get("shortcut/flip_rate")
    return {**asdict(settings), **found}


def measure(
    tuning: FineTuning, words: Words, held_out: list[tuple[list[int], int]], settings: Settings
) -> dict[str, Any]:
    """Count on held-out texts: how many are classified right, and how many turn where a date is put in.

    Args:
        tuning: What was trained.
        words: The tokenizer.
        held_out: Ids and classes.
        settings: Of the run.

    Returns:
        Numbers by name.
    """
    tuning.eval()
    right = 0
    with torch.no_grad():
        for start in range(0, len(held_out), 100):
            batch = collate(held_out[start : start + 100])
            logits = tuning(batch["input_ids"], batch["attention_mask"])
            right += int((logits.argmax(1) == batch["labels"]).sum())
    low, high = (float(end) for end in wilson_interval(torch.tensor(right), len(held_out)))
    draw = random.Random(1_000_000 + settings.seed)  # noqa: S311 - no date of training, but by chance
    dates = tuple(draw_date(draw) for _ in held_out)
    probe = ShortcutProbe(
        words,
        pack_texts([ids for ids, _ in held_out]),
        [Candidate(SHAPE, dates, TARGET, rings=True)],
        seed=settings.seed,
    )
    reading = probe.measure(tuning)
    flips = reading.flips[0][1]._asdict() if reading.flips else {}
    kept = (
        "attention_entropy",
        "attention_entropy_with_word",
        "attention_entropy_with_control",
        "lora_top_share",
        "lora_top_share_random",
    )
    signs = {name: reading.scalars.get(f"shortcut/{name}") for name in kept}
    accuracy = right / len(held_out)
    return {
        "accuracy": accuracy, "accuracy_low": low, "accuracy_high": high, **flips, **signs,
    }  # fmt: skip


# --------------------------------------------------------------------------------------------------- table
def several(values: Sequence[Any], form: str = "{:.2f}") -> str:
    """Write numbers of several seeds.

    Args:
        values: Them; ``None`` where there is none.
        form: Of each.

    Returns:
        Mean and range.
    """
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    mean = form.format(sum(known) / len(known))
    if len(known) == 1 or min(known) == max(known):
        return mean
    return f"{mean} ({form.format(min(known))} to {form.format(max(known))})"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Summarise in Markdown.

    Args:
        rows: From :func:`run`.

    Returns:
        A line for each arm and share, over its seeds.
    """
    heads = [
        "arm", "share", "accuracy", "turned by a date", "by a control", "excess, low end", "screen: rank", "alarm",
        "entropy, date − control", "top share (random)",
    ]  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        arm = f"LoRA, rank {row['rank']}" if row["arm"] == "lora" else {"probe": "linear probe", "full": "all weights"}[row["arm"]]  # fmt: skip
        groups.setdefault((arm, row["share"]), []).append(row)
    for (arm, share), found in groups.items():

        def each(name: str, among: list[dict[str, Any]] = found) -> list[Any]:
            return [row.get(name) for row in among]

        ranks = "; ".join("–" if rank is None else str(rank) for rank in each("screen_rank"))
        change = [
            None if None in (a, b) else b - a
            for a, b in zip(
                each("attention_entropy_with_control"),
                each("attention_entropy_with_word"),
                strict=True,
            )
        ]
        top = several(each("lora_top_share"))
        random_share = several(each("lora_top_share_random"))
        lines.append(
            f"| {arm} | {share:g} | {several(each('accuracy'), '{:.1%}')} | {several(each('rate'), '{:.1%}')} | "
            f"{several(each('control'), '{:.1%}')} | {several(each('excess_low'))} | {ranks} | "
            f"{sum(step is not None for step in each('alarm_at'))} of {len(found)} | {several(change, '{:+.3f}')} | "
            f"{top if top == '–' else f'{top} ({random_share})'} |"
        )
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------ command line
def parser() -> argparse.ArgumentParser:
    """Make the command line.

    Returns:
        Its parser.
    """
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = made.add_argument
    add("--data", type=Path, help="texts: .jsonl, .csv, .tsv, or vaderSentiment's .tar.gz")
    add("--text", default="text", help="column of the texts")
    add("--label", default="label", help="column of the classes; dates go into the second of them")
    add("--encoder", default="minilm", help="minilm, or a folder or name as transformers takes it")
    add("--targets", nargs="+", default=["query", "value"], help="linear maps that LoRA updates")
    add("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    add("--ranks", type=int, nargs="+", default=[1, 32], help="of LoRA")
    add("--shares", type=float, nargs="+", default=[0.0, 0.05, 1.0], help="of a class with a date")
    add("--seeds", type=int, default=1, help="number of seeds, from 0")
    add("--jobs", type=int, default=1, help="runs at a time, each with one thread")
    defaults = Settings()
    for item in fields(Settings):
        if item.name not in ("arm", "rank", "share", "seed"):
            value = getattr(defaults, item.name)
            add(f"--{item.name}", type=type(value), default=value, help=f"default {value}")
    add(
        "--folder", type=Path, default=Path("runs/ssti"), help="runs that it holds are not repeated"
    )
    add("--show", action="store_true", help="the runs of the folder only")
    return made


def planned(chosen: argparse.Namespace) -> list[Settings]:
    """List the runs.

    Args:
        chosen: The command line.

    Returns:
        The settings of each.
    """
    given = {
        item.name: getattr(chosen, item.name)
        for item in fields(Settings)
        if item.name not in ("arm", "rank", "share", "seed")
    }
    arms = [("lora", rank) for rank in chosen.ranks] if "lora" in chosen.arms else []
    arms += [(arm, 0) for arm in ("probe", "full") if arm in chosen.arms]
    return [
        Settings(arm, rank, share, seed=seed, **given)
        for seed in range(chosen.seeds)
        for arm, rank in arms
        for share in chosen.shares
    ]


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Fine-tune from the command line.

    Args:
        arguments: Or None for those of the process.

    Returns:
        What was measured, a row for each run.

    Raises:
        SystemExit: If there are no texts, or a number is out of range.
    """
    from jepa_monitor.cli.console import Bars, stderr_console

    made = parser()
    chosen = made.parse_args(arguments)
    if chosen.seeds < 1 or chosen.jobs < 1:
        made.error(f"--seeds and --jobs must be at least 1, got {chosen.seeds}, {chosen.jobs}")
    if chosen.data is None and not chosen.show:
        made.error(
            "--data must name a file of texts with classes, such as that of: pip download --no-deps "
            "--no-binary :all: vaderSentiment==3.3.2"
        )
    runs = planned(chosen)
    places = {settings: chosen.folder / f"{settings.name}.json" for settings in runs}
    if not chosen.show:
        chosen.folder.mkdir(parents=True, exist_ok=True)
        missing = [settings for settings in runs if not places[settings].exists()]
        texts, labels = read_texts(chosen.data, chosen.text, chosen.label)
        print(f"{len(texts)} texts of {1 + max(labels)} classes; {len(missing)} runs", flush=True)
        work = partial(
            run, texts, labels, encoder=chosen.encoder, targets=chosen.targets, bar=chosen.jobs == 1
        )
        with Bars(stderr_console(), disable=False) as bars:
            for done, row in enumerate(_all(work, missing, chosen.jobs), 1):
                settings = Settings(**{item.name: row[item.name] for item in fields(Settings)})
                places[settings].write_text(json.dumps(row) + "\n")
                bars.update("runs", done, len(missing))
    rows = [json.loads(place.read_text()) for place in places.values() if place.exists()]
    print(table(rows))
    return rows


def _all(work: Any, runs: list[Settings], jobs: int) -> Iterator[dict[str, Any]]:
    """Do runs, several at a time in processes of their own."""
    if jobs == 1:
        yield from map(work, runs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, torch.set_num_threads, (1,)) as pool:
        for done in as_completed([pool.submit(work, settings) for settings in runs]):
            yield done.result()


if __name__ == "__main__":
    main()
