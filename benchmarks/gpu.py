"""All that waits for a GPU, in one command of less than nine minutes: what is fast, how fast, and how precise.

    python benchmarks/gpu.py --out benchmarks/gpu.json     # on a GPU
    python benchmarks/gpu.py --tiny                        # does it run? small encoders, also on a CPU

For ViT-S/14 and ViT-L/14 at 224 px (DINOv2's, random weights: the cost does not depend on them):

- images a second: the listing of arXiv 2510.05949, app. B (*plain*, all rows of a batch, float32 `svdvals`), the same
  with TF32, `jepa_score` with one row a backward pass, with rows folded into the batch by 2, 4, … and as it chooses,
  with the default sketch, and with `precision="tf32"`; each with its largest difference from float64 where that is affordable;
- one backward pass: launched by PyTorch, and captured in a CUDA graph; FLOPs a second, as a share of what one
  large matrix product in float32 reaches on the same device;
- a look of `JepaScoreCallback` with its defaults beside a step of DINOv2 (two views of 224 px and eight of 96, a
  teacher, bfloat16), and what share of a run looks every 1,000 steps would be.

Each part stops when its share of `--minutes` is over; what was not measured is not printed. Every result is
stored as it comes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import timm
import torch
from _listing import plain
from _results import circumstances, parser, store, table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from jepa_monitor import DensityMonitor, ScoreOptions, jepa_score
from jepa_monitor.encoders.isolation import full_float32
from jepa_monitor.jacobian import engine

# name: (timm model, its options, side, images, images compared with float64)
ENCODERS: dict[str, tuple[str, dict[str, Any], int, int, int]] = {
    "ViT-S/14, 224 px": ("vit_small_patch14_dinov2", {"img_size": 224}, 224, 8, 2),
    "ViT-L/14, 224 px": ("vit_large_patch14_dinov2", {"img_size": 224}, 224, 2, 1),
}
TINY: dict[str, tuple[str, dict[str, Any], int, int, int]] = {
    "tiny": ("test_vit", {"img_size": 32, "patch_size": 8}, 32, 2, 1)
}
FOLDS = (1, 2, 4, 8, 16, 32)


class Clock:
    """Seconds of the wall, once the device has finished."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def now(self) -> float:
        """Say what time it is."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def best(self, work: Callable[[], object], until: float) -> float:
        """The fastest of up to three turns after a first one, which is not counted if there is time."""
        times: list[float] = []
        while len(times) < 4 and (not times or self.now() + times[-1] < until):
            begun = self.now()
            work()
            times.append(self.now() - begun)
        return min(times[1:] or times)


@contextmanager
def tf32() -> Iterator[None]:
    """What many training scripts set, and the engine turns off."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def folded(encoder: nn.Module, images: Tensor, fold: int) -> Tensor:
    with mock.patch.object(engine, "fold_of", return_value=fold):
        return jepa_score(encoder, images)


def rates(
    encoder: nn.Module, images: Tensor, compared: int, clock: Clock, until: float
) -> Iterator[tuple[str, float, float | None]]:
    """Method by method: images a second, and nats from float64."""
    reference = torch.randn(64, *images.shape[1:])
    width = encoder(images[:1]).shape[1]
    few = images[:compared]
    truth = jepa_score(encoder, few, precision="float64") if compared else None

    def plain_tf32(batch: Tensor) -> Tensor:
        with tf32():
            return plain(encoder, batch)

    def plain_float32(batch: Tensor) -> Tensor:
        with full_float32():
            return plain(encoder, batch)

    methods: dict[str, Callable[[Tensor], Tensor]] = {
        "plain, float32": plain_float32,
        "plain, TF32": plain_tf32,
        **{
            f"ours, {fold} rows a pass": partial(folded, encoder, fold=fold)
            for fold in FOLDS
            if fold <= width // 4
        },
        "ours, as it chooses": partial(jepa_score, encoder),
        "ours, sketched": partial(jepa_score, encoder, method="sketch", reference=reference),
    }
    if images.is_cuda:
        methods["ours, TF32 refined"] = partial(jepa_score, encoder, precision="tf32")
    for name, method in methods.items():
        if clock.now() > until:
            return
        seconds = clock.best(partial(method, images), until)
        error = None
        if truth is not None and "sketch" not in name:
            error = float((method(few).double() - truth).abs().max())
        yield name, len(images) / seconds, error


