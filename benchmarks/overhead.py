"""What share of a run do the callbacks take? The I-JEPA recipe at its CIFAR size.

    python benchmarks/overhead.py    # prints the table; --out FILE writes it

Times training steps (`recipes/configs/ijepa_cifar10.yaml`: ViT of width 192 and depth 9 on 32 px, 256
images a step) and single evaluations with the callbacks' default settings, taking turns. Seconds are of
the processor on a CPU and of the wall on a GPU. The share is that of an evaluation after every epoch of
50 000 images (195 steps), before `max_overhead` puts anything off; for CollapseCallback of a look every
50 steps. Images are noise with labels, which the callback finds where there are any: the cost does not
depend on them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from _results import circumstances, parser, store
from torch import Tensor

from jepa_monitor import DensityMonitor, ScoreOptions
from jepa_monitor.monitor.alarm import CollapseAlarm
from jepa_monitor.recipes.ijepa import IJepa

BATCH, STEPS = 256, 195
MODEL: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 3,
    "patch_size": 4,
    "width": 192,
    "depth": 9,
    "heads": 3,
    "predictor_width": 96,
    "predictor_depth": 3,
    "predictor_heads": 3,
    "min_context": 8,
}


def seconds(work: Callable[[], Any], device: str) -> float:
    clock = time.process_time if device == "cpu" else time.perf_counter
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--repeats", type=int, default=2, help="turns (default: %(default)s)")
    options.add_argument("--batch", type=int, default=BATCH, help="images a training step")
    options.add_argument("--images", type=int, default=512, help="of the probe, the reference")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    module = IJepa(**MODEL).to(args.device)
    optimizer = module.configure_optimizers()
    batch = torch.randn(args.batch, 3, 32, 32, device=args.device)

    def step() -> None:
        optimizer.zero_grad()
        module.loss(batch, module.masks(args.batch, 0)).backward()
        optimizer.step()
        module.after_step({"momentum": 0.996})

    def draw(count: int) -> Tensor:
        return torch.randn(count, 3, 32, 32)

    count = args.images
    labels = torch.arange(count) % 10
    sketch = DensityMonitor(
        draw(count),
        reference=draw(count),
        polarity_samples=8,
        labels=labels,
        online=module.encoder,
    )
    insights = DensityMonitor(
        draw(count),
        reference=draw(count),
        polarity_samples=8,
        insights=["alignment", "tasks", "separation", "neighbors"],
        labels=labels,
        online=module.encoder,
    )
    exact = DensityMonitor(draw(count // 8), options=ScoreOptions(method="exact"))
    embeddings, alarm = draw(count).to(args.device), CollapseAlarm(1000)

    def collapse() -> None:
        with torch.no_grad():
            alarm.update(1 + alarm_steps[0], module.target_encoder(embeddings))
        alarm_steps[0] += 1

    alarm_steps = [0]
    encoder = module.target_encoder
    works: dict[str, Callable[[], Any]] = {
        "training step": step,
        "JepaScoreCallback, default": lambda: sketch.evaluate(encoder),
        "the same with all insights": lambda: insights.evaluate(encoder),
        f"{count // 8} images, all rows, no reference": lambda: exact.evaluate(encoder),
        "CollapseCallback": collapse,
    }
    step()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(args.repeats):
        for name, work in works.items():
            times[name].append(seconds(work, args.device))
    medians = {name: statistics.median(values) for name, values in times.items()}
    one = medians.pop("training step")
    found = circumstances(args.threads, args.device)
    print(f"{found['device']}: a training step takes {one:.2f} s\n")
    print("| evaluation | seconds | training steps | share of the run |\n|---|---|---|---|")
    for name, value in medians.items():
        every = 50 if name == "CollapseCallback" else STEPS
        share = value / (value + every * one)
        print(f"| {name} | {value:.2f} | {value / one:.1f} | {share:.1%} |")
    store(args.out, found | {"training step": one, **medians})


if __name__ == "__main__":
    main()
