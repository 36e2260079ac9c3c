"""The k-NN classifier against scikit-learn's, and the callback's good manners."""

import math
from functools import partial
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from scipy.stats import binomtest
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from jepa_monitor.recipes.cli import against_pixels
from jepa_monitor.recipes.data import ImageDataModule
from jepa_monitor.recipes.evaluation import (
    OnlineKNN,
    knn_hits,
    linear_hits,
    undisturbed,
)


def features(seed=0, n=300, m=1100, width=6, classes=5):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, width))
    labels = rng.integers(0, classes, n + m)
    x = centres[labels] + rng.normal(size=(n + m, width))
    return x[:n], labels[:n], x[n:], labels[n:]


def test_accuracy_equals_scikit_learn() -> None:
    bank, labels, queries, targets = features(1)
    reference = KNeighborsClassifier(7, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.1))
    expected = reference.fit(bank, labels).score(queries, targets)
    x, y, q, t = map(torch.from_numpy, (bank, labels, queries, targets))
    hits = knn_hits((x, y), (q, t), k=7, temperature=0.1)
    assert hits.double().mean() == pytest.approx(expected)


def test_linear_accuracy_is_that_of_the_penalised_likelihood() -> None:
    bank, labels, queries, targets = features(2, n=120, m=200, classes=3)
    mean, deviation = bank.mean(0), bank.std(0)
    x, q = (torch.from_numpy((z - mean) / deviation) for z in (bank, queries))
    weight = torch.zeros(3, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        logits = x @ weight.T + bias
        value = nn.functional.cross_entropy(logits, torch.from_numpy(labels), reduction="sum")
        value = value + weight.square().sum() / 2
        value.backward()
        return value

    optimizer.step(loss)
    expected = ((q @ weight.T + bias).argmax(1).numpy() == targets).mean()
    known, asked = [tuple(map(torch.from_numpy, p)) for p in ((bank, labels), (queries, targets))]
    assert linear_hits(known, asked).double().mean() == pytest.approx(expected, abs=0.006)
    assert 0.4 < expected < 1


@pytest.mark.parametrize("hits", [linear_hits, partial(knn_hits, k=5, temperature=0.1)])
def test_embeddings_that_are_not_finite_are_no_hits_and_teach_nothing(hits) -> None:
    x, y, q, t = map(torch.from_numpy, features(3))
    expected = hits((x[10:], y[10:]), (q, t)).index_fill(0, torch.tensor([0, 7]), False)
    x[:10], q[0], q[7] = torch.nan, torch.inf, torch.nan
    assert torch.equal(hits((x, y), (q, t)), expected)
    assert not hits((x, y), (q * torch.nan, t)).any()  # a run that has diverged goes on
    assert not hits((x * torch.nan, y), (q, t)).any()


def test_undisturbed_restores_modes_and_random_state_even_after_an_error() -> None:
    module = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2).eval())
    state = torch.get_rng_state()

    def look() -> None:
        with undisturbed(module, torch.device("cpu")):
            assert not module[0].training
            assert not torch.is_grad_enabled()
            torch.rand(3)
            raise RuntimeError("planned")

    with pytest.raises(RuntimeError, match="planned"):
        look()
    assert [m.training for m in module] == [True, False]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k=0 must be at least 1"),
        ({"every_n_epochs": 0}, "every_n_epochs=0 must be at least 1"),
        ({"max_val": -1}, "max_val=-1 must be at least 1"),
        ({"temperature": 0.0}, r"temperature=0\.0 must be positive"),
    ],
)
def test_bad_numbers_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        OnlineKNN(**options)


class Tiny(BoringModel):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.target_encoder = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), self.layer)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.target_encoder(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    validation_step = None


def run(*callbacks):
    pl.seed_everything(0)
    model, data = Tiny(), ImageDataModule("digits", image_size=8, batch_size=200)
    trainer = pl.Trainer(
        max_epochs=3,
        limit_train_batches=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        callbacks=list(callbacks),
    )
    trainer.fit(model, datamodule=data)
    return model, data, trainer


class Record(pl.Callback):
    def __init__(self) -> None:
        self.values = []

    def on_train_start(self, trainer, pl_module) -> None:
        self.values.append(trainer.callback_metrics.get("eval/knn_accuracy"))

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self.values.append(trainer.callback_metrics.get("eval/knn_accuracy"))


def test_callback_measures_without_disturbing() -> None:
    record, knn = Record(), OnlineKNN(k=5, temperature=0.1, max_train=400, max_val=150)
    watched, data, trainer = run(knn, record)
    plain, _, _ = run()
    for a, b in zip(watched.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)
    assert all(value is not None for value in record.values)
    assert len(record.values) == 4

    def chosen(dataset, count):
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:count]
        return zip(*[dataset[int(i)] for i in order], strict=True)

    def reference(embed):
        model = KNeighborsClassifier(5, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.1))
        sets = [chosen(data.plain_train_set, 400), chosen(data.val_set, 150)]
        (x, y), (q, t) = [(embed(torch.stack(images)), labels) for images, labels in sets]
        return model.fit(x, y).score(q, t)

    watched.eval()
    with torch.no_grad():
        final = reference(watched.target_encoder)
    assert float(trainer.callback_metrics["eval/knn_accuracy"]) == pytest.approx(final, abs=0.007)
    pixels = {tag: hits.double().mean() for tag, hits in knn.pixels.items()}
    expected = reference(lambda x: x.flatten(1))
    assert pixels["eval/knn_accuracy"] == pytest.approx(expected, abs=0.007)
    latest = trainer.callback_metrics["eval/linear_accuracy"]
    assert knn.latest["eval/linear_accuracy"].double().mean() == pytest.approx(latest)
    assert trainer.callback_metrics["eval/linear_accuracy"] > 0.4


