"""One encoder after another: in go the checkpoints of a run, out come their encoders, prepared alike."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from torch import nn

from jepa_monitor.cli.checkpoints import from_checkpoint, read_file
from jepa_monitor.cli.hubs import HUBS
from jepa_monitor.cli.loaded import LoadedEncoder
from jepa_monitor.cli.models import load_encoder
from jepa_monitor.cli.settings import ModelSettings
from jepa_monitor.cli.weights import find_weights

__all__ = ["Series"]

_DCP = (
    "is a folder of torch.distributed.checkpoint: make a file of it, python -m "
    "torch.distributed.checkpoint.format_utils dcp_to_torch {path} FILE.pt"
)


class Series:
    """Loads the encoders of a run's checkpoints.

    Args:
        model: The architecture, named as :func:`~jepa_monitor.cli.models.load_encoder` takes it; its
            weights are replaced. ``None`` for checkpoints that say it themselves: those of Lightning
            and folders of Hugging Face.
        settings: How to load; ``encoder`` is the dotted path of the encoder in the module or, with
            ``model``, of its weights in the file.

    Raises:
        ValueError: If there is no such model.
    """

    def __init__(self, model: str | None, settings: ModelSettings) -> None:
        self.settings = settings
        self._body: LoadedEncoder | None = None
        if model is not None:
            if model.startswith(tuple(HUBS)):  # the weights that come with the name are not needed
                settings = dataclasses.replace(settings, random_weights=True)
            self._body = load_encoder(model, settings)
            if not isinstance(self._body.encoder, nn.Module):
                kind = type(self._body.encoder).__name__
                raise ValueError(f"`model` must be a module to load weights into, got a {kind}.")

    def load(self, path: Path) -> LoadedEncoder:
        """Load the encoder of a checkpoint.

        Args:
            path: Of the checkpoint.

        Returns:
            The encoder; with a ``model`` the same object at every call, with other weights.

        Raises:
            ValueError: If it cannot be read or does not fit; says why, to follow the file's name.
        """
        if (path / ".metadata").is_file():
            raise ValueError(_DCP.format(path=path))
        if self._body is None:
            return self._as_it_says(path)
        if path.is_dir():
            return load_encoder(f"hf/{path}", self.settings)
        found = find_weights(
            self._body.encoder.state_dict(),
            read_file(path, self.settings.trust_pickle),
            self.settings.encoder,
        )
        self._body.encoder.load_state_dict(found.tensors)
        assumed = [said for said in self._body.assumed if "random_weights" not in said]
        if self.settings.encoder is None:
            where = f"those under {found.prefix!r}" if found.prefix else "the whole file"
            assumed.append(f"the encoder's weights are {where} (`encoder`)")
        if found.unused:
            some = ", ".join(found.unused[:3]) + (", …" if len(found.unused) > 3 else "")
            assumed.append(f"the encoder has no use for {some} ({len(found.unused)} in all)")
        return dataclasses.replace(self._body, name=str(path), assumed=tuple(assumed))

    def _as_it_says(self, path: Path) -> LoadedEncoder:
        try:
            if path.is_dir():
                return load_encoder(f"hf/{path}", self.settings)
            return from_checkpoint(str(path), self.settings)
        except ValueError as error:
            said = str(error)
            for name in (str(path), f"hf/{path}"):
                said = said.replace(f"`model`: {name!r} ", "")
            if "no Lightning checkpoint" in said or "of none of the recipes" in said:
                said += " Or name the architecture (`model`), to load the weights into."
            raise ValueError(said) from error
