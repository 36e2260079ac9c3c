"""Are backward passes in TF32 precise enough, once what they blur is refined in float64? docs/compatibility.md.

    JEPA_MONITOR_DATA=… python benchmarks/tf32.py

TF32 is emulated on the CPU (`_tf32.py`): `jepa_score(precision="tf32")`, in which the forward pass is float32, with the operands of all
products of the backward passes rounded to 10 bits. Errors from `precision="float64"`, in nats, of held-out images of the CIFAR-10 subset:
with refinement and without it, and of the smallest singular value, before it is refined, in units of TF32's machine epsilon times the
largest one. Encoders: timm's test models and a ViT-Ti/8 with random weights, and ViT-Ti/8s of 4 blocks after some steps of LeJEPA,
VICReg and an EMA teacher, backbone and projector. How fast TF32 is, only a GPU tells (`benchmarks/gpu.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import timm
import torch
from _encoders import METHODS, data_folder, load_images, train, vit
from _results import circumstances, parser, store, table
from _tf32 import EmulatedTF32
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from jepa_monitor import jacobian_spectrum, log_volume
from jepa_monitor.jacobian import engine, rows

EPS = 2.0**-10


@contextmanager
def emulated(*, refine: bool = True) -> Iterator[None]:
    """Have the engine believe that there is TF32, and compute as it would."""
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(mock.patch.object(engine, "check_tf32"))
        stack.enter_context(mock.patch.object(rows, "tensor_float32", EmulatedTF32))
        if not refine:

            def nothing(values: Tensor, *_: object, **__: object) -> Tensor:
                return torch.zeros_like(values, dtype=torch.bool)

            stack.enter_context(mock.patch.object(engine, "uncertain", nothing))
        yield


def encoders(training: Tensor, steps: int) -> Iterator[tuple[str, nn.Module]]:
    """Encoders by name."""
    torch.manual_seed(0)
    yield "test_vit, random", timm.create_model("test_vit", num_classes=0, img_size=32)
    yield "test_convnext, random", timm.create_model("test_convnext", num_classes=0)
    yield "ViT-Ti/8, random", vit()
    for method in METHODS:
        for found in train(method, training, (steps,)):
            yield f"ViT-Ti/8, {method}, backbone", found.encoder
            yield f"ViT-Ti/8, {method}, projector", nn.Sequential(found.encoder, found.projector)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=24, help="(default: %(default)s)")
    options.add_argument("--steps", type=int, default=200, help="(default: %(default)s)")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    data = load_images(data_folder())
    images = data.test[: args.images]
    results = []
    heads = (
        "largest error",
        "its deviation",
        "Spearman",
        "largest, not refined",
        "smallest / ε σ₁",
    )
    print("\n".join(table("encoder", "K", *heads)))
    for name, encoder in encoders(data.train[:2000], args.steps):
        truth = log_volume(jacobian_spectrum(encoder.eval(), images, precision="float64"))
        with emulated():
            scores = log_volume(jacobian_spectrum(encoder, images, precision="tf32"))
        with emulated(refine=False):
            raw = jacobian_spectrum(encoder, images, precision="tf32")
        error, blurred = scores - truth, (log_volume(raw) - truth).abs().max().item()
        smallest = raw[:, -1] / raw[:, 0] / EPS
        rank = float(spearmanr(scores, truth).statistic)
        results.append(
            {
                "encoder": name, "K": raw.shape[1], "error": error.tolist(), "spearman": rank,
                "not_refined": blurred, "smallest": smallest.tolist(),
            }
        )  # fmt: skip
        print(
            f"| {name} | {raw.shape[1]} | {error.abs().max():.2g} | {error.std():.2g} | {rank:.4f} | "
            f"{blurred:.2g} | {smallest.min():.3f} to {smallest.max():.3f} |",
            flush=True,
        )
    store(args.out, circumstances(args.threads) | {"images": args.images, "rows": results})


if __name__ == "__main__":
    main()