def test_the_closing_sentence_has_the_difference_and_its_interval() -> None:
    # 40 images: 12 only the first has, 4 only the second, 20 both.
    hits = torch.tensor([True] * 12 + [False] * 4 + [True] * 20 + [False] * 4)
    others = torch.tensor([False] * 12 + [True] * 4 + [True] * 20 + [False] * 4)
    # Newcombe's equations with SciPy's Wilson; Yates takes n / 2 from a product above 0.
    one, two = (binomtest(k, 40).proportion_ci(method="wilson") for k in (32, 24))
    phi = max(20 * 4 - 12 * 4 - 20, 0) / math.sqrt(32 * 8 * 24 * 16)
    low, high = (
        0.2 + sign * math.sqrt(a**2 - 2 * phi * a * b + b**2)
        for sign, a, b in ((-1, 0.8 - one.low, two.high - 0.6), (1, one.high - 0.8, 0.6 - two.low))
    )
    assert against_pixels("k-NN accuracy", hits, others) == (
        "k-NN accuracy: the encoder beats raw pixels, +20.0 points (95 % interval "
        f"{100 * low:+.1f} to {100 * high:+.1f})."
    )
    assert "raw pixels beat the encoder, -20.0" in against_pixels("k-NN", others, hits)
    assert "equals raw pixels, +0.0" in against_pixels("k-NN", hits, hits)


def test_pixels_of_many_numbers_have_no_linear_probe() -> None:
    def tags(side: int) -> set[str]:
        images = [(torch.randn(1, side, side), n % 2) for n in range(12)]
        data = SimpleNamespace(plain_train_set=images, val_set=images)
        knn = OnlineKNN(encoder="flat")
        knn._log = lambda *_: None
        module = SimpleNamespace(device=torch.device("cpu"))
        knn.on_train_start(SimpleNamespace(datamodule=data), module)
        return set(knn.pixels)

    assert tags(32) == {"eval/knn_accuracy", "eval/linear_accuracy"}
    assert tags(33) == {"eval/knn_accuracy"}


def test_the_last_epoch_is_always_measured() -> None:
    knn = OnlineKNN(every_n_epochs=2, max_train=50, max_val=20)
    seen = []
    knn._log = lambda trainer, _, linear: seen.append((trainer.current_epoch, linear))
    for epoch in range(5):
        trainer = SimpleNamespace(current_epoch=epoch, max_epochs=5)
        knn.on_train_epoch_end(trainer, None)
    assert seen == [(1, False), (3, False), (4, True)]


def test_without_labels_nothing_is_logged() -> None:
    knn = OnlineKNN()
    images = [(torch.zeros(1, 2, 2), -1)]
    data = SimpleNamespace(plain_train_set=images, val_set=images)
    logged = []
    module = SimpleNamespace(
        device=torch.device("cpu"),
        get_submodule=lambda _: nn.Flatten(),
        log=lambda *arguments, **_: logged.append(arguments),
    )
    knn.on_train_start(SimpleNamespace(datamodule=data), module)
    assert knn.pixels == {}
    assert logged == []


def test_other_data_modules_are_refused() -> None:
    with pytest.raises(TypeError, match="must be an ImageDataModule, got NoneType"):
        OnlineKNN().on_train_start(SimpleNamespace(datamodule=None), BoringModel())


def test_the_untrained_encoder_is_in_the_curves_at_step_0() -> None:
    generator = torch.Generator().manual_seed(0)
    images = [
        (torch.randn(1, 2, 2, generator=generator) + 8 * (i % 2) - 4, i % 2) for i in range(40)
    ]
    curves, for_monitors = [], []
    trainer = SimpleNamespace(
        datamodule=SimpleNamespace(plain_train_set=images[:30], val_set=images[30:]),
        global_step=0,
        loggers=[SimpleNamespace(log_metrics=lambda values, step: curves.append((values, step)))],
    )
    module = SimpleNamespace(
        device=torch.device("cpu"),
        get_submodule=lambda _: nn.Flatten(),
        log=lambda name, value, **options: for_monitors.append((name, value, options["logger"])),
    )
    OnlineKNN(k=3).on_train_start(trainer, module)
    ((values, step),) = curves
    assert step == 0
    assert for_monitors == [(name, value, False) for name, value in values.items()]
    assert values.keys() == {"eval/knn_accuracy", "eval/linear_accuracy"}
    assert set(values.values()) == {1.0}  # two classes far apart
