"""How good are the embeddings? Nearest neighbours while the encoder trains, a linear probe at its ends."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from jepa_monitor.functional import knn_predict
from jepa_monitor.recipes.datasets import NOT_SET_UP
from jepa_monitor.recipes.folders import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jepa_monitor.recipes.datasets import Labelled

_LINEAR_PIXELS = 1024  # of more numbers a linear probe takes minutes


def knn_hits(
    bank: tuple[Tensor, Tensor], queries: tuple[Tensor, Tensor], k: int, temperature: float
) -> Tensor:
    """Say which queries :func:`~jepa_monitor.functional.knn_predict` classifies correctly.

    Args:
        bank: Known embeddings (N, K) and labels (N,).
        queries: Embeddings (M, K) and labels (M,) to test on.
        k: Neighbours that vote.
        temperature: Of the votes.

    Returns:
        Shape (M,), bool, on the CPU; their mean is the accuracy. Embeddings that are not finite are no hits.
    """
    return _finite_hits(partial(knn_predict, k=k, temperature=temperature), bank, queries)


def linear_hits(bank: tuple[Tensor, Tensor], queries: tuple[Tensor, Tensor]) -> Tensor:
    """Say which queries logistic regression on the known embeddings classifies correctly.

    scikit-learn's, with its default penalty, on embeddings of mean 0 and variance 1.

    Args:
        bank: Known embeddings (N, K) and labels (N,), of at least two classes.
        queries: Embeddings (M, K) and labels (M,) to test on.

    Returns:
        Shape (M,), bool, on the CPU; their mean is the accuracy. Embeddings that are not finite are no hits.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def predict(known: Tensor, classes: Tensor, asked: Tensor) -> Tensor:
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        probe.fit(known.double().numpy(), classes.numpy())
        return torch.from_numpy(probe.predict(asked.double().numpy()))

    return _finite_hits(predict, bank, queries)


def _finite_hits(
    predict: Callable[[Tensor, Tensor, Tensor], Tensor],
    bank: tuple[Tensor, Tensor],
    queries: tuple[Tensor, Tensor],
) -> Tensor:
    """Ask about finite embeddings: one that is not is no hit and teaches nothing, and no run ends by it."""
    (known, classes), (asked, truth) = ([part.cpu() for part in pair] for pair in (bank, queries))
    taught, told = known.isfinite().all(1), asked.isfinite().all(1)
    hits = torch.zeros(len(truth), dtype=torch.bool)
    if taught.any() and told.any():
        hits[told] = predict(known[taught], classes[taught], asked[told]) == truth[told]
    return hits


