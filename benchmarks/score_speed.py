"""What a score costs: the paper's way, its vectorised variant, and ours, in one interleaved run.

    python benchmarks/score_speed.py                 # prints the table
    python benchmarks/score_speed.py --cases vit_ti8_32 --repeats 5 --out FILE    # updates FILE

Every method scores the same images of the same encoder (random weights; the cost does not depend on
them, and the errors are those of ill-conditioned Jacobians all the same). Methods take turns,
`--repeats` times, and the median counts. On a CPU, seconds are those of the processor (all threads
together), which other work on the machine disturbs least. Memory is the peak of a fresh process beyond what it held
before (its resident size on a CPU, the allocator's peak on a GPU). The floor is K × one measured
backward pass at the same batch size. The sketch is whitened by a reference set whose embeddings are
computed once, apart from the timing (`reference_seconds` in the JSON).
"""

from __future__ import annotations

import multiprocessing
import pathlib
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
from _listing import plain
from _results import circumstances, kept, parser, store
from scipy.stats import spearmanr
from torch import Tensor, nn

from jepa_monitor import jepa_score
from jepa_monitor.encoders.embedder import Embedder
from jepa_monitor.encoders.isolation import full_float32
from jepa_monitor.jacobian.prepared import fit_reference

# name: (timm model, its options, side, images to time, images to compare with float64)
CASES: dict[str, tuple[str, dict[str, Any], int, int, int]] = {
    "vit_ti8_32": ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8}, 32, 16, 4),
    "resnet18_32": ("resnet18", {}, 32, 8, 2),
    "vit_s16_224": ("vit_small_patch16_224", {}, 224, 1, 1),
    "vit_b16_224": ("vit_base_patch16_224", {}, 224, 1, 0),
}


def build(case: str, device: str) -> tuple[nn.Module, int]:
    torch.manual_seed(0)
    name, options, side, _, _ = CASES[case]
    encoder = timm.create_model(name, num_classes=0, **options).eval().to(device)
    return encoder, side


def draw(count: int, side: int, device: str) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1)).to(device)


def vectorised(encoder: nn.Module, images: Tensor) -> Tensor:
    """The same with torch.func: vmap over images of a reverse-mode Jacobian."""
    single = torch.func.jacrev(lambda image: encoder(image[None])[0])
    jacobians = torch.func.vmap(single)(images).flatten(2)
    return torch.linalg.svdvals(jacobians).clamp_min(1e-6).log().sum(1)


def ours(encoder: nn.Module, images: Tensor) -> Tensor:
    return jepa_score(encoder, images)


def sketched(reference: Any) -> Callable[[nn.Module, Tensor], Tensor]:
    return lambda encoder, images: jepa_score(encoder, images, method="sketch", reference=reference)


def floor(encoder: nn.Module, images: Tensor) -> float:
    """Seconds of K backward passes at this batch size, from a few measured ones."""
    for parameter in encoder.parameters():
        parameter.requires_grad_(False)
    leaf = images.clone().requires_grad_()
    embeddings = encoder(leaf)
    width, selector = embeddings.shape[1], torch.zeros_like(embeddings)
    selector[:, 0] = 1
    times = []
    for _ in range(6):
        start = clock(images)
        torch.autograd.grad(embeddings, leaf, selector, retain_graph=True)
        times.append(clock(images) - start)
    return width * statistics.median(times[1:])


def clock(images: Tensor) -> float:
    """Seconds: of the wall once a GPU has finished, of the processor on a CPU."""
    if not images.is_cuda:
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def timed(method: Callable[[nn.Module, Tensor], Any], encoder: nn.Module, images: Tensor) -> float:
    start = clock(images)
    method(encoder, images)
    return clock(images) - start


def resident() -> int:
    pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * 4096


