"""A latent world model from pixels (LeWorldModel, arXiv 2603.19312): predict the next embedding, keep embeddings Gaussian.

Run ``python -m jepa_monitor.recipes.world`` to train on two moving sprites in a few minutes; see
``docs/recipes/world.md``. There is no teacher, no stop-gradient and no reconstruction. To change the
method, edit ``LatentWorld.training_step``; to change the world, ``sprites.py``.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from jepa_monitor import JepaScoreCallback
from jepa_monitor.functional.gaussianity import slice_directions
from jepa_monitor.functional.identifiability import map_agreement
from jepa_monitor.insights import Clips
from jepa_monitor.recipes.datasets import mixed_seed
from jepa_monitor.recipes.lejepa import sigreg
from jepa_monitor.recipes.sprites import SpriteClips, sprite_clips

if TYPE_CHECKING:
    from collections.abc import Sequence

NORMS = ("batch", "none")
HISTORY = 3  # frames that the predictor sees
_MEAN, _STD = 0.05, 0.18  # of the pixels


def as_pixels(frames: Tensor) -> Tensor:
    """Turn bytes into what the encoder sees.

    Args:
        frames: Bytes, any shape.

    Returns:
        Float32, of the same shape.
    """
    return (frames.float() / 255 - _MEAN) / _STD


class FrameEncoder(nn.Module):
    """A small convolutional network: frames (B, 1, 32, 32) in, (B, K) out.

    Args:
        width: K.
        norm: ``"batch"``, before the last layer, or ``"none"``.

    Raises:
        ValueError: If there is no such norm.
    """

    def __init__(self, width: int, norm: str = "batch") -> None:
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"`norm` must be one of {', '.join(NORMS)}, got {norm!r}.")
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 4, 2, 1), nn.GELU(),
            nn.Conv2d(32, 64, 4, 2, 1), nn.GELU(),
            nn.Conv2d(64, 64, 4, 2, 1), nn.GELU(),
            nn.Flatten(), nn.Linear(64 * 16, 256), nn.BatchNorm1d(256) if norm == "batch" else nn.Identity(), nn.GELU(),
            nn.Linear(256, width),
        )  # fmt: skip

    def forward(self, frames: Tensor) -> Tensor:
        """Embed frames.

        Args:
            frames: (B, 1, 32, 32).

        Returns:
            (B, K).
        """
        found: Tensor = self.body(frames)
        return found


class LatentPredictor(nn.Module):
    """A causal transformer: what follows each of the last embeddings, by the actions.

    Args:
        width: K.
        actions: Numbers in an action.
        hidden: Width of the transformer.
        depth: Its layers.
        dropout: As in the paper.
    """

    def __init__(
        self, width: int, actions: int = 2, hidden: int = 128, depth: int = 2, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.states, self.moves = nn.Linear(width, hidden), nn.Linear(actions, hidden)
        self.places = nn.Parameter(0.02 * torch.randn(HISTORY, hidden))
        layer = nn.TransformerEncoderLayer(
            hidden, 4, 2 * hidden, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(hidden), nn.Linear(hidden, width)
        nn.init.zeros_(self.head.weight)  # at first nothing moves
        nn.init.zeros_(self.head.bias)

    def forward(self, embeddings: Tensor, actions: Tensor) -> Tensor:
        """Predict.

        Args:
            embeddings: Of t ≤ 3 frames in a row, (B, t, K).
            actions: From each of them on, (B, t, A).

        Returns:
            Of the frames behind each, (B, t, K).
        """
        t = embeddings.shape[1]
        tokens = self.states(embeddings) + self.moves(actions) + self.places[:t]
        mask = torch.full((t, t), -torch.inf, device=tokens.device).triu(1)
        found: Tensor = embeddings + self.head(self.norm(self.blocks(tokens, mask, is_causal=True)))
        return found


@dataclass(frozen=True)
class Settings:
    """How to train; the defaults are those of the table.

    Args:
        sigreg_weight: λ: the loss is prediction + λ · SIGReg; 0 for none.
        norm: Of the encoder's last hidden layer: ``"batch"`` or ``"none"``.
        width: K.
        slices: Random directions of SIGReg, new ones at each step.
        learning_rate: Of AdamW, after a tenth of the steps, falling to 0.
        epochs: Passes over the clips.
        batch_size: Clips of a step.
        clips: To train on.
        steps: Frames of a clip.
        seed: Of weights and order; the clips are always the same.
    """

    sigreg_weight: float = 0.1
    norm: str = "batch"
    width: int = 32
    slices: int = 256
    learning_rate: float = 1e-3
    epochs: int = 12
    batch_size: int = 64
    clips: int = 2000
    steps: int = 8
    seed: int = 0


class LatentWorld(pl.LightningModule):
    """Encoder and predictor, trained together.

    Logs ``train/loss``, ``train/prediction``, ``train/sigreg``.

    Args:
        settings: How.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.encoder = FrameEncoder(settings.width, settings.norm)
        self.predictor = LatentPredictor(settings.width)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Compute the loss. Nothing is detached.

        Args:
            batch: Frames (B, T, 1, 32, 32), bytes, and actions (B, T − 1, 2).
            batch_idx: Its number.

        Returns:
            The loss.
        """
        frames, actions = batch
        count, steps = frames.shape[:2]
        z = self.encoder(as_pixels(frames).flatten(0, 1)).unflatten(0, (count, steps))
        # Every run of four frames: three that are seen, and what follows each of them.
        runs = z.unfold(1, HISTORY + 1, 1).transpose(2, 3).flatten(0, 1)
        moves = actions.unfold(1, HISTORY, 1).transpose(2, 3).flatten(0, 1)
        prediction = F.mse_loss(self.predictor(runs[:, :-1], moves), runs[:, 1:])
        seed = mixed_seed(self.settings.seed, self.global_step)
        directions = slice_directions(z.shape[2], self.settings.slices, seed).float()
        # Step by step: clips are independent, the frames of a clip are not.
        gaussian = torch.stack([sigreg(step, directions) for step in z.unbind(1)]).mean()
        loss: Tensor = prediction + self.settings.sigreg_weight * gaussian
        self.log_dict(
            {"train/loss": loss, "train/prediction": prediction, "train/sigreg": gaussian}
        )
        return loss

    def configure_optimizers(self) -> Any:
        """Give AdamW with a one-cycle schedule.

        Returns:
            Both, as Lightning takes them.
        """
        optimizer = torch.optim.AdamW(
            self.parameters(), self.settings.learning_rate, weight_decay=1e-3
        )
        total = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            self.settings.learning_rate,
            max(total, 2),
            pct_start=0.1,
            cycle_momentum=False,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Places(pl.Callback):
    """Logs how much of where the sprites are can be read off the embedding, linearly: ``eval/disc_r2``, ``eval/square_r2``.

    Args:
        clips: Held out.
        every_n_steps: How often.
    """

    def __init__(self, clips: SpriteClips, every_n_steps: int) -> None:
        self.frames = as_pixels(clips.frames[:, -1])
        self.places = clips.places[:, -1]
        self.every_n_steps = every_n_steps
        self.history: list[dict[str, float]] = []

    def look(self, pl_module: LatentWorld) -> dict[str, float]:
        """Fit to one half of the clips, try on the other, and the other way round.

        Args:
            pl_module: The model.

        Returns:
            R² by tag.
        """
        training = pl_module.encoder.training
        pl_module.encoder.eval()
        with torch.no_grad():
            z = pl_module.encoder(self.frames.to(pl_module.device)).cpu()
        pl_module.encoder.train(training)
        found = {}
        for name, which in (("disc", slice(0, 2)), ("square", slice(2, 4))):
            read = (
                map_agreement(z, self.places[:, which], "linear")
                if bool(z.var(0).sum() > 0)
                else None
            )
            found[f"eval/{name}_r2"] = 0.0 if read is None else float(read.value)
        return found

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Look when it is time.

        Args:
            trainer: The Trainer.
            pl_module: The model.
        """
        if trainer.global_step % self.every_n_steps == 0:
            self._take(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Look before the first step.

        Args:
            trainer: The Trainer.
            pl_module: The model.
        """
        self._take(trainer, pl_module)

    def _take(self, trainer: pl.Trainer, pl_module: Any) -> None:
        found = self.look(pl_module)
        self.history.append({"step": float(trainer.global_step), **found})
        for logger in trainer.loggers:
            logger.log_metrics(found, trainer.global_step)


@dataclass(frozen=True)
class Run:
    """What a training run leaves behind.

    Args:
        looks: The monitor's.
        places: What linear probes read, at the same steps.
        alarm: The step at which the alarm of a collapse began; ``None`` if it did not.
        model: The trained model.
    """

    looks: list[dict[str, float]]
    places: list[dict[str, float]]
    alarm: int | None
    model: LatentWorld


def train(settings: Settings, folder: Path, looks: int = 8, held_out: int = 256) -> Run:
    """Train, with the monitor in place.

    Args:
        settings: How.
        folder: For TensorBoard's files and the page of the run.
        looks: How often to look, about.
        held_out: Clips that are not trained on.

    Returns:
        The run.

    Raises:
        ValueError: If there are fewer than 32 held-out clips, of which nothing can be read, or fewer to
            train on than a step takes.
    """
    if held_out < 32:
        raise ValueError(f"`held_out` must be at least 32, got {held_out}.")
    if settings.clips < settings.batch_size:
        raise ValueError(
            f"`clips` must be at least the {settings.batch_size} of a step, got {settings.clips}."
        )
    clips = sprite_clips(settings.clips, settings.steps, seed=0)
    apart = sprite_clips(held_out, settings.steps, seed=1)
    pl.seed_everything(settings.seed, verbose=False)
    model = LatentWorld(settings)
    order = torch.Generator().manual_seed(settings.seed)
    loader = DataLoader(
        TensorDataset(clips.frames, clips.actions), settings.batch_size, shuffle=True, drop_last=True, generator=order
    )  # fmt: skip
    every = max(1, settings.epochs * len(loader) // looks)
    alarms: list[int] = []
    places = Places(apart, every)
    monitor = JepaScoreCallback(
        "encoder",
        probe=as_pixels(apart.frames[:, -1]),
        reference=as_pixels(clips.frames[:512, -1]),
        world=Clips(as_pixels(apart.frames), apart.actions, model.predictor, history=HISTORY),
        every_n_steps=every,
        polarity_samples=0,
        max_overhead=None,
        patience_steps=every,
        on_collapse=lambda trainer, *_: alarms.append(trainer.global_step),
    )
    trainer = pl.Trainer(
        max_epochs=settings.epochs, accelerator="cpu", logger=TensorBoardLogger(folder, name="", version=""),
        enable_checkpointing=False, enable_model_summary=False, callbacks=[places, monitor], log_every_n_steps=10,
    )  # fmt: skip
    trainer.fit(model, loader)
    return Run(monitor.history, places.history, alarms[0] if alarms else None, model)


# ------------------------------------------------------------------------------------ command line
def main(arguments: Sequence[str] | None = None) -> Run:
    """Train from the command line.

    Args:
        arguments: Or None for those of the process.

    Returns:
        The run.
    """
    defaults = Settings()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name, value in vars(defaults).items():
        parser.add_argument(
            f"--{name}", type=type(value), default=value, help="(default: %(default)s)"
        )
    parser.add_argument("--looks", type=int, default=8, help="at the encoder, about")
    parser.add_argument("--held_out", type=int, default=256, help="clips that are not trained on")
    parser.add_argument("--folder", type=Path, default=Path("runs/world"))
    given = vars(parser.parse_args(arguments))
    folder, looks, held_out = (given.pop(name) for name in ("folder", "looks", "held_out"))
    run = train(Settings(**given), folder, looks, held_out)
    last, read = run.looks[-1], run.places[-1]
    print(
        f"Of held-out clips the next embedding is predicted but for {last.get('world/error', float('nan')):.1%} of its "
        f"variance (standing still: {last.get('world/error_still', float('nan')):.1%}); a cut is told with an AUROC of "
        f"{last.get('world/surprise', float('nan')):.3f}. Of the disc's place {read['eval/disc_r2']:.0%} of the variance "
        f"is read off linearly, of the square's {read['eval/square_r2']:.0%}."
    )
    print(
        "No collapse."
        if run.alarm is None
        else f"The alarm of a collapse began at step {run.alarm}."
    )
    return run


if __name__ == "__main__":
    main()
