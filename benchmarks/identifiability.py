"""Do two runs learn the same, and up to which maps? docs/identifiability.md.

    JEPA_MONITOR_DATA=… python benchmarks/identifiability.py

ViT-Ti/8s of 4 blocks with projectors to 64 numbers learn from 2,000 images of the CIFAR-10 subset, by LeJEPA (two seeds) and VICReg.
After some steps, and before the first, embeddings of 512 held-out images are compared: two seeds of one method, two methods of one seed,
and an encoder with the raw pixels (8 x 8 means of each channel). Then, of images of one bright disc each, made here, what the backbones
know of its place (two numbers), radius and brightness.
"""

from __future__ import annotations

import torch
from _encoders import Snapshot, data_folder, load_images, normalise, train
from _results import circumstances, parser, store, table
from torch import Tensor
from torch.nn import functional as F

from jepa_monitor.functional import map_agreement, mean_correlation, unbiased_cka
from jepa_monitor.functional.identifiability import MAPS, HeldOut


def embedded(found: Snapshot, images: Tensor) -> dict[str, Tensor]:
    """Backbone and projector of images, (N, 192) and (N, 64)."""
    with torch.no_grad():
        z = torch.cat([found.encoder(part) for part in images.split(128)])
        return {"backbone": z.double(), "projector": found.projector(z).double()}


def discs(count: int) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) of a disc, and its factors (N, 4), each from -1 to 1."""
    factors = 2 * torch.rand(count, 4, generator=torch.Generator().manual_seed(0)) - 1
    x, y, radius, light = factors.T[:, :, None, None]
    grid = torch.linspace(-1, 1, 32)
    apart = ((grid - 0.5 * x) ** 2 + (grid[:, None] - 0.5 * y) ** 2).sqrt()
    edge = ((0.3 + 0.12 * radius - apart) / 0.06).sigmoid()
    pixels = 0.1 + edge * (0.55 + 0.3 * light)
    return normalise(pixels[:, None].expand(-1, 3, -1, -1)), factors


def small(images: Tensor) -> Tensor:
    """Pixels as an embedding, (N, 192)."""
    return F.avg_pool2d(images, 4).flatten(1).double()


def told(found: HeldOut) -> str:
    return f"{found.value:.2f} ± {found.error:.2f}"


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--steps", type=int, nargs="+", default=[0, 100, 400], help="looks")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    data = load_images(data_folder())
    images, (drawn, factors) = data.test[:512], discs(512)
    runs = {"LeJEPA": ("lejepa", 0), "LeJEPA, seed 1": ("lejepa", 1), "VICReg": ("vicreg", 0)}
    looks: dict[int, dict[str, dict[str, Tensor]]] = {step: {} for step in args.steps}
    sprites: dict[int, dict[str, Tensor]] = {step: {} for step in args.steps}
    for name, (method, seed) in runs.items():
        for found in train(method, data.train[:2000], tuple(args.steps), seed=seed):
            looks[found.step][name] = embedded(found, images)
            sprites[found.step][name] = embedded(found, drawn)["backbone"]
    rows = []
    print("\n".join(table("step", "of", "to", "part", *MAPS, "null", "MCC", "CKA")))
    pairs = (("LeJEPA", "LeJEPA, seed 1"), ("LeJEPA", "VICReg"), ("LeJEPA", "pixels"))
    shuffled = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    for step, found in looks.items():
        found["pixels"] = dict.fromkeys(("backbone", "projector"), small(images))
        for one, other in pairs:
            for part in ("backbone", "projector"):
                z, y = found[one][part], found[other][part]
                shares = {kind: map_agreement(z, y, kind) for kind in MAPS}
                null = max(float(map_agreement(z, y[shuffled], kind).value) for kind in MAPS)
                matched, cka = mean_correlation(z, y), float(unbiased_cka(z, y))
                print(
                    f"| {step} | {one} | {other} | {part} | {' | '.join(map(told, shares.values()))} | "
                    f"{null:.2f} | {told(matched)} | {cka:.2f} |",
                    flush=True,
                )
                rows.append(
                    {
                        "step": step, "of": one, "to": other, "part": part, "null": null, "cka": cka,
                        "mcc": float(matched.value),
                        **{kind: float(share.value) for kind, share in shares.items()},
                    }
                )  # fmt: skip
    print("\n" + "\n".join(table("step", "backbone", *MAPS, "MCC")))
    for step, known in sprites.items():
        first = {"pixels": small(drawn)} if step == args.steps[0] else {}
        for name, z in (first | known).items():
            shares = {kind: map_agreement(z, factors, kind) for kind in MAPS}
            matched = mean_correlation(z, factors)
            print(
                f"| {step} | {name} | {' | '.join(map(told, shares.values()))} | {told(matched)} |",
                flush=True,
            )
            rows.append({"step": step, "factors": name, "mcc": float(matched.value)})
    store(args.out, circumstances(args.threads) | {"rows": rows})


if __name__ == "__main__":
    main()