def peak_memory(case: str, method: str, count: int, device: str, threads: int, queue: Any) -> None:
    """Measure the peak beyond the model, in a process of its own."""
    torch.set_num_threads(threads)
    encoder, side = build(case, device)
    images = draw(count, side, device)
    function = {"plain": plain, "vectorised": vectorised, "ours, exact": ours}[method]
    encoder(images[:1])
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function(encoder, images)
        queue.put(torch.cuda.max_memory_allocated() - before)
        return
    before, peak, done = resident(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    function(encoder, images)
    done.set()
    watcher.join()
    queue.put(peak[0] - before)


def measured_memory(case: str, method: str, count: int, device: str, threads: int) -> float:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(
        target=peak_memory, args=(case, method, count, device, threads, queue)
    )
    process.start()
    process.join()
    return queue.get(timeout=5) / 2**30 if process.exitcode == 0 else float("nan")


def run_case(case: str, args: Any) -> dict[str, Any]:
    encoder, side = build(case, args.device)
    _, _, _, count, compared = CASES[case]
    count = args.images or count
    images = draw(count, side, args.device)
    with torch.no_grad():
        width = encoder(images[:1]).shape[1]
    reference = torch.randn(2 * width if side == 32 else 64, 3, side, side)
    embedder = Embedder(encoder)
    start = clock(images)
    law = fit_reference(embedder, reference, images.device)
    reference_seconds = clock(images) - start
    methods = {
        "plain": plain,
        "vectorised": vectorised,
        "ours, exact": ours,
        "ours, sketch": sketched(law),
    }
    if side > 32 and not args.vectorised and args.device == "cpu":
        del methods["vectorised"]
    times: dict[str, list[float]] = {name: [] for name in methods}
    floors: list[float] = []
    repeats = args.repeats if side == 32 or args.device == "cuda" else 1
    with full_float32():
        for _ in range(repeats):
            floors.append(floor(encoder, images))
            for name, method in methods.items():
                times[name].append(timed(method, encoder, images))
        errors: dict[str, float] = {}
        if compared:
            few = images[:compared]
            truth = jepa_score(encoder, few, precision="float64")
            for name in ("plain", "ours, exact"):
                errors[name] = float((methods[name](encoder, few) - truth).abs().max())
    result: dict[str, Any] = {
        "images": count,
        "K": width,
        "reference_seconds": reference_seconds,
        "floor": statistics.median(floors) / count,
        "seconds": {name: statistics.median(values) / count for name, values in times.items()},
        "error_nats": errors,
    }
    if side == 32:
        exact = ours(encoder, images)
        result["spearman_random_weights"] = float(
            spearmanr(exact.cpu(), sketched(law)(encoder, images).cpu()).statistic
        )
    if args.memory:
        result["memory_gib"] = {
            f"{name} × {n}": measured_memory(case, name, n, args.device, args.threads)
            for name, n in (("plain", 1), ("plain", 2), ("ours, exact", 1), ("ours, exact", 2))
        }
    return result


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--repeats", type=int, default=3, help="turns (default: %(default)s)")
    options.add_argument("--images", type=int, default=None, help="instead of the case's own")
    options.add_argument("--memory", action="store_true", help="measure the peak memory as well")
    options.add_argument("--vectorised", action="store_true", help="also at 224 px on a CPU")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    results = kept(args.out, circumstances(args.threads, args.device))  # other cases stay
    print(
        "| case | K | floor | plain | vectorised | ours, exact | ours, sketch | error plain | error ours |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for case in args.cases:
        found = results[case] = run_case(case, args)
        seconds, floor_seconds = found["seconds"], found["floor"]

        def cell(name: str, seconds: dict[str, float] = seconds) -> str:
            if name not in seconds:
                return "–"
            return f"{seconds[name]:.3g} s ({seconds[name] / seconds['plain']:.2f}×)"

        errors = [
            f"{found['error_nats'].get(n, float('nan')):.1g}" for n in ("plain", "ours, exact")
        ]
        print(
            f"| {case} × {found['images']} | {found['K']} | {floor_seconds:.3g} s | {cell('plain')} | "
            f"{cell('vectorised')} | {cell('ours, exact')}, {seconds['ours, exact'] / floor_seconds:.2f} "
            f"floors | {cell('ours, sketch')} | {errors[0]} | {errors[1]} |",
            flush=True,
        )
        store(args.out, results)


if __name__ == "__main__":
    main()