class OnlineKNN(Callback):
    """Log the k-NN accuracy of the encoder before training and at the ends of epochs.

    Needs no training of a head, and shows collapse (falling accuracy) early. It does not disturb
    the run: own loaders, own generator, modes and random state put back.

    Logs ``eval/knn_accuracy`` in [0, 1] and, before training and after the last epoch,
    ``eval/linear_accuracy``; nothing where images have no labels.

    Args:
        encoder: Name of the module to judge, an attribute of the LightningModule that maps images
            (B, C, H, W) to embeddings (B, K).
        every_n_epochs: Epochs between measurements, at least 1; the last one is always measured.
            Every epoch by default.
        k: Neighbours that vote.
        temperature: Of the votes.
        max_train: Training images that serve as neighbours, at most; a fixed random choice.
        max_val: Held-out images to classify, at most; a fixed random choice.
        batch_size: Images in a forward pass.
        linear: Whether to train a linear probe before the first and after the last epoch.

    Raises:
        ValueError: If a number is out of its range.
    """

    def __init__(
        self,
        encoder: str = "target_encoder",
        every_n_epochs: int | None = None,
        k: int = 20,
        temperature: float = 0.07,
        max_train: int = 10_000,
        max_val: int = 2_000,
        batch_size: int = 256,
        linear: bool = True,
    ) -> None:
        self.every_n_epochs = 1 if every_n_epochs is None else every_n_epochs
        numbers = {"every_n_epochs": self.every_n_epochs, "k": k, "max_train": max_train}
        for name, value in {**numbers, "max_val": max_val, "batch_size": batch_size}.items():
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        if temperature <= 0:
            raise ValueError(f"temperature={temperature} must be positive.")
        self.encoder = encoder
        self.k = k
        self.temperature = temperature
        self.max_train = max_train
        self.max_val = max_val
        self.batch_size = batch_size
        self.linear = linear
        self.pixels: dict[str, Tensor] = {}  # which images the raw pixels tell, by tag
        self.latest: dict[str, Tensor] = {}  # the same of the encoder, as measured last

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the untrained encoder and, for comparison, the raw pixels.

        Args:
            trainer: The trainer, whose data module must be an ``ImageDataModule``.
            pl_module: The method that trains.

        Raises:
            TypeError: If it is none.
        """
        pixels = self._embedded(trainer, pl_module, nn.Flatten())
        if pixels is not None:
            linear = self.linear and pixels[0][0].shape[1] <= _LINEAR_PIXELS
            self.pixels = self._hits(pixels, linear)
        self._log(trainer, pl_module, self.linear)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the encoder.

        Args:
            trainer: The trainer, whose data module must be an ``ImageDataModule``.
            pl_module: The method that trains.
        """
        epoch = trainer.current_epoch + 1
        last = epoch == trainer.max_epochs
        if epoch % self.every_n_epochs == 0 or last:
            self._log(trainer, pl_module, self.linear and last)

    def _log(self, trainer: Trainer, pl_module: LightningModule, linear: bool) -> None:
        found = self._embedded(trainer, pl_module, pl_module.get_submodule(self.encoder))
        if found is None:
            return
        self.latest = self._hits(found, linear)
        values = {tag: float(hits.double().mean()) for tag, hits in self.latest.items()}
        # Lightning would hold the first values back, and lose them to the first epoch's.
        before = trainer.global_step == 0
        for name, value in values.items():
            in_bar = name == "eval/knn_accuracy"
            pl_module.log(name, value, prog_bar=in_bar, logger=not before)
        for logger in trainer.loggers if before else ():
            logger.log_metrics(values, step=0)

    def _hits(
        self, found: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]], linear: bool
    ) -> dict[str, Tensor]:
        hits = {"eval/knn_accuracy": knn_hits(*found, self.k, self.temperature)}
        return hits | ({"eval/linear_accuracy": linear_hits(*found)} if linear else {})

    def _embedded(
        self, trainer: Trainer, pl_module: LightningModule, encoder: nn.Module
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
        # Every process measures all images: no communication, and the same value everywhere.
        data: Any = getattr(trainer, "datamodule", None)
        if not (hasattr(data, "plain_train_set") and hasattr(data, "val_set")):
            raise TypeError(
                "OnlineKNN takes its images from `trainer.datamodule`, which must be an "
                f"ImageDataModule, got {type(data).__name__}."
            )
        train, val = data.plain_train_set, data.val_set
        if train is None or val is None:
            raise RuntimeError(NOT_SET_UP)
        if UNKNOWN in (train[0][1], val[0][1]):
            return None
        with undisturbed(encoder, pl_module.device):
            return (
                self._embed(encoder, train, self.max_train, pl_module.device),
                self._embed(encoder, val, self.max_val, pl_module.device),
            )

    def _embed(
        self, encoder: nn.Module, images: Labelled, at_most: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        count = len(images)  # type: ignore[arg-type]
        chosen = torch.randperm(count, generator=generator)[:at_most].sort().values.tolist()
        loader = DataLoader(Subset(images, chosen), self.batch_size, generator=generator)
        pairs = [(encoder(x.to(device)).float(), y.to(device)) for x, y in loader]
        embeddings, labels = zip(*pairs, strict=True)
        return torch.cat(embeddings), torch.cat(labels)


@contextmanager
def undisturbed(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluate ``module`` without gradients; then put modes and random states back.

    Args:
        module: The module to put in evaluation mode, submodule by submodule.
        device: Where it lives.

    Yields:
        Nothing.
    """
    modes = [(m, m.training) for m in module.modules()]
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        try:
            module.eval()
            yield
        finally:
            for m, training in modes:
                m.training = training
