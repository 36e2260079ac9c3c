"""What the tests of replays share: a small network, its data, and checkpoints as Lightning writes them."""

from __future__ import annotations

import json
import pathlib
import re

import lightning.pytorch as pl
import numpy as np
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torchvision.transforms import v2

SIDE = 8
COSTS = {
    "monitor/seconds", "monitor/overhead", "monitor/skipped", "step",
    "data/duplicates", "data/duplicates_low", "data/duplicates_high",  # of passing batches
}  # fmt: skip


class Wide(pl.LightningModule):
    """K = 48, so that it is sketched."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.GELU(), nn.Flatten(), nn.Linear(8 * 16, 48)
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        z = self.encoder(batch[0])
        return (z - z.roll(1, 0)).square().mean() - 0.5 * z.var(0).sum().sqrt()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def prepared(image: Image.Image) -> Tensor:
    return v2.functional.to_dtype(v2.functional.pil_to_tensor(image), torch.float32, scale=True)


def body() -> tuple[nn.Module, object]:
    """The architecture, as a user's function gives it."""
    return Wide().encoder, prepared


def pixels(count: int, seed: int) -> np.ndarray:
    rough = np.random.default_rng(seed).integers(0, 256, (count, SIDE // 2, SIDE // 2, 3))
    return rough.repeat(2, 1).repeat(2, 2).astype(np.uint8)


def write_data(place: pathlib.Path) -> pathlib.Path:
    held_out, training = pixels(50, 1), pixels(70, 2)
    np.savez(
        place, test_images=held_out, test_labels=np.arange(50) % 5, train_images=training,
        train_labels=np.arange(70) % 5,
    )  # fmt: skip
    return place


def tensors(array: np.ndarray) -> Tensor:
    return torch.stack([prepared(Image.fromarray(image)) for image in array])


def save(folder: pathlib.Path, step: int, *, collapsed: bool = False) -> None:
    """Write a checkpoint as Lightning would."""
    module = Wide()
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        if step:
            module.encoder[0].weight.add_(torch.randn(8, 3, 3, 3, generator=generator), alpha=0.05)
        if collapsed:
            module.encoder[-1].weight.mul_(1e-4)
            module.encoder[-1].bias.fill_(1)
    folder.mkdir(parents=True, exist_ok=True)
    content = {"state_dict": module.state_dict(), "global_step": step, "epoch": step // 6}
    torch.save(content, folder / f"epoch={step // 6}-step={step}.ckpt")


def content(page: pathlib.Path) -> dict:  # type: ignore[type-arg]
    found = re.search(r'type="application/json">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])  # type: ignore[no-any-return]


def events(folder: pathlib.Path) -> EventAccumulator:
    found = EventAccumulator(
        str(folder), {"images": 0, "scalars": 0, "tensors": 0, "histograms": 0}
    )
    return found.Reload()
