"""MAE (He et al., arXiv 2111.06377): predict the pixels of hidden patches from those that are seen.

Run ``python -m jepa_monitor.recipes.mae`` to train on textures in a few minutes; see
``docs/recipes/mae.md``. To change the method, edit one function: ``sample_random_masks`` in
``masking.py`` for the masking, ``MaskedAutoencoder.targets`` for what is predicted, ``mae_loss`` for
the loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from jepa_monitor.recipes.attention import set_attention
from jepa_monitor.recipes.masking import Masks, sample_random_masks
from jepa_monitor.recipes.module import check_warmup
from jepa_monitor.recipes.patch_prediction import PatchPrediction
from jepa_monitor.recipes.seen_patches import Predictor, build_encoder, encode_tokens, take

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

# What this method asks of the data and of the callbacks, unless told otherwise.
DEFAULTS: dict[str, Any] = {
    "data.image_size": 16,
    "data.crop_scale": 1.0,
    "monitor.encoder": "network",
    "monitor.insights": ["mae"],
    "knn.encoder": "network",
}


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images into patches, row by row.

    Args:
        images: Shape (B, C, H, W).
        patch_size: Side of a patch in pixels, p.

    Returns:
        Shape (B, P, p · p · C), with the channels of a pixel side by side.
    """
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    cut = images.view(batch, channels, rows, patch_size, columns, patch_size)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, -1)


def unpatchify(patches: Tensor, grid: tuple[int, int], patch_size: int) -> Tensor:
    """Put patches together again.

    Args:
        patches: Shape (B, P, p · p · C), see :func:`patchify`.
        grid: Rows and columns of patches.
        patch_size: Side of a patch in pixels, p.

    Returns:
        Images, shape (B, C, H, W).
    """
    cut = patches.view(len(patches), *grid, patch_size, patch_size, -1)
    return cut.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def mae_loss(predicted: Tensor, targets: Tensor) -> Tensor:
    """Mean squared difference between predicted and true pixels of hidden patches.

    Args:
        predicted: Shape (B, N_hidden, p · p · C).
        targets: Likewise.

    Returns:
        Scalar.
    """
    return (predicted - targets).square().mean()


class MaskedAutoencoder(nn.Module):
    """An encoder that is kept, and a light decoder that is not.

    Args:
        encoder: A timm ViT without class token.
        decoder: Predicts the pixels of a patch at each place that it is asked for.
        normalise: Whether the pixels of each patch are predicted with their mean taken away, over their
            standard deviation.
    """

    def __init__(self, encoder: Any, decoder: Predictor, normalise: bool) -> None:
        super().__init__()
        self.encoder, self.decoder, self.normalise = encoder, decoder, normalise
        self.grid: tuple[int, int] = encoder.patch_embed.grid_size
        self.patch_size: int = encoder.patch_embed.patch_size[0]

    def forward(self, images: Tensor) -> Tensor:
        """Embed images of which all patches are seen.

        Args:
            images: Shape (B, C, H, W).

        Returns:
            The mean of the normalised patch tokens, shape (B, width).
        """
        embeddings: Tensor = self.encoder(images)
        return embeddings

    def targets(self, images: Tensor, masks: Masks) -> Tensor:
        """What the decoder must predict: the pixels of the hidden patches.

        Args:
            images: Shape (B, C, H, W).
            masks: Which patches are hidden.

        Returns:
            Shape (B, N_hidden, p · p · C).
        """
        pixels = take(patchify(images, self.patch_size), masks.targets[:, 0])
        if not self.normalise:
            return pixels
        variance, mean = torch.var_mean(pixels, dim=2, keepdim=True)
        return (pixels - mean) / (variance + 1e-6).sqrt()

    def predict(self, images: Tensor, masks: Masks) -> Tensor:
        """Predict the hidden patches from those that are seen.

        Args:
            images: Shape (B, C, H, W); hidden patches are not looked at.
            masks: Which patches are seen, and which are asked for.

        Returns:
            Shape (B, N_hidden, p · p · C).
        """
        predicted: Tensor = self.decoder(encode_tokens(self.encoder, images, masks.context), masks)
        return predicted[:, 0]

    def reconstruct(self, images: Tensor, hidden: Tensor) -> Tensor:
        """Fill in the hidden patches of images; for pictures, and for the monitor's ``mae/*``.

        Where pixels are predicted normalised, each patch gets its true mean and standard deviation.

        Args:
            images: Shape (B, C, H, W).
            hidden: True where a patch is hidden, row by row, (B, P); equally many of each image.

        Returns:
            Shape (B, C, H, W); the patches that are seen are as they were.
        """
        seen, asked = ((~hidden).nonzero()[:, 1], hidden.nonzero()[:, 1])
        masks = Masks(seen.view(len(images), -1), asked.view(len(images), 1, -1))
        predicted = self.predict(images, masks)
        patches = patchify(images, self.patch_size)
        places = masks.targets[:, 0, :, None].expand_as(predicted)
        if self.normalise:
            true = patches.detach().gather(1, places)
            variance, mean = torch.var_mean(true, dim=2, keepdim=True)
            predicted = predicted * (variance + 1e-6).sqrt() + mean
        return unpatchify(patches.scatter(1, places, predicted), self.grid, self.patch_size)