def one_pass(encoder: nn.Module, images: Tensor, clock: Clock, until: float) -> dict[str, float]:
    """A backward pass for one row of all images, launched and captured, and its FLOPs."""
    leaf = images.clone().requires_grad_()
    embeddings = encoder(leaf)
    chosen = torch.zeros_like(embeddings)
    chosen[:, 0] = 1

    def work() -> Tensor:
        (found,) = torch.autograd.grad(embeddings, leaf, chosen, retain_graph=True)
        return found

    with FlopCounterMode(display=False) as counted:
        work()
    side = 8192 if images.is_cuda else 512
    square = torch.randn(side, side, device=images.device)
    product = clock.best(lambda: square @ square, until)
    seconds = clock.best(work, until)
    flops = float(counted.get_total_flops())
    found = {
        "seconds": seconds,
        "flops": flops,
        "share_of_peak": (flops / seconds) / (2 * side**3 / product),
    }
    if images.is_cuda:
        eager = work().clone()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                work()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            captured = work()
        found["captured_seconds"] = clock.best(graph.replay, until)
        found["captured_difference"] = float((captured - eager).abs().max())
    return found


def overhead(tiny: bool, device: torch.device, clock: Clock, until: float) -> dict[str, float]:
    """A look with the defaults of the callback, and a step of DINOv2 without its heads."""
    name, options, side, _, _ = next(iter((TINY if tiny else ENCODERS).values()))
    options = options | {"dynamic_img_size": True}
    student, teacher = (
        timm.create_model(name, num_classes=0, **options).to(device) for _ in range(2)
    )
    batch = 2 if tiny else 64
    views = [torch.randn(batch, 3, side, side, device=device) for _ in range(2)]
    small = [
        torch.randn(batch, 3, 16 if tiny else 98, 16 if tiny else 98, device=device)
        for _ in range(8)
    ]
    optimizer = torch.optim.AdamW(student.parameters())
    reference = torch.randn(64 if tiny else 1024, 3, side, side)
    probe = torch.randn(32 if tiny else 512, 3, side, side)
    monitor = DensityMonitor(
        probe, reference=reference, polarity_samples=8, options=ScoreOptions(method="auto")
    )

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                target = sum(teacher(view) for view in views)
            loss = sum((student(view) - target).square().mean() for view in [*views, *small])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    steps = clock.best(step, until)
    look = clock.best(lambda: monitor.evaluate(teacher), until)
    return {
        "step_seconds": steps,
        "look_seconds": look,
        "share_every_1000_steps": look / (look + 1000 * steps),
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--minutes", type=float, default=8, help="of all (default: %(default)s)")
    options.add_argument("--tiny", action="store_true", help="small encoders, to see that it runs")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    if device.type == "cpu" and not args.tiny:
        raise SystemExit("there is no GPU here: --tiny tries the script on a CPU.")
    clock = Clock(device)
    begun, whole = clock.now(), 60 * args.minutes
    encoders = TINY if args.tiny else ENCODERS
    results: dict[str, Any] = circumstances(args.threads, device.type)
    print("\n".join(table("encoder", "method", "images a second", "nats from float64")))
    for number, (title, (name, settings, side, count, compared)) in enumerate(encoders.items(), 1):
        until = begun + whole * 0.7 * number / len(encoders)
        torch.manual_seed(0)
        encoder = timm.create_model(name, num_classes=0, **settings).eval().to(device)
        encoder.requires_grad_(False)
        images = torch.randn(count, 3, side, side, device=device)
        results[title] = {"images": count, "methods": {}}
        for method, rate, error in rates(encoder, images, compared, clock, until):
            results[title]["methods"][method] = {"images_per_second": rate, "error_nats": error}
            nats = "–" if error is None else f"{error:.2g}"
            print(f"| {title} | {method} | {rate:.3g} | {nats} |", flush=True)
            store(args.out, results)
        with full_float32():
            results[title]["pass"] = one_pass(encoder, images, clock, until + 0.05 * whole)
        store(args.out, results)
    print("\n" + "\n".join(table("encoder", "a pass, s", "captured, s", "share of float32 peak")))
    for title in encoders:
        found = results[title]["pass"]
        captured = found.get("captured_seconds")
        print(
            f"| {title} | {found['seconds']:.3g} | {'–' if captured is None else f'{captured:.3g}'} | "
            f"{found['share_of_peak']:.2f} |"
        )
    results["overhead"] = overhead(args.tiny, device, clock, begun + whole)
    store(args.out, results)
    found = results["overhead"]
    print(
        f"\nA look took {found['look_seconds']:.3g} s and a step {found['step_seconds']:.3g} s: looks every "
        f"1,000 steps are {found['share_every_1000_steps']:.1%} of a run."
    )


if __name__ == "__main__":
    main()
