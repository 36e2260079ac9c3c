"""VICReg (Bardes, Ponce & LeCun, arXiv 2105.04906): variance, invariance, covariance.

Run ``python -m jepa_monitor.recipes.vicreg`` to train on textures in a few minutes; see
``docs/recipes/vicreg.md``. To change the method, edit one function: ``vicreg_terms`` for the terms of
the loss, ``VicReg.loss`` for how they are weighted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa_monitor.recipes.module import JointEmbedding, gathered

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from jepa_monitor.recipes.views import Views

# What this method asks of the data and of the callbacks, unless told otherwise.
DEFAULTS: dict[str, Any] = {
    "data.image_size": 16,
    "data.global_views": 2,
    "data.crop_scale": 0.6,
    "monitor.encoder": "network.encoder",
    "knn.encoder": "network.encoder",
}


def vicreg_terms(first: Tensor, second: Tensor) -> dict[str, Tensor]:
    """Measure how far two sets of views are from VICReg's three aims (§4.1 of the paper).

    Args:
        first: Embeddings of one view of each image, (N, K), N ≥ 2.
        second: Of the other.

    Returns:
        Scalars ``invariance``, the mean squared difference; ``variance``, the mean shortfall of the
        standard deviations from 1, averaged over both sets; ``covariance``, the squared covariances
        of different coordinates over K, summed over both sets.
    """
    variance, covariance = first.new_zeros(()), first.new_zeros(())
    for z in (first, second):
        matrix = torch.cov(z.T)
        diagonal = matrix.diagonal()
        variance = variance + F.relu(1 - (diagonal + 1e-4).sqrt()).mean() / 2
        covariance = covariance + (matrix.square().sum() - diagonal.square().sum()) / z.shape[1]
    return {
        "invariance": F.mse_loss(first, second),
        "variance": variance,
        "covariance": covariance,
    }


def vicreg_loss(first: Tensor, second: Tensor) -> Tensor:
    """Sum the three terms with the paper's weights, 25, 25 and 1.

    Args:
        first: Embeddings of one view of each image, (N, K), N ≥ 2.
        second: Of the other.

    Returns:
        Scalar.
    """
    terms = vicreg_terms(first, second)
    return 25 * terms["invariance"] + 25 * terms["variance"] + terms["covariance"]


class VicReg(JointEmbedding):
    """VICReg: one network, two views of each image, no teacher and no negatives.

    Every schedule depends on the step, so a run resumed from the end of an epoch equals the
    uninterrupted one.

    Logs ``train/loss``, ``train/invariance``, ``train/variance``, ``train/covariance``,
    ``train/lr``, ``train/weight_decay``.

    Args:
        image_size: Side of the image in pixels.
        in_channels: Colour channels.
        patch_size: Side of a patch in pixels; divides ``image_size``.
        stem: How patches become tokens: ``"patch"``, the papers', or ``"conv"`` or
            ``"conv_batchnorm"``, convolutions, which learn more from few images.
        attention: How tokens are weighed, one of ``ATTENTIONS`` in ``attention.py``.
        attention_published: Whether with the scales and biases of that paper's code.
        width: Numbers per token of the encoder, a multiple of ``heads``.
        depth: Transformer blocks of the encoder.
        heads: Attention heads of the encoder.
        drop_path: Share of stochastic depth.
        expander_hidden: Numbers in each of the two hidden layers of the expander.
        expander_width: K, numbers in an embedding.
        invariance_weight: Weight of the invariance term.
        variance_weight: Weight of the variance term.
        covariance_weight: Weight of the covariance term.
        learning_rate: Highest learning rate of AdamW. (The paper trains ResNets with LARS.)
        final_learning_rate: Learning rate of the last step.
        warmup: Share of the steps in which the learning rate rises, in [0, 1).
        weight_decay: Weight decay; none on biases, norms and positions.
        seed: Unused, for the method draws nothing; the data draw the views.

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
        expander_hidden: int = 256,
        expander_width: int = 256,
        invariance_weight: float = 25.0,
        variance_weight: float = 25.0,
        covariance_weight: float = 1.0,
        learning_rate: float = 4e-3,
        final_learning_rate: float = 1e-6,
        warmup: float = 0.1,
        weight_decay: float = 0.05,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.build("expander", expander_hidden, expander_width)

    def loss(self, views: Views) -> dict[str, Tensor]:
        """Compare two views of every image.

        Args:
            views: Two global crops of B images.

        Returns:
            Scalars ``loss``, ``invariance``, ``variance`` and ``covariance``.

        Raises:
            ValueError: If there are not just two global crops.
        """
        counts = (len(views.global_crops), len(views.local_crops))
        if counts != (2, 0):
            raise ValueError(
                "VICReg compares two global views (data.global_views=2, data.local_views=0), "
                f"got {counts[0]} global and {counts[1]} local ones."
            )
        embeddings = self.network(torch.cat(views.global_crops)).float()
        terms = vicreg_terms(*gathered(torch.stack(embeddings.chunk(2))))
        loss = sum(self.hparams[f"{name}_weight"] * term for name, term in terms.items())
        return {"loss": loss, **terms}

    def training_step(self, batch: tuple[Views, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch of (views, labels); the labels are not looked at.

        Args:
            batch: Views of B images, and labels (B,).
            batch_idx: Number of the batch in the epoch.

        Returns:
            Scalar loss.
        """
        return self.log_terms(self.loss(batch[0]))


def main(args: list[str] | None = None) -> Trainer:
    """Train from the command line.

    Args:
        args: Arguments, or None for those of the process.

    Returns:
        The trainer after ``fit``.
    """
    from jepa_monitor.recipes.cli import parse, train

    return train(parse(VicReg, "vicreg", max_epochs=50, args=args, defaults=DEFAULTS))


if __name__ == "__main__":
    main()
