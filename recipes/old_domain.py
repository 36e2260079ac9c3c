"""The images that a backbone knew before it is steered to others: to learn first, to watch beside."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import Trainer

from jepa_monitor.callbacks import JepaScoreCallback
from jepa_monitor.recipes.cli import ClosingTable, RecipeCLI
from jepa_monitor.recipes.data import ImageDataModule
from jepa_monitor.recipes.diet import Diet, IndexedDataModule
from jepa_monitor.recipes.lejepa import LeJepa

if TYPE_CHECKING:
    from lightning.pytorch.cli import LightningArgumentParser

OLD_ROWS = (
    ("Old domain: JEPA-SCORE, mean (nats)", "old/jepa_score/mean", "{:.1f}"),
    ("Old domain: RankMe", "old/collapse/rankme", "{:.1f}"),
)


def photographs(root: str | Path, channels: int) -> str:
    """Cut scikit-learn's two photographs (China, flower) into an old domain without a download.

    Squares of 64 pixels at random places: 1000 from the left three quarters of the photographs, 200
    to hold out from the right quarter. The label says which photograph it was.

    Args:
        root: Folder to write them to, once.
        channels: 1 for grey, 3 for colour.

    Returns:
        A name for ``ImageDataModule``.

    Raises:
        ValueError: If there shall be other channels.
    """
    from sklearn.datasets import load_sample_images

    if channels not in (1, 3):
        raise ValueError(
            f"`old.name`='photographs' has 1 or 3 channels, the images have {channels}: name others, "
            "or null for none."
        )
    path = Path(root) / f"photographs_{channels}.npz"
    if path.is_file():
        return f"npz:{path}"
    generator, side = np.random.default_rng(0), 64
    arrays: dict[str, Any] = {}
    pictures: list[Any] = load_sample_images().images
    for part, count in (("train", 1000), ("test", 200)):
        labels = np.arange(count) % len(pictures)
        squares = []
        for label in labels:
            height, width = pictures[label].shape[:2]
            border = 3 * width // 4
            low, high = (0, border) if part == "train" else (border, width)
            top, left = generator.integers(0, height - side), generator.integers(low, high - side)
            squares.append(pictures[label][top : top + side, left : left + side])
        images = np.stack(squares)
        if channels == 1:
            images = (images @ np.array([0.299, 0.587, 0.114])).round().astype(np.uint8)
        arrays |= {f"{part}_images": images, f"{part}_labels": labels}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
    return f"npz:{path}"


class DietCLI(RecipeCLI):
    """The recipes' command line, with an old domain: its images, its monitor, and its pretraining.

    Args:
        model: The method.
        data: Ignored: the method needs an ``IndexedDataModule``.
        **kwargs: See ``RecipeCLI``.
    """

    def __init__(self, model: type[Diet], data: type[ImageDataModule], **kwargs: Any) -> None:
        super().__init__(model, IndexedDataModule, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add ``--old.name``, ``--old.epochs`` and ``--old_monitor.*``.

        Args:
            parser: The parser to extend.
        """
        parser.add_argument(
            "--old.name",
            type=str | None,
            default="photographs",
            help="Images that the backbone knew before, to watch beside the new ones: "
            "``photographs`` (scikit-learn's two, in pieces), a name as for --data, or null.",
        )
        parser.add_argument(
            "--old.epochs",
            type=int,
            default=20,
            help="Epochs for which a backbone that knows nothing is first trained on the old "
            "images, with LeJEPA; 0 for none.",
        )
        parser.add_lightning_class_args(JepaScoreCallback, "old_monitor")
        super().add_arguments_to_parser(parser)

    def before_instantiate_classes(self) -> None:
        """Look at both domains at the same times."""
        super().before_instantiate_classes()
        for name in ("every_n_epochs", "every_n_steps"):
            self.config["old_monitor"][name] = self.config["monitor"][name]

    def before_fit(self) -> None:
        """Give the old domain's monitor its images, and the backbone its past."""
        trainer, model = self.trainer, self.model
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        monitor = self.config_init["old_monitor"]
        if self.config["old.name"] is None:
            callbacks.remove(monitor)
            return
        old = self.old_data()
        old.prepare_data()
        old.setup()
        monitor.probe = old.val_set
        monitor.settings = dataclasses.replace(monitor.settings, reference=old.train_set)
        for table in callbacks:
            if isinstance(table, ClosingTable):
                table.rows = (*table.rows, *OLD_ROWS)
        resumed, epochs = self.config["ckpt_path"] is not None, self.config["old.epochs"]
        if epochs > 0 and not (resumed or model.is_pretrained or model.hparams["backbone"]):
            print(f"First, LeJEPA for {epochs} epochs on {self.config['old.name']}.", flush=True)
            pretrain(model, self.old_data(global_views=2, crop_scale=0.6), epochs)

    def old_data(self, **changes: Any) -> ImageDataModule:
        """Make the old domain's images, in the format of the new ones'.

        Args:
            **changes: Arguments that shall differ.

        Returns:
            The data module.

        Raises:
            ValueError: If they have other channels.
        """
        new, name = self.datamodule, self.config["old.name"]
        name = photographs(new.root, new.channels) if name == "photographs" else name
        settings = {**self.config["data"].as_dict(), "name": name, "flip": None, **changes}
        old = ImageDataModule(**settings)
        if old.channels != new.channels:
            raise ValueError(
                f"`old.name`={name!r} has {old.channels} channels, the new images have "
                f"{new.channels}: name others, or null for none."
            )
        return old


def pretrain(model: Diet, data: ImageDataModule, epochs: int) -> None:
    """Give a small ViT a past: train it with LeJEPA, at that recipe's own settings.

    Args:
        model: Whose backbone to train.
        data: Images of the old domain, with two views of each.
        epochs: How many.
    """
    names = ("image_size", "in_channels", "patch_size", "width", "depth", "heads", "seed")
    method = LeJepa(**{name: model.hparams[name] for name in names})
    method.network.encoder = model.backbone
    trainer = Trainer(
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        devices=1,
    )
    trainer.fit(method, datamodule=data)
