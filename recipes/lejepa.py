"""LeJEPA (Balestriero & LeCun, arXiv 2511.08544): views that agree, embeddings that are Gaussian.

Run ``python -m jepa_monitor.recipes.lejepa`` to train on textures in a few minutes; see
``docs/recipes/lejepa.md``. There is no teacher, no stop-gradient and one hyperparameter, λ. To change
the method, edit one function: ``sigreg`` for what the embeddings must look like, ``LeJepa.loss`` for
the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jepa_monitor.functional.gaussianity import (
    characteristic_sums,
    slice_directions,
    statistic_from_sums,
)
from jepa_monitor.recipes.datasets import mixed_seed
from jepa_monitor.recipes.module import JointEmbedding, gathered

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from jepa_monitor.recipes.views import Views

# What this method asks of the data and of the callbacks, unless told otherwise.
DEFAULTS: dict[str, Any] = {
    "data.image_size": 16,
    "data.global_views": 2,
    "data.crop_scale": 0.6,
    "monitor.encoder": "network",
    "knn.encoder": "network.encoder",
}


def sigreg(embeddings: Tensor, directions: Tensor) -> Tensor:
    """Sliced Epps-Pulley statistic: how far are the embeddings from N(0, I)?

    The very statistic that the monitor reports, so its null law holds for the loss: N(0, I) reads
    1.0525 on average for every N, embeddings that are all the same 0.40 N.

    Args:
        embeddings: Shape (N, K); one view of each image.
        directions: Unit vectors, shape (K, M).

    Returns:
        The mean over the directions, a scalar.
    """
    with torch.autocast(embeddings.device.type, enabled=False):  # sums over N need float32
        slices = embeddings.float() @ directions.to(embeddings.device, torch.float32)
        return statistic_from_sums(characteristic_sums(slices), len(slices)).mean().float()


class LeJepa(JointEmbedding):
    """LeJEPA: one network, several views of each image, a prediction loss and SIGReg.

    Every random choice depends on ``seed`` and the step and every schedule on the step, so a run
    resumed from the end of an epoch equals the uninterrupted one.

    Logs ``train/loss``, ``train/prediction``, ``train/sigreg``, ``train/lr``,
    ``train/weight_decay``.

    Args:
        image_size: Side of the image in pixels.
        in_channels: Colour channels.
        patch_size: Side of a patch in pixels; divides ``image_size`` and the size of local crops.
        stem: How patches become tokens: ``"patch"``, the papers', or ``"conv"`` or
            ``"conv_batchnorm"``, convolutions, which learn more from few images.
        attention: How tokens are weighed, one of ``ATTENTIONS`` in ``attention.py``.
        attention_published: Whether with the scales and biases of that paper's code.
        width: Numbers per token of the encoder, a multiple of ``heads``.
        depth: Transformer blocks of the encoder.
        heads: Attention heads of the encoder.
        drop_path: Share of stochastic depth.
        projector_hidden: Numbers in each of the two hidden layers of the projector.
        projector_width: K, numbers in an embedding.
        sigreg_weight: λ, in [0, 1]: the loss is (1 − λ) · prediction + λ · SIGReg.
        slices: M, random directions of SIGReg, new ones at each step.
        learning_rate: Highest learning rate of AdamW.
        final_learning_rate: Learning rate of the last step.
        warmup: Share of the steps in which the learning rate rises, in [0, 1).
        weight_decay: Weight decay; none on biases, norms and positions.
        seed: Seed of the directions.

    Raises:
        ValueError: If a number is out of its range.
    """

    def __init__(
        self,
        image_size: int = 16,
        in_channels: int = 1,
        patch_size: int = 4,
        stem: str = "patch",
        attention: str = "softmax",
        attention_published: bool = False,
        width: int = 64,
        depth: int = 4,
        heads: int = 2,
        drop_path: float = 0.0,
        projector_hidden: int = 256,
        projector_width: int = 32,
        sigreg_weight: float = 0.05,
        slices: int = 256,
        learning_rate: float = 4e-3,
        final_learning_rate: float = 1e-6,
        warmup: float = 0.1,
        weight_decay: float = 0.05,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= sigreg_weight <= 1:
            raise ValueError(f"sigreg_weight={sigreg_weight} must be in [0, 1].")
        self.save_hyperparameters()
        self.build("projector", projector_hidden, projector_width)

    def embed(self, views: Views) -> Tensor:
        """Embed all views with encoder and projector.

        Args:
            views: G global and L local crops of B images.

        Returns:
            Shape (G + L, B of all processes, K), the global crops first.
        """
        features = [self(torch.cat(crops)) for crops in views if crops]  # one size at a time
        embeddings: Tensor = self.network.projector(torch.cat(features))  # type: ignore[operator]
        return gathered(embeddings.view(-1, views.batch_size, embeddings.shape[-1]))

    def loss(self, views: Views, directions: Tensor) -> dict[str, Tensor]:
        """All views predict the mean of the global ones, and each view's embeddings are N(0, I).

        Args:
            views: Of a batch.
            directions: Of SIGReg, shape (K, M).

        Returns:
            Scalars ``loss``, ``prediction`` and ``sigreg``.
        """
        embeddings = self.embed(views)
        centre = embeddings[: len(views.global_crops)].mean(0)
        prediction = (embeddings - centre).square().mean()
        normality = torch.stack([sigreg(view, directions) for view in embeddings]).mean()
        weight = self.hparams["sigreg_weight"]
        loss = (1 - weight) * prediction + weight * normality
        return {"loss": loss, "prediction": prediction, "sigreg": normality}

    def training_step(self, batch: tuple[Views, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch of (views, labels); the labels are not looked at.

        Args:
            batch: Views of B images, and labels (B,).
            batch_idx: Number of the batch in the epoch.

        Returns:
            Scalar loss.
        """
        h = self.hparams
        # All processes draw the same directions, for their sums are over the same slices.
        seed = mixed_seed(h["seed"], self.global_step)
        directions = slice_directions(h["projector_width"], h["slices"], seed)
        return self.log_terms(self.loss(batch[0], directions))


def main(args: list[str] | None = None) -> Trainer:
    """Train from the command line.

    Args:
        args: Arguments, or None for those of the process.

    Returns:
        The trainer after ``fit``.
    """
    from jepa_monitor.recipes.cli import parse, train

    return train(parse(LeJepa, "lejepa", max_epochs=50, args=args, defaults=DEFAULTS))


if __name__ == "__main__":
    main()