class Mae(PatchPrediction):
    """MAE: an encoder of the patches that are seen, and a decoder that predicts the hidden ones.

    Every random choice depends on ``(seed, epoch, batch)`` and every schedule on the global step,
    so a run resumed from the end of an epoch equals the uninterrupted one.

    Logs ``train/loss``, ``train/lr``, ``train/weight_decay`` and ``val/loss``.

    Args:
        image_size: Side of the image in pixels.
        in_channels: Colour channels.
        patch_size: Side of a patch in pixels; divides ``image_size``.
        stem: How patches become tokens: ``"patch"``, the paper's, or ``"conv"`` or
            ``"conv_batchnorm"``, convolutions, with which this method was not tried.
        attention: How tokens are weighed, one of ``ATTENTIONS`` in ``attention.py``.
        attention_published: Whether with the scales and biases of that paper's code.
        width: Numbers per token of the encoder (K), a multiple of 4 and of ``heads``.
        depth: Transformer blocks of the encoder.
        heads: Attention heads of the encoder.
        decoder_width: Numbers per token of the decoder, a multiple of 4 and of its heads.
        decoder_depth: Transformer blocks of the decoder.
        decoder_heads: Attention heads of the decoder.
        mask: Share of the patches that is hidden.
        normalise_pixels: Whether the pixels of each patch are predicted with their mean taken away,
            over their standard deviation.
        learning_rate: Highest learning rate of AdamW.
        final_learning_rate: Learning rate of the last step.
        warmup: Share of the steps in which the learning rate rises, in [0, 1).
        weight_decay: Weight decay; none on biases, norms and the mask token.
        seed: Seed of the masks.

    Raises:
        ValueError: If a number is out of its range, or the mask hides no patch or all.
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
        decoder_width: int = 32,
        decoder_depth: int = 1,
        decoder_heads: int = 2,
        mask: float = 0.75,
        normalise_pixels: bool = True,
        learning_rate: float = 5e-3,
        final_learning_rate: float = 1e-6,
        warmup: float = 0.1,
        weight_decay: float = 0.05,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"patch_size={patch_size} does not divide image_size={image_size}.")
        check_warmup(warmup)
        self.save_hyperparameters()
        grid = (image_size // patch_size, image_size // patch_size)
        self.patches = grid[0] * grid[1]
        sample_random_masks(1, self.patches, torch.Generator(), mask)
        encoder = build_encoder(image_size, patch_size, in_channels, width, depth, heads, stem)
        set_attention(encoder, attention, attention_published)
        pixels = in_channels * patch_size**2
        decoder = Predictor(grid, width, decoder_width, decoder_depth, decoder_heads, pixels)
        self.network = MaskedAutoencoder(encoder, decoder, normalise_pixels)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images with the encoder, which sees all of their patches.

        Args:
            images: Shape (B, C, H, W).

        Returns:
            Embeddings, shape (B, K).
        """
        embeddings: Tensor = self.network(images)
        return embeddings

    def loss(self, images: Tensor, masks: Masks) -> Tensor:
        """How far predicted pixels are from true ones.

        Args:
            images: Shape (B, C, H, W).
            masks: Which patches are hidden.

        Returns:
            Scalar; of normalised pixels about 1 if the mean is predicted everywhere.
        """
        return mae_loss(self.network.predict(images, masks), self.network.targets(images, masks))

    def draw(self, batch_size: int, generator: torch.Generator) -> Masks:
        """Draw masks.

        Args:
            batch_size: Images B.
            generator: Source of all randomness, on the CPU.

        Returns:
            What is seen, and what is hidden, on the CPU.
        """
        return sample_random_masks(batch_size, self.patches, generator, self.hparams["mask"])


def main(args: list[str] | None = None) -> Trainer:
    """Train from the command line.

    Args:
        args: Arguments, or None for those of the process.

    Returns:
        The trainer after ``fit``.
    """
    from jepa_monitor.recipes.cli import parse, train

    return train(parse(Mae, "mae", max_epochs=120, args=args, defaults=DEFAULTS))


if __name__ == "__main__":
    main()
