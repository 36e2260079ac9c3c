"""What the tests share: an independent reference, a small module to train, and its data."""

from __future__ import annotations

import copy
import datetime
import multiprocessing
import os
import pathlib
import random
import socket
from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from scipy.stats._multivariate import multivariate_normal_frozen
from sklearn.covariance import ShrunkCovariance
from sklearn.datasets import load_digits
from torch import Tensor, distributed, nn
from torch.multiprocessing import start_processes
from torch.utils.data import DataLoader, TensorDataset, default_collate

# What takes long to import.
HEAVY = [
    "lightning.pytorch",
    "scipy.stats",
    "sklearn.covariance",
    "jepa_monitor.callbacks.jepa_score",
]


def seldom(*cases: Any) -> list[Any]:
    """Mark cases of a parameter as slow, beside which a few that say most run always."""
    return [
        pytest.param(*(c if isinstance(c, tuple) else (c,)), marks=pytest.mark.slow) for c in cases
    ]


def float64_spectrum(encoder: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The textbook way: a float64 Jacobian, image by image, and LAPACK's singular values."""
    spectra = []
    for image in images.double():
        jacobian = torch.autograd.functional.jacobian(
            lambda pixels: encoder(pixels[None])[0], image
        )
        spectra.append(torch.linalg.svdvals(jacobian.flatten(1)))
    return torch.stack(spectra)


def float64_score(encoder: nn.Module, images: Tensor, eps: float = 1e-6) -> Tensor:
    """The listing of the paper's appendix B in float64, on a copy of the encoder in eval mode."""
    spectrum = float64_spectrum(copy.deepcopy(encoder).double().eval(), images)
    return spectrum.clamp_min(eps).log().sum(1)


def leave_one_out_law(embeddings: np.ndarray) -> multivariate_normal_frozen:
    """The shrunk normal law under which each embedding is likeliest by the others, by brute force."""
    count, dimension = embeddings.shape
    others = [np.delete(embeddings, i, axis=0) for i in range(count)]
    covariances = np.stack([np.cov(each.T, bias=True) for each in others])
    variances, directions = np.linalg.eigh(covariances.reshape(count, dimension, dimension))
    means = np.stack([each.mean(0) for each in others])
    along = np.einsum("ij,ijk->ik", embeddings - means, directions)

    def likelihood(shrinkage: float) -> float:
        mean = variances.mean(1, keepdims=True)
        shrunk = (1 - shrinkage) * variances + shrinkage * mean
        return float(-0.5 * (np.log(shrunk) + along**2 / shrunk).sum())

    best = max(10 ** -np.arange(0, 8.5, 0.5), key=likelihood)
    law = ShrunkCovariance(shrinkage=best).fit(embeddings)
    return multivariate_normal(law.location_, law.covariance_)


def interpreter_settings() -> dict[str, Any]:
    """Every global setting and random state that an evaluation could leave behind."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002
        "torch": torch.get_rng_state().tolist(),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "precision": torch.get_float32_matmul_precision(),
        "tf32": torch.backends.cudnn.allow_tf32,
        "reduction": torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        "anomaly": torch.is_anomaly_enabled(),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def mlp(inputs: int = 48, outputs: int = 8, width: int = 24) -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, outputs)
    )


def off_the_start(module: nn.Module, seed: int = 0) -> nn.Module:
    """Move all parameters away from where they begin, where norms are identities and copies equal."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            shape, dtype = parameter.shape, parameter.dtype
            factor = torch.rand(shape, generator=generator, dtype=dtype) + 0.5
            shift = torch.randn(shape, generator=generator, dtype=dtype)
            parameter.copy_(parameter * factor + 0.1 * shift)
    return module


class Tiny(pl.LightningModule):
    """A module with all that a monitor could disturb: BatchNorm, dropout, random augmentation."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(),
            nn.Linear(8 * 16, 12),
        )  # fmt: skip
        self.losses: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images = batch[0] + 0.1 * torch.randn_like(batch[0])
        loss = (self.encoder(images) - self.encoder(batch[0])).square().mean()
        self.losses.append(loss.item())
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class Validated(Tiny):
    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val/loss", self.encoder(batch[0]).square().mean())


def smooth_images(count: int = 32, seed: int = 1) -> Tensor:
    """Images of which two crops have something in common, unlike those of noise."""
    coarse = torch.rand(count, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, size=8, mode="bilinear")


def images(count: int = 32, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def loader(count: int = 32, seed: int = 1, **kwargs: object) -> DataLoader:  # type: ignore[type-arg]
    data = TensorDataset(images(count, seed), torch.arange(count))
    return DataLoader(data, batch_size=8, **kwargs)  # type: ignore[arg-type]


def trainer(tmp_path: pathlib.Path, callbacks: list[pl.Callback], **kwargs: object) -> pl.Trainer:
    settings: dict[str, object] = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "default_root_dir": tmp_path,
    }
    return pl.Trainer(callbacks=callbacks, **(settings | kwargs))  # type: ignore[arg-type]


def without_pictures(patch: pytest.MonkeyPatch) -> None:
    """Let the callback draw none at its looks: they take most of the time, whatever is trained."""
    patch.setattr("jepa_monitor.callbacks.jepa_score.takes_pictures", lambda loggers: False)


def in_two_processes(work: Callable[[int, pathlib.Path], Any], folder: pathlib.Path) -> list[Any]:
    """What a function of a file returns in each of two processes that belong together.

    Args:
        work: Gets its process's rank, and the folder.
        folder: Where both may write.

    Returns:
        By rank.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    # Imports take longer than most of what is asked: a server does them once, and forks.
    multiprocessing.set_forkserver_preload(HEAVY)
    start_processes(_joined, (work, port, folder), nprocs=2, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def _joined(
    rank: int, work: Callable[[int, pathlib.Path], Any], port: int, folder: pathlib.Path
) -> None:
    torch.set_num_threads(1)
    settings = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    os.environ.update(settings, NODE_RANK="0", LOCAL_RANK=str(rank), RANK=str(rank))
    # Processes that wait for each other in vain are an error, not a test that never ends.
    patience = datetime.timedelta(seconds=120)
    distributed.init_process_group("gloo", rank=rank, world_size=2, timeout=patience)
    torch.save(work(rank, folder), folder / f"{rank}.pt")
    distributed.destroy_process_group()


class Hidden(nn.Module):
    """Where half of the directions grow the other half vanishes, which only exact scores see."""

    def __init__(self, inputs: int = 192) -> None:
        super().__init__()
        self.mix = nn.Linear(inputs, 48, bias=False)
        nn.init.orthogonal_(self.mix.weight, generator=torch.Generator().manual_seed(0))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        first, second = (half.mean(1, keepdim=True) for half in flat.chunk(2, dim=1))
        t = 3 * (first - second).detach()
        seen, hidden = self.mix(flat).chunk(2, dim=1)
        return torch.cat([seen * t.exp(), hidden * (-4 * torch.sigmoid(9 * t)).exp()], 1)


class OwnLoader:
    """No DataLoader: an object of somebody's own that draws on a counter."""

    def __init__(self) -> None:
        self.drawn = 0

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[Any]:
        for _ in range(3):
            self.drawn += 1
            yield self.batch()

    def batch(self) -> Any:
        return images(8, self.drawn), self.drawn


class Masking:
    """As the mask collators of I-JEPA and V-JEPA: a counter, shared with the workers, seeds the masks."""

    def __init__(self) -> None:
        self.drawn = multiprocessing.Value("i", 0)

    def __call__(self, samples: list[Any]) -> Any:
        with self.drawn.get_lock():
            self.drawn.value += 1
            seed = self.drawn.value
        masks = torch.rand(3, generator=torch.Generator().manual_seed(seed))
        return default_collate(samples), masks


def few_digits() -> dict[str, np.ndarray]:
    """Digits as `--data npz:FILE` takes them: 120 to train on, 50 held out."""
    digits = load_digits()
    drawn, labels = digits.images.astype(np.uint8) * 15, digits.target
    return {
        "train_images": drawn[:120],
        "train_labels": labels[:120],
        "test_images": drawn[120:170],
        "test_labels": labels[120:170],
    }
