"""timm's encoders by name: in goes a name, out comes an encoder, also one that takes any images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

__all__ = ["Generalist", "find_timm", "is_timm_name", "make_timm"]

_PREFIX = "timm/"


def is_timm_name(name: Any) -> bool:
    """Say whether something is meant as the name of one of timm's models.

    Args:
        name: Anything.

    Returns:
        Whether it is text that begins with ``timm/``.
    """
    return isinstance(name, str) and name.startswith(_PREFIX)


def find_timm(name: str, argument: str) -> str:
    """Check that timm has a model; nothing is loaded.

    Args:
        name: ``timm/NAME``.
        argument: What it was given as.

    Returns:
        ``NAME``.

    Raises:
        ValueError: If there is none.
    """
    import timm

    model = name.removeprefix(_PREFIX)
    if not timm.is_model(model.split(".")[0]):
        close = timm.list_models(f"*{model.split('.')[0][:12]}*")[:5]
        hint = f" Did you mean one of {', '.join(close)}?" if close else ""
        raise ValueError(f"`{argument}`: timm has no model {model!r}.{hint}")
    return model


def make_timm(
    model: str, pretrained: bool, image_size: int | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """Make an encoder without its classifier.

    Args:
        model: From :func:`find_timm`.
        pretrained: Whether to load, and if need be fetch, its weights.
        image_size: Side of the images, where it is not the model's.

    Returns:
        The encoder in eval mode, and what timm says of its images (``input_size``, ``mean``, ``std``,
        ...).

    Raises:
        TypeError: Of a model that does not take these options; hubs and file formats have errors of
            their own.
    """
    import timm
    from timm.data.config import resolve_model_data_config

    options: dict[str, Any] = {"num_classes": 0, "pretrained": pretrained}
    if image_size is not None:
        options["img_size"] = image_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of random weights
        try:
            encoder = timm.create_model(model, **options)
        except TypeError as error:  # a convolutional network takes any size
            if "img_size" not in str(error):
                raise
            del options["img_size"]
            torch.manual_seed(0)
            encoder = timm.create_model(model, **options)
    config: dict[str, Any] = resolve_model_data_config(encoder)  # type: ignore[no-untyped-call]
    if image_size is not None:
        config["input_size"] = (config["input_size"][0], image_size, image_size)
    return encoder.eval(), config


class Generalist(nn.Module):
    """A pretrained, frozen encoder that takes the images of a run whatever their size and channels.

    Images are resized (bicubic, with antialiasing) to the model's size; one channel is repeated, colours
    become grey for a model of grey images. Pixels from 0 to 1 are normalised as the model wants it;
    others count as normalised already, by whatever mean and deviation the run has.

    Args:
        name: ``timm/NAME``.
        raw: Whether pixels are from 0 to 1.
        pretrained: Whether to load weights; without, it is a baseline of nothing learned.

    Raises:
        ValueError: If there is no such model, or its weights cannot be loaded.
    """

    def __init__(self, name: str, raw: bool, pretrained: bool = True) -> None:
        super().__init__()
        self.name, self.raw = name, raw
        model = find_timm(name, "compare_with")
        try:
            self.model, config = make_timm(model, pretrained)
        except Exception as error:
            raise ValueError(
                f"`compare_with`: {name!r} cannot be loaded: {type(error).__name__}: {error}"
            ) from error
        self.requires_grad_(False).eval()
        self.channels, *self.size = config["input_size"]
        shape = (1, self.channels, 1, 1)
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.tensor(config["mean"]).reshape(shape))
        self.register_buffer("deviation", torch.tensor(config["std"]).reshape(shape))
        self._known: dict[str, Tensor] = {}

    @override
    def forward(self, images: Tensor) -> Any:
        """Embed images.

        Args:
            images: (B, C, H, W), C = 1 or the model's number.

        Returns:
            What the model returns.

        Raises:
            ValueError: If the images have another number of channels.
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3, self.channels):
            raise ValueError(
                f"`compare_with`: {self.name!r} takes images of {self.channels} channels, or of one, "
                f"got shape {tuple(images.shape)}."
            )
        if images.shape[1] != self.channels:
            images = images.mean(1, keepdim=True).expand(-1, self.channels, -1, -1)
        if list(images.shape[-2:]) != self.size:
            images = F.interpolate(
                images, self.size, mode="bicubic", antialias=True, align_corners=False
            )
        return self.model((images - self.mean) / self.deviation if self.raw else images)

    def remember(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """Give what was made once: frozen, it says the same of the same images at every look.

        Args:
            name: Of the set of images.
            make: Embeds them.

        Returns:
            Embeddings, (N, L).
        """
        if name not in self._known:
            self._known[name] = make()
        return self._known[name]
