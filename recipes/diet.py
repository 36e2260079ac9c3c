"""DIET-CP (arXiv 2509.06990): steer a backbone to a few new images by predicting their numbers.

Run ``python -m jepa_monitor.recipes.diet`` to pretrain a small ViT on photographs and steer it to
handwritten digits in a few minutes; see ``docs/recipes/diet.md``. One linear head tells which of the
N training images a view shows (DIET, arXiv 2302.10260): no teacher, no pairs, no projector. To change
the method, edit one function: ``Diet.loss`` for what is predicted, ``Diet.scheduled`` for which part
trains when, ``freeze_all_but_last`` for how much of the backbone may move.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import timm
import torch
from lightning.pytorch import Trainer
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from jepa_monitor.callbacks import JepaScoreCallback
from jepa_monitor.recipes.cli import ClosingTable, RecipeCLI, train
from jepa_monitor.recipes.data import ImageDataModule
from jepa_monitor.recipes.lejepa import LeJepa
from jepa_monitor.recipes.module import ScheduledModule, is_decayed
from jepa_monitor.recipes.networks import build_vit

if TYPE_CHECKING:
    from lightning.pytorch.cli import LightningArgumentParser
    from torch.optim import Optimizer

    from jepa_monitor.recipes.views import Views

# What this method asks of the data and of the callbacks, unless told otherwise.
DEFAULTS: dict[str, Any] = {
    "data.image_size": 16,
    "data.crop_scale": 0.4,
    "monitor.encoder": "backbone",
    "knn.encoder": "backbone",
    "old_monitor.encoder": "backbone",
    "old_monitor.name": "old",
    "old_monitor.max_overhead": 0.2,
}
# Where the methods of this package keep the encoder that they are evaluated by, EMA targets first.
ENCODERS = ("target_encoder.", "teacher.backbone.", "network.encoder.", "backbone.")
# What makes a backbone, beside the size and the channels of its images.
ARCHITECTURE = (
    "backbone",
    "patch_size",
    "stem",
    "width",
    "depth",
    "heads",
    "layer_scale",
    "class_token",
)
OLD_ROWS = (
    ("Old domain: JEPA-SCORE, mean (nats)", "old/jepa_score/mean", "{:.1f}"),
    ("Old domain: RankMe", "old/collapse/rankme", "{:.1f}"),
)

State: TypeAlias = "dict[str, Tensor]"


# ---------------------------------------------------------------------------------------- backbone
def build_backbone(name: str, pretrained: bool, image_size: int, in_channels: int) -> nn.Module:
    """Build a timm model without its classifier.

    Args:
        name: timm's name, such as ``vit_small_patch14_dinov2.lvd142m`` or ``resnet18``.
        pretrained: Whether timm shall load its weights, which it may have to download.
        image_size: Side of the image in pixels; models whose positions are bound to a size are built
            for it, and their weights interpolated.
        in_channels: Colour channels.

    Returns:
        A model that maps images (B, C, H, W) to embeddings (B, K).

    Raises:
        ValueError: If timm has no such model.
    """
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name}*")[:5]) or "none that contains it"
        raise ValueError(f"`backbone`={name!r} is no model of timm; similar names: {near}.")
    settings = timm.get_pretrained_cfg(name)
    bound = settings is not None and settings.fixed_input_size
    size: dict[str, Any] = {"img_size": image_size} if bound else {}
    model: nn.Module = timm.create_model(
        name, pretrained=pretrained, in_chans=in_channels, num_classes=0, **size
    )
    return model


def read_checkpoint(path: str, in_channels: int) -> tuple[dict[str, Any], State]:
    """Find the encoder in a checkpoint of any recipe of this package.

    Args:
        path: The checkpoint of I-JEPA, LeJEPA, VICReg, DINOv2 (their EMA target, where they have
            one) or of this recipe.
        in_channels: Colour channels that the encoder must take.

    Returns:
        What to build, by the names of ``ARCHITECTURE``, and the weights.

    Raises:
        ValueError: If there is no such file, no such encoder in it, or it takes other channels.
    """
    if not Path(path).is_file():
        raise ValueError(f"`backbone_checkpoint`={path!r}: there is no such file.")
    saved = torch.load(path, map_location="cpu", weights_only=True)
    weights, h = saved["state_dict"], saved.get("hyper_parameters", {})
    prefix = next((p for p in ENCODERS if any(name.startswith(p) for name in weights)), None)
    if prefix is None or "in_channels" not in h:
        raise ValueError(
            f"`backbone_checkpoint`={path!r} is no checkpoint of a recipe of this package: none of "
            f"{', '.join(ENCODERS)} in its weights, or no `in_channels` in its hyperparameters."
        )
    if h["in_channels"] != in_channels:
        raise ValueError(
            f"`backbone_checkpoint`={path!r} takes images of {h['in_channels']} channels, the data "
            f"have {in_channels}. Folders can be read as grey or colour: --data.folder_mode."
        )
    state = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
    architecture = {name: h[name] for name in ARCHITECTURE if name in h}
    return {"backbone": None, **architecture, "class_token": "cls_token" in state}, state


def load_weights(backbone: nn.Module, state: State) -> None:
    """Load weights, with positions interpolated if they were learned at another image size.

    Args:
        backbone: The network.
        state: Weights by name.
    """
    if (positions := state.get("pos_embed")) is not None:
        grid: list[int] = list(backbone.patch_embed.grid_size)  # type: ignore[union-attr, arg-type]
        prefix: int = backbone.num_prefix_tokens  # type: ignore[assignment]
        resampled = resample_abs_pos_embed(positions, grid, num_prefix_tokens=prefix)
        state = {**state, "pos_embed": resampled}
    backbone.load_state_dict(state)


def freeze_all_but_last(backbone: nn.Module, layers: int) -> None:
    """Let only the last layers train, and what follows them, such as the last norm.

    What a layer is, timm says: a block of a ViT, a residual block of a ResNet; the stem is one too.

    Args:
        backbone: A timm model.
        layers: How many.

    Raises:
        ValueError: If there are not as many.
    """
    matcher = backbone.group_matcher(coarse=False)  # type: ignore[operator]
    # What timm has no layer for (a norm after pooling) belongs to the layer before it.
    matcher = {**matcher, "rest": [(".*", (99999,))]}
    layer_of = group_parameters(backbone, matcher, reverse=True)
    count = max(layer_of.values()) + 1
    if not 1 <= layers <= count:
        raise ValueError(f"`unfrozen_layers`={layers} must be from 1 to {count}, all there are.")
    for name, parameter in backbone.named_parameters():
        if layer_of[name] < count - layers:
            parameter.requires_grad_(False)


# ------------------------------------------------------------------------------------------ method
def loss_floor(classes: int, smoothing: float) -> float:
    """Lowest cross-entropy that any logits can have: the entropy of the smoothed target.

    With ε the smoothing and N the classes, the right class has probability 1 − ε + ε/N and each other
    one ε/N.

    Args:
        classes: N, at least 1.
        smoothing: ε in [0, 1).

    Returns:
        Nats.
    """
    other = smoothing / classes
    right = 1 - smoothing + other
    return -right * math.log(right) - (classes - 1) * (other * math.log(other) if other else 0.0)


class Diet(ScheduledModule):
    """DIET: a backbone, and a linear head that tells which training image a view shows.

    The head has no bias and sees the embedding on the unit sphere. At first it learns alone, with
    the backbone as it came; then the backbone's learning rate rises, too.

    Every schedule depends on the step, so a run resumed from the end of an epoch equals the
    uninterrupted one.

    Logs ``train/loss``, ``train/excess`` (the loss above the lowest possible one),
    ``train/index_accuracy`` (the share of images that the head tells), ``train/lr``,
    ``train/backbone_lr``, ``train/weight_decay``.

    Args:
        image_size: Side of the image in pixels.
        in_channels: Colour channels.
        backbone: timm's name of the backbone; by default a small ViT, described by the next six.
        pretrained: Whether timm shall load its weights, which it may have to download.
        backbone_checkpoint: Checkpoint of a recipe of this package, whose encoder to steer; it
            decides on the architecture.
        patch_size: Side of a patch in pixels; divides ``image_size``.
        stem: How its patches become tokens, one of ``STEMS`` in ``networks.py``.
        width: Numbers per token.
        depth: Transformer blocks.
        heads: Attention heads.
        layer_scale: First value of LayerScale, or None for none.
        class_token: Whether there is a class token, which then is the embedding.
        unfrozen_layers: How many of the backbone's last layers train; all by default.
        images: N, training images; the data say it.
        label_smoothing: ε in [0, 1): share of the target that is spread over all images.
        head_only: Share of the steps in which only the head trains, in [0, 1).
        learning_rate: Highest learning rate of AdamW.
        backbone_lr: Factor of the learning rate of the backbone.
        final_learning_rate: Learning rate of the last step.
        warmup: Share of the steps in which a learning rate rises, in [0, 1): the head's from the
            start, the backbone's from when it may train.
        weight_decay: Weight decay; none on biases, norms, tokens and positions.
        seed: Seed of what a backbone draws, such as stochastic depth.

    Raises:
        ValueError: If a number is out of its range, or two backbones are asked for.
    """

    def __init__(
        self,
        image_size: int = 16,
        in_channels: int = 1,
        backbone: str | None = None,
        pretrained: bool = False,
        backbone_checkpoint: str | None = None,
        patch_size: int = 4,
        stem: str = "patch",
        width: int = 64,
        depth: int = 4,
        heads: int = 2,
        layer_scale: float | None = None,
        class_token: bool = False,
        unfrozen_layers: int | None = None,
        images: int | None = None,
        label_smoothing: float = 0.3,
        head_only: float = 0.1,
        learning_rate: float = 2e-2,
        backbone_lr: float = 0.05,
        final_learning_rate: float = 1e-6,
        warmup: float = 0.1,
        weight_decay: float = 0.05,
        seed: int = 0,
    ) -> None:
        super().__init__()
        shares = {"label_smoothing": label_smoothing, "head_only": head_only, "warmup": warmup}
        for name, share in shares.items():
            if not 0 <= share < 1:
                raise ValueError(f"`{name}`={share} must be in [0, 1).")
        if backbone is not None and backbone_checkpoint is not None:
            raise ValueError(
                f"`backbone`={backbone!r} and `backbone_checkpoint`={backbone_checkpoint!r} exclude "
                "each other: the checkpoint decides on the architecture."
            )
        if pretrained and backbone is None:
            raise ValueError("`pretrained` needs a `backbone` of timm.")
        self.save_hyperparameters()
        h, state = self.hparams, None
        if backbone_checkpoint is not None:
            architecture, state = read_checkpoint(backbone_checkpoint, in_channels)
            h.update(architecture)
        # Whether there is something that the backbone knows already.
        self.is_pretrained = pretrained or state is not None
        if h["backbone"] is not None:
            self.backbone = build_backbone(h["backbone"], pretrained, image_size, in_channels)
        else:
            self.backbone = build_vit(
                image_size,
                h["patch_size"],
                in_channels,
                h["width"],
                h["depth"],
                h["heads"],
                class_token=h["class_token"],
                layer_scale=h["layer_scale"],
                stem=h["stem"],
            )
        if state is not None:
            load_weights(self.backbone, state)
        if unfrozen_layers is not None:
            freeze_all_but_last(self.backbone, unfrozen_layers)
        # A checkpoint of this module brings its own weights, and must not need those it began with.
        h.update(pretrained=False, backbone_checkpoint=None)
        self.head: nn.Linear | None = None
        if images is not None:
            self.build_head(images)

    def build_head(self, images: int) -> None:
        """Make the head, all zeros.

        A random one would first pull every image towards a direction of its own, drawn by chance;
        from zero, its rows grow along the embeddings that the backbone came with.

        Args:
            images: N.

        Raises:
            ValueError: If there is a head for another N.
        """
        if self.head is not None:
            if self.head.out_features != images:
                raise ValueError(
                    f"`images`: the head knows {self.head.out_features} images, the data have "
                    f"{images}. To go on with other images, start anew from --model."
                    "backbone_checkpoint."
                )
            return
        width: int = self.backbone.head_hidden_size  # type: ignore[assignment]
        self.head = nn.Linear(width, images, bias=False)
        nn.init.zeros_(self.head.weight)
        self.hparams["images"] = images

    def setup(self, stage: str) -> None:
        """Make the head for the Trainer's data.

        Args:
            stage: What the Trainer is about to do.

        Raises:
            TypeError: If the data do not say which image is which.
            ValueError: If they have more than one view of an image.
        """
        if stage != "fit":
            return
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, IndexedDataModule):
            raise TypeError(
                "DIET needs the number of each image in place of its label: train it on an "
                f"`IndexedDataModule`, got {type(data).__name__}."
            )
        if (data.global_views, data.local_views) != (1, 0):
            raise ValueError(
                "DIET sees one view of an image at a time (data.global_views=1, "
                f"data.local_views=0), got {data.global_views} global and {data.local_views} local."
            )
        assert data.train_set is not None
        self.build_head(len(data.train_set))

    def forward(self, images: Tensor) -> Tensor:
        """Embed images with the backbone, without the head, for other tasks.

        Args:
            images: Shape (B, C, H, W).

        Returns:
            Embeddings, shape (B, K).
        """
        embeddings: Tensor = self.backbone(images)
        return embeddings

    def loss(self, images: Tensor, indices: Tensor) -> dict[str, Tensor]:
        """Cross-entropy of the head's answer to which image is seen, with label smoothing.

        Args:
            images: One view of each of B images, shape (B, C, H, W).
            indices: Their numbers in the training set, shape (B,).

        Returns:
            Scalars ``loss``, ``excess`` and ``index_accuracy``.
        """
        assert self.head is not None
        smoothing = self.hparams["label_smoothing"]
        logits = self.head(F.normalize(self(images), dim=1)).float()
        loss = F.cross_entropy(logits, indices, label_smoothing=smoothing)
        return {
            "loss": loss,
            "excess": loss.detach() - loss_floor(logits.shape[1], smoothing),
            "index_accuracy": (logits.argmax(1) == indices).float().mean(),
        }

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch of (images, indices).

        Args:
            batch: Images (B, C, H, W) and their numbers (B,).
            batch_idx: Number of the batch in the epoch.

        Returns:
            Scalar loss.
        """
        values = self.loss(*batch)
        self.log("train/loss", values["loss"], prog_bar=True)
        self.log_dict({f"train/{name}": values[name] for name in ("excess", "index_accuracy")})
        return values["loss"]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Part the trained parameters by weight decay and by whether they are the backbone's.

        Returns:
            Groups for AdamW, each with ``decays`` and ``of_backbone``.
        """
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                key = (is_decayed(name, parameter), name.startswith("backbone."))
                groups.setdefault(key, []).append(parameter)
        return [
            {"params": parameters, "decays": decays, "of_backbone": of_backbone}
            for (decays, of_backbone), parameters in groups.items()
        ]

    def scheduled(self, step: int) -> dict[str, float]:
        """All that changes from step to step.

        Args:
            step: Optimiser steps done before.

        Returns:
            Values by the names ``lr``, ``backbone_lr`` (0 while the head learns alone) and
            ``weight_decay``.
        """
        h, values = self.hparams, super().scheduled(step)
        free = step - math.ceil(
            h["head_only"] * self.total_steps
        )  # steps since the backbone trains
        warmup = max(round(h["warmup"] * self.total_steps), 1)
        rise = min(max((free + 1) / warmup, 0.0), 1.0)
        return {**values, "backbone_lr": rise * h["backbone_lr"] * values["lr"]}

    def set_group(self, group: dict[str, Any], values: dict[str, float]) -> None:
        """Give a group of parameters its values.

        Args:
            group: One of the optimiser's.
            values: What :meth:`scheduled` says.
        """
        lr = values["backbone_lr"] if group["of_backbone"] else values["lr"]
        super().set_group(group, {**values, "lr": lr})

    def head_learns_alone(self) -> bool:
        """Say whether the backbone stays as it is in this step.

        Returns:
            Whether it does.
        """
        return self.scheduled(self.global_step)["backbone_lr"] == 0.0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed what the backbone draws, and keep frozen parts from moving in other ways.

        A frozen part is in evaluation mode: its batch norms keep the statistics of the old domain,
        and nothing is dropped.

        Args:
            batch: The batch.
            batch_idx: Its number in the epoch.
        """
        super().on_train_batch_start(batch, batch_idx)
        self.backbone.train(not self.head_learns_alone())
        for module in self.backbone.modules():
            own = list(module.parameters())
            if own and not any(parameter.requires_grad for parameter in own):
                module.eval()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Drop the backbone's gradients while the head learns alone.

        AdamW then passes the backbone over, and its moments start when it does. That the gradients
        are made at all is for DDP, which waits for those of all parameters.

        Args:
            optimizer: AdamW.
        """
        if self.head_learns_alone():
            for parameter in self.backbone.parameters():
                parameter.grad = None


# -------------------------------------------------------------------------------------------- data
class IndexedImages(Dataset["tuple[Tensor | Views, int]"]):
    """Training images with their numbers 0 … N−1 in place of their labels.

    Args:
        images: Data set of (views, label), asked for by index or by (epoch, index).
    """

    def __init__(self, images: Any) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor | Views, int]:
        views, _ = self.images[key]
        return views, key[1] if isinstance(key, tuple) else key


class IndexedDataModule(ImageDataModule):
    """``ImageDataModule`` whose training batches bring the number of each image.

    The images to evaluate on keep their labels, for k-NN.
    """

    def _loader(self, dataset: Dataset[Any], **options: Any) -> DataLoader[Any]:
        is_train = dataset is self.train_set
        return super()._loader(IndexedImages(dataset) if is_train else dataset, **options)


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


# ------------------------------------------------------------------------------------ command line
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
        monitor.probe, monitor.reference = old.val_set, old.train_set
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


def main(args: list[str] | None = None) -> Trainer:
    """Train from the command line.

    Args:
        args: Arguments, or None for those of the process.

    Returns:
        The trainer after ``fit``.
    """
    return train(Diet, "diet", max_epochs=40, args=args, defaults=DEFAULTS, cli=DietCLI)


if __name__ == "__main__":
    main()
