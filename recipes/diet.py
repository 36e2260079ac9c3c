"""DIET-CP (arXiv 2509.06990): steer a backbone to a few new images by predicting their numbers.

Run ``python -m jepa_monitor.recipes.diet`` to pretrain a small ViT on photographs and steer it to
handwritten digits in a few minutes; see ``docs/recipes/diet.md``. One linear head tells which of the
N training images a view shows (DIET, arXiv 2302.10260): no teacher, no pairs, no projector. To change
the method, edit one function: ``Diet.loss`` for what is predicted, ``Diet.scheduled`` for which part
trains when, ``freeze_all_but_last`` in ``backbones.py`` for how much of the backbone may move.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from jepa_monitor.recipes.backbones import (
    build_backbone,
    freeze_all_but_last,
    load_weights,
    read_checkpoint,
)
from jepa_monitor.recipes.data import ImageDataModule
from jepa_monitor.recipes.module import ScheduledModule, is_decayed
from jepa_monitor.recipes.networks import build_vit

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from torch.optim import Optimizer

    from jepa_monitor.recipes.views import Views

# What this method asks of the data and of the callbacks, unless told otherwise.
DEFAULTS: dict[str, Any] = {
    "data.name": "digits",
    "data.image_size": 16,
    "data.crop_scale": 0.4,
    "monitor.encoder": "backbone",
    "knn.encoder": "backbone",
    "old_monitor.encoder": "backbone",
    "old_monitor.name": "old",
    "old_monitor.max_overhead": 0.2,
}


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
        assert data.train_set is not None  # the Trainer sets the data up first
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

        Raises:
            RuntimeError: Before :meth:`build_head`, which ``fit`` calls.
        """
        if self.head is None:
            raise RuntimeError("The head is not built yet: call `build_head(images)` first.")
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
        return self.log_terms(self.loss(*batch))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Part the trained parameters by weight decay and by whether they are the backbone's.

        Returns:
            Groups for AdamW, each with ``decays`` and ``rate``.
        """
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                key = (is_decayed(name, parameter), name.startswith("backbone."))
                groups.setdefault(key, []).append(parameter)
        return [
            {"params": parameters, "decays": decays, "rate": "backbone_lr" if of_backbone else "lr"}
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
        free = step - math.ceil(h["head_only"] * self.total_steps)  # since the backbone trains
        warmup = max(round(h["warmup"] * self.total_steps), 1)
        rise = min(max((free + 1) / warmup, 0.0), 1.0)
        return {**values, "backbone_lr": rise * h["backbone_lr"] * values["lr"]}

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


def main(args: list[str] | None = None) -> Trainer:
    """Train from the command line.

    Args:
        args: Arguments, or None for those of the process.

    Returns:
        The trainer after ``fit``.
    """
    from jepa_monitor.recipes.cli import parse, train
    from jepa_monitor.recipes.old_domain import DietCLI

    return train(parse(Diet, "diet", max_epochs=40, args=args, defaults=DEFAULTS, cli=DietCLI))


if __name__ == "__main__":
    # Under its own name: `old_domain` imports it by that, and classes of `__main__` would be others.
    from jepa_monitor.recipes.diet import main as run

    run()
