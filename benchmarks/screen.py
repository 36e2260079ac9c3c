"""At what share of injected texts does the screen of words find a spurious token, and what does it find without one?

    pip download --no-deps --no-binary :all: vaderSentiment==3.3.2    # MIT; has texts with human ratings
    python benchmarks/screen.py vaderSentiment-3.3.2.tar.gz

Into a share of the texts of one class goes a date at a random place, from 1100 to 2600, one a text, as in arXiv 2506.11402
(light injection); 3 seeds each. Texts with a mean rating above 0.5 are of one class, those below -0.5 of the
other. `--write FOLDER` writes the texts of each arm as .jsonl, for `jepa-monitor screen`.
"""

from __future__ import annotations

import json
import pathlib

from _results import parser, store, table

from jepa_monitor.functional import screen_tokens
from jepa_monitor.recipes.texts import inject, read_texts

SHARES = (0.0, 0.005, 0.01, 0.02, 0.05, 0.25, 1.0)
SHAPE = "0000-00-00"


def main() -> None:
    options = parser(__doc__)
    options.add_argument("texts", type=pathlib.Path, help="vaderSentiment-3.3.2.tar.gz")
    options.add_argument(
        "--seeds", type=int, default=3, help="of the injection (default: %(default)s)"
    )
    options.add_argument("--write", type=pathlib.Path, help="folder for the texts of each arm")
    args = options.parse_args()
    texts, labels = read_texts(args.texts)
    print(f"{len(texts)} texts, {sum(labels)} of them good\n")
    heads = (
        "share of a class",
        "seed",
        "texts with a date",
        "rank",
        "z",
        "called spurious",
        "others called so",
    )
    print("\n".join(table(*heads)))
    results = []
    for share in SHARES:
        for seed in range(args.seeds if share else 1):
            arm = inject(texts, labels, share, seed=seed)
            if args.write is not None:
                lines = (
                    json.dumps({"text": t, "label": k}) for t, k in zip(arm, labels, strict=True)
                )
                place = args.write / f"share_{share:g}_{seed}.jsonl"
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text("\n".join(lines) + "\n")
            found = screen_tokens(arm, labels)
            others = [each.shape for each in found if each.spurious and each.shape != SHAPE]
            date = next(((n, f) for n, f in enumerate(found, 1) if f.shape == SHAPE), None)
            told = ("-", "-", "-", "-") if date is None else (
                str(date[1].texts), str(date[0]), f"{date[1].z:.1f}", "yes" if date[1].spurious else "no"
            )  # fmt: skip
            print(f"| {share:g} | {seed} | {' | '.join(told)} | {', '.join(others) or 'none'} |")
            results.append({"share": share, "seed": seed, "date": told, "others": others})
    store(args.out, {"texts": len(texts), "arms": results})
    most = max((f for f in screen_tokens(texts, labels)), key=lambda each: each.excess)
    print(
        f"\nWithout a date the nearest to it is {most.shape!r}: {most.texts} texts, {most.share:.0%} of a class."
    )


if __name__ == "__main__":
    main()
