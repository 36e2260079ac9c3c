"""Sparse autoencoders of patch tokens (arXiv 2510.08638 and 2505.11836), each number beside its control.

Run ``python -m jepa_monitor.recipes.sae`` to train a small LeJEPA on textures and a dictionary of its tokens in a few minutes,
or name an encoder of your own with ``--encoder``; see ``docs/recipes/sae.md``. To change the code, the dictionary or how
either is trained, edit ``sparse_autoencoders.py``.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from jepa_monitor.encoders.tokens import encoder_tokens
from jepa_monitor.functional import dictionary_stability, kmeans_pca
from jepa_monitor.functional._tokens import chosen_places
from jepa_monitor.metrics import DictionaryGeometry, TokenGeometry
from jepa_monitor.recipes.data import NAMES, ImageDataModule
from jepa_monitor.recipes.lejepa import LeJepa
from jepa_monitor.recipes.sparse_autoencoders import (
    CODES,
    STARTS,
    VARIANTS,
    Settings,
    SparseAutoencoder,
    encode,
    train,
    unexplained,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

BASELINE_TOKENS = 20_000  # at most, that k-means + PCA is fitted to
GEOMETRY_IMAGES = 128  # held-out ones whose tokens' shape is measured


# ------------------------------------------------------------------------------------------ tokens
class Tokens(NamedTuple):
    """Patch tokens of training and held-out images, as the encoder gives them.

    Args:
        train: (B, P, d), float32.
        held_out: (B', P, d).
        images: The held-out images as the encoder sees them, (B', C, H, W).
        grid: Rows and columns of patches, or None.
    """

    train: Tensor
    held_out: Tensor
    images: Tensor
    grid: tuple[int, int] | None


def small_encoder(data: ImageDataModule, epochs: int, path: Path, seed: int) -> nn.Module:
    """Train a small LeJEPA, whose tokens are then looked at, and keep its checkpoint.

    Args:
        data: Images, with two views of each.
        epochs: How many; 0 leaves it as it is drawn.
        path: Of the checkpoint.
        seed: Of its weights.

    Returns:
        The encoder.
    """
    from lightning.pytorch import Trainer

    method = LeJepa(image_size=data.image_size, in_channels=data.channels, seed=seed)
    trainer = Trainer(
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        devices=1,
    )
    trainer.fit(method, datamodule=data)
    trainer.save_checkpoint(path)
    encoder: nn.Module = method.network.encoder  # type: ignore[assignment]
    return encoder.cpu().eval()


def read_tokens(chosen: argparse.Namespace) -> Tokens:
    """Pass images through the encoder that was asked for.

    Args:
        chosen: The command line.

    Returns:
        The tokens.
    """
    data = ImageDataModule(
        chosen.data, image_size=chosen.image_size, crop_scale=0.6, global_views=2, root=chosen.root
    )
    data.prepare_data()
    data.setup()
    sets: list[Any] = [data.plain_train_set, data.val_set]
    if chosen.encoder is None:
        path = chosen.folder / "encoder.ckpt"
        encoder: Any = small_encoder(data, chosen.encoder_epochs, path, 0)
        print(f"LeJEPA for {chosen.encoder_epochs} epochs on {chosen.data}: {path}", flush=True)
    else:
        from torchvision.transforms.v2.functional import to_pil_image

        from jepa_monitor.cli.models import load_encoder

        loaded = load_encoder(chosen.encoder)
        encoder = loaded.encoder
        for said in loaded.assumed:
            print(f"Assumed: {said}.")

        def seen(image: Any) -> Tensor:
            picture = to_pil_image(image) if isinstance(image, Tensor) else image
            shown: Tensor = loaded.transform(picture.convert("RGB")) if loaded.transform else image
            return shown

        sets = [[(seen(part.images[i][0]), 0) for i in _rows(part, chosen)] for part in sets]
    found = []
    for part in sets:
        rows = _rows(part, chosen)
        images = torch.stack([part[i][0] for i in rows])
        passed = [encoder_tokens(encoder, [encoder], batch) for batch in torch.split(images, 64)]
        found.append((torch.cat([each.patches for each in passed]).float(), images, passed[0].grid))
    return Tokens(found[0][0], found[1][0], found[1][1], found[1][2])


def _rows(part: Any, chosen: argparse.Namespace) -> list[int]:
    return chosen_places(len(part), chosen.images, 0).tolist()


# -------------------------------------------------------------------------------------- comparison
def report(tokens: Tokens, models: list[SparseAutoencoder], points: list[Tensor]) -> dict[str, Any]:
    """Measure dictionaries of several seeds, and the tokens themselves.

    Args:
        tokens: As the encoder gives them.
        models: Trained, one a seed.
        points: Training and held-out tokens as the models saw them, (N, d).

    Returns:
        Numbers by name, of the dictionaries lists.
    """
    h, (known, new) = models[0].settings, points
    places = tokens.held_out.shape[1]
    rows: list[dict[str, float]] = []
    for model in models:
        codes, again = encode(model, new)
        metric = DictionaryGeometry(model.dictionary().detach(), places=places)
        metric.update(codes.view(-1, places, h.atoms))
        row = {name: float(value) for name, value in metric.compute().items()}
        row["unexplained"] = unexplained(new, again)
        row["unexplained_published"] = unexplained(new, again, scalar_mean=True)
        rows.append(row)
    pairs = [
        dictionary_stability(a.dictionary().detach(), b.dictionary().detach())
        for i, a in enumerate(models)
        for b in models[i + 1 :]
    ]
    some = known[chosen_places(len(known), BASELINE_TOKENS, 0)]
    rank = min(h.k, known.shape[1])
    cells = max(2 * h.atoms // (rank + 1), 1)
    local, plain = (kmeans_pca(some, m, rank).reconstruct(new) for m in (cells, 1))
    archetypes = max(min(10, places // 2), 2)
    shape = TokenGeometry(places, known.shape[1], archetypes, min(6, places - 1))
    shape.update(tokens.held_out[:GEOMETRY_IMAGES])
    return {
        "dictionaries": {name: [row[name] for row in rows] for name in rows[0]},
        "stability": [float(pair.cosine) for pair in pairs],
        "stability_random": float(pairs[0].random) if pairs else float("nan"),
        "baseline": {
            f"k-means + PCA, {cells} cells of rank {rank}": unexplained(new, local),
            f"PCA of rank {rank}": unexplained(new, plain),
        },
        "archetypes": archetypes,
        "tokens": {name: float(value) for name, value in shape.compute().items()},
    }


def several(values: Sequence[float], form: str = "{:.3f}") -> str:
    """Write numbers of several seeds.

    Args:
        values: Them.
        form: Of each.

    Returns:
        Mean and range.
    """
    if not values:
        return "–"
    mean = form.format(sum(values) / len(values))
    if len(values) == 1:
        return mean
    return f"{mean} ({form.format(min(values))} to {form.format(max(values))})"


def table(found: dict[str, Any]) -> str:
    """Summarise in Markdown.

    Args:
        found: From :func:`report`.

    Returns:
        A row for each number, with what it is to be compared with.
    """
    d, t, k = found["dictionaries"], found["tokens"], found["archetypes"]
    baseline = "; ".join(f"{name}: {value:.3f}" for name, value in found["baseline"].items())

    def first(name: str) -> str:
        return f"{d[name][0]:.3f}"

    def beside(name: str) -> tuple[str, str]:
        return f"{t[name]:.2f}", f"{t[name + '_gaussian']:.2f} (Gaussian tokens)"

    rows = [
        ("unexplained share of the variance", several(d["unexplained"]), baseline),
        ("the same about one scalar mean, as published", several(d["unexplained_published"]), ""),
        ("atoms that fire for a token", several(d["active"], "{:.1f}"), ""),
        ("dead atoms", several(d["dead"]), ""),
        ("energy in the strongest tenth of atoms", several(d["energy_top_share"]), "0.100 if even"),
        (
            "coherence",
            several(d["coherence"]),
            f"{first('random')} (random), {first('welch')} (Welch)",
        ),
        ("mean absolute cosine", several(d["mean"]), f"{first('random_mean')} (random)"),
        (
            "stable rank of the atoms",
            several(d["stable_rank"], "{:.1f}"),
            f"{d['random_stable_rank'][0]:.1f} (random)",
        ),
        (
            "atoms with an antipode",
            several(d["antipodal"]),
            f"{first('random_antipodal')} (random)",
        ),
        ("Hoyer sparsity of an atom", several(d["hoyer"]), f"{first('gaussian_hoyer')} (random)"),
        (
            "footprint entropy",
            several(d["footprint_entropy"]),
            f"{several(d['footprint_null'])} (places shuffled)",
        ),
        (
            "stability between seeds",
            several(found["stability"]),
            f"{found['stability_random']:.3f} (random)",
        ),
        ("tokens: stable rank of place", *beside("position_rank")),
        ("tokens: dimensions of 95 % of an image's variance", *beside("dimensions")),
        ("tokens: the same without two axes of place", *beside("content_dimensions")),
        (
            f"tokens: variance that {k} archetypes leave",
            f"{t['archetype_error']:.3f}",
            f"{t['archetype_error_gaussian']:.3f} (Gaussian); {t['pca_error']:.3f} ({k - 1} axes)",
        ),
        ("tokens: geodesic over straight", *beside("geodesic_ratio")),
        ("tokens: emptiness of midpoints", *beside("midpoint_gap")),
    ]
    lines = ["| what | found | beside it |", "|---|---|---|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def draw(
    tokens: Tokens, codes: Tensor, energy: Tensor, atoms: int = 8, shown: int = 8
) -> Figure | None:
    """Draw for each of the strongest atoms the images in which it fires most, with the patch framed.

    Args:
        tokens: Images and their grid.
        codes: Of the held-out images, (B, P, c).
        energy: Of each atom, (c,).
        atoms: Rows.
        shown: Images in a row, each of another image.

    Returns:
        The figure; None where tokens are on no grid, or images have neither one nor three channels.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    if tokens.grid is None or tokens.images.shape[1] not in (1, 3):
        return None
    side = tokens.images.shape[2] / tokens.grid[0], tokens.images.shape[3] / tokens.grid[1]
    strongest = energy.topk(min(atoms, len(energy))).indices.tolist()
    figure = Figure(figsize=(shown + 0.25, len(strongest)))
    axes = figure.subplots(len(strongest), shown, squeeze=False)
    figure.subplots_adjust(0.25 / (shown + 0.25), 0.005, 0.995, 0.995, 0.06, 0.06)
    for row, atom in zip(axes, strongest, strict=True):
        value, place = codes[:, :, atom].max(1)
        best = value.topk(min(shown, len(value))).indices.tolist()
        for axis, image in zip(row, best, strict=False):
            picture = tokens.images[image].permute(1, 2, 0)
            low, high = picture.min(), picture.max()
            axis.imshow((picture - low) / (high - low).clamp(min=1e-9), cmap="gray")
            down, right = divmod(int(place[image]), tokens.grid[1])
            corner = right * side[1] - 0.5, down * side[0] - 0.5
            if value[image] > 0:
                axis.add_patch(
                    Rectangle(corner, side[1], side[0], fill=False, color="#D55E00", lw=1.6)
                )
        for axis in row:
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(f"atom {atom}", fontsize=7)
    return figure


# ------------------------------------------------------------------------------------ command line
def parser() -> argparse.ArgumentParser:
    """Make the command line.

    Returns:
        Its parser.
    """
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add, h = made.add_argument, Settings()
    add("--encoder", help="timm/NAME, a checkpoint, …; default: a small LeJEPA, trained first")
    add("--encoder_epochs", type=int, default=10, help="of that LeJEPA")
    add("--data", default="textures", help=", ".join(NAMES))
    add("--root", default="data", help="folder of downloads")
    add("--image_size", type=int, default=32, help="of the small LeJEPA")
    add("--images", type=int, default=1000, help="of training at most, and likewise held out")
    add("--uncentred", action="store_true", help="as published: the mean stays in the tokens")
    add("--seeds", type=int, default=2, help="number of seeds, from 0")
    for name, choices in (("variant", VARIANTS), ("codes", CODES), ("start", STARTS)):
        add(f"--{name}", choices=choices, default=getattr(h, name))
    add("--tied", action="store_true", help="atoms are the encoder's weight")
    add(
        "--start_seed",
        type=int,
        help="of k-means, as published one for all seeds; default: the seed",
    )
    for item in fields(Settings):
        value = getattr(h, item.name)
        if item.name != "seed" and isinstance(value, (int, float)) and not isinstance(value, bool):
            add(f"--{item.name}", type=type(value), default=value, help=f"default {value}")
    add("--folder", type=Path, default=Path("runs/sae"))
    return made


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Train from the command line.

    Args:
        arguments: Or None for those of the process.

    Returns:
        What was measured.

    Raises:
        SystemExit: If arguments do not fit the tokens.
    """
    made = parser()
    chosen = made.parse_args(arguments)
    if chosen.seeds < 1 or chosen.images < 2:
        made.error(
            f"--seeds must be at least 1 and --images 2, got {chosen.seeds}, {chosen.images}"
        )
    chosen.folder.mkdir(parents=True, exist_ok=True)
    given: dict[str, Any] = {
        item.name: getattr(chosen, item.name) for item in fields(Settings) if item.name != "seed"
    }
    settings = Settings(**given)
    tokens = read_tokens(chosen)
    known, new = (part.flatten(0, 1) for part in (tokens.train, tokens.held_out))
    shift = torch.zeros(known.shape[1]) if chosen.uncentred else known.mean(0)
    size = (known - known.mean(0)).square().mean().sqrt().clamp(min=1e-12)
    points = [(part - shift) / size for part in (known, new)]
    print(f"{len(known)} tokens of {known.shape[1]} numbers, {len(new)} held out", flush=True)
    try:
        models = [train(points[0], replace(settings, seed=seed)) for seed in range(chosen.seeds)]
    except ValueError as error:
        made.error(str(error))
    found = report(tokens, models, points)
    (chosen.folder / "report.json").write_text(json.dumps(found, indent=1) + "\n")
    model = models[0]
    state = {"state_dict": model.state_dict(), "dictionary": model.dictionary().detach()}
    torch.save({**state, "shift": shift, "size": size, "settings": given}, chosen.folder / "sae.pt")
    print(table(found))
    codes = encode(model, points[1])[0].view(len(tokens.held_out), -1, settings.atoms)
    energy = codes.square().mean((0, 1)) * model.dictionary().detach().square().sum(1)
    figure = draw(tokens, codes, energy)
    if figure is not None:
        figure.savefig(chosen.folder / "atoms.png", dpi=110)
        print(chosen.folder / "atoms.png")
    print(f"Dictionary, shift and size of the tokens: {chosen.folder / 'sae.pt'}")
    return found


if __name__ == "__main__":
    main()
