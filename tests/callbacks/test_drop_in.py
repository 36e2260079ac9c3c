"""The monitor does no harm: the run it watches is bit for bit what it would have been."""

from __future__ import annotations

import contextlib
import copy
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers import (
    Tiny,
    Validated,
    float64_score,
    images,
    interpreter_settings,
    loader,
    mlp,
    seldom,
    trainer,
)
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning_utilities.core.imports import RequirementCache
from torch import Tensor, nn
from torch.utils.data import Dataset

from jepa_monitor import DensityMonitor, JepaScoreCallback, ScoreOptions
from jepa_monitor.callbacks import CollapseCallback


class Recording(Logger):
    """Keeps what the user's own module logs, with its place on the x-axis."""

    name = "recording"
    version = 0

    def __init__(self) -> None:
        super().__init__()
        self.own: list[tuple[str, float, int | None]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        own = {tag: float(v) for tag, v in metrics.items() if tag.startswith(("train/", "val/"))}
        self.own += [(tag, value, step) for tag, value in own.items()]

    def log_hyperparams(self, params: Any) -> None:
        pass


class Compiled(Validated):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.compile(self.encoder, backend="aot_eager")


class Manual(Validated):
    """Two optimizers under manual optimization, and an EMA target that the monitor looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.predictor = nn.Linear(12, 12)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        loss = (
            (self.predictor(self.encoder(batch[0])) - self.target_encoder(batch[0])).square().mean()
        )
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
        with torch.no_grad():
            pairs = zip(self.target_encoder.parameters(), self.encoder.parameters(), strict=True)
            for target, parameter in pairs:
                target.lerp_(parameter, 0.1)
        self.losses.append(loss.item())
        self.log("train/loss", loss)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [
            torch.optim.AdamW(self.encoder.parameters(), lr=1e-2),
            torch.optim.SGD(self.predictor.parameters(), lr=1e-2, momentum=0.9),
        ]


class Named(nn.Module):
    """Layers under two names, one of them inside another module, and tied weights."""

    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.stem = net[0]
        self.net = net.append(nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12)))
        self.net[6][1].weight = self.net[6][0].weight
        self.last, self.layers = self.net[6][1], [self.net[5], self.net[6]]

    def forward(self, batch: Tensor) -> Tensor:
        return self.net(batch)


class Entangled(Validated):
    """What ``Named`` does to its encoder, whose layers the module names too; and a hook that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Named(self.encoder)
        self.head = self.encoder.net[6][0]
        self.count = 0
        self.encoder.stem.register_forward_hook(self.counted)

    def counted(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        self.count += 1
        return output * (1 - 0.5**self.count)


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "files": {"files": True},  # beside which the page of the run is drawn
    "layers under two names": {"module": Entangled},
    "workers": {"workers": 2},
    "persistent workers": {"workers": 2, "persistent": True},
    "the loader's own generator": {"generator": True},
    "accumulation": {"accumulate_grad_batches": 4},
    "clipping": {"gradient_clip_val": 0.1},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "bf16-true": {"precision": "bf16-true"},
    "16-mixed": {"precision": "16-mixed"},  # on a CPU Lightning turns it into bf16-mixed
    "64-true": {"precision": "64-true"},
    "compiled": {"module": Compiled},
    "manual optimization": {"module": Manual},
    "no validation loop": {"module": Tiny},
    "validation in between": {"val_check_interval": 0.5},
    "few validation batches": {"limit_val_batches": 1},
    "validation switched off": {"limit_val_batches": 0},
    "no sanity check": {"num_sanity_val_steps": 0},
    "anomaly mode": {"detect_anomaly": True},
    "no inference mode": {"inference_mode": False},
    "deterministic": {"deterministic": True},
    "compiled as a whole": {"module": lambda: torch.compile(Validated(), backend="aot_eager")},
}


def run(
    folder: pathlib.Path,
    callbacks: list[pl.Callback],
    module: Callable[[], Tiny] = Validated,
    workers: int = 0,
    persistent: bool = False,
    generator: bool = False,
    files: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """All that a run leaves behind."""
    pl.seed_everything(7, verbose=False)
    logger = Recording()
    watched = module()
    own = torch.Generator().manual_seed(5) if generator else None
    train = loader(
        48, 2, shuffle=True, num_workers=workers, persistent_workers=persistent, generator=own
    )
    loggers = [logger, CSVLogger(folder)] if files else [logger]
    runner = trainer(folder, callbacks, logger=loggers, **settings)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*fp16 is not supported on CPU")
        runner.fit(watched, train, loader(16, 3))
    return {
        "losses": watched.losses,
        "own logs": logger.own,
        "weights": watched.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in runner.optimizers],
        "interpreter": interpreter_settings(),
        "step": runner.global_step,
    }


def assert_same(found: Any, expected: Any, where: str = "") -> None:
    """Compare bit for bit, and name the first difference."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_same(found[key], value, f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{where}[{index}]")
    elif isinstance(expected, Tensor):
        assert torch.equal(found, expected), where
    else:
        assert found == expected, where


@pytest.mark.parametrize("name", [*list(SETTINGS)[:-1], *seldom("compiled as a whole")])
def test_training_is_bit_for_bit_the_same(tmp_path: pathlib.Path, name: str) -> None:
    if name == "compiled as a whole" and torch.__version__ < "2.7":
        pytest.skip("torch 2.6 cannot compile this module as a whole, watched or not")
    plain = run(tmp_path / "plain", [], **SETTINGS[name])
    score = JepaScoreCallback(every_n_steps=3, max_overhead=None, max_probe_samples=4)
    fast = CollapseCallback(every_n_steps=1, name="fast")
    watched = run(tmp_path / "watched", [score, fast], **SETTINGS[name])
    assert len(score.history) > 1
    assert len(fast.history) > 3
    assert score.failures == fast.failures == 0
    assert plain["losses"]
    assert plain["own logs"]
    assert_same(watched, plain)


def ijepa() -> pl.LightningModule:
    from jepa_monitor.recipes.ijepa import IJepa

    return IJepa(
        image_size=24, width=16, depth=2, heads=2, predictor_width=8, predictor_depth=1,
        predictor_heads=2,
    )  # fmt: skip


def dinov2() -> pl.LightningModule:
    from jepa_monitor.recipes.dinov2 import DinoV2

    return DinoV2(
        image_size=24, patch_size=4, width=16, depth=2, heads=2, head_hidden=12, bottleneck=6,
        prototypes=10,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "views"), [*seldom((ijepa, {})), (dinov2, {"global_views": 2, "local_views": 1})]
)
def test_recipes_learn_bit_for_bit_the_same(
    tmp_path: pathlib.Path, recipe: Callable[[], pl.LightningModule], views: dict[str, int]
) -> None:
    pytest.importorskip("sklearn")
    from jepa_monitor.recipes.data import ImageDataModule

    def train(*callbacks: pl.Callback) -> dict[str, Any]:
        pl.seed_everything(7, verbose=False)
        logger = Recording()
        module, data = recipe(), ImageDataModule("digits", batch_size=50, image_size=24, **views)
        runner = trainer(
            tmp_path, list(callbacks), logger=logger, max_epochs=2, limit_train_batches=3,
            limit_val_batches=1,
        )  # fmt: skip
        runner.fit(module, datamodule=data)
        return {
            "own logs": logger.own,
            "weights": module.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in runner.optimizers],
            "interpreter": interpreter_settings(),
        }

    score = JepaScoreCallback(every_n_steps=3, max_overhead=None, max_probe_samples=2, strict=True)
    fast = CollapseCallback(every_n_steps=1, name="fast", strict=True)
    plain, watched = train(), train(score, fast)
    assert (len(score.history), len(fast.history)) == (3, 7)
    assert_same(watched, plain)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


CONTEXTS: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "plain": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "anomaly mode": lambda: torch.autograd.set_detect_anomaly(True),
    "float64 by default": lambda: default_dtype(torch.float64),
}

HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
    "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks",
)  # fmt: skip


class Tally:
    """Counts where no look puts anything back: in an object of its own."""

    def __init__(self) -> None:
        self.passes = 0


class Encoder(nn.Module):
    """Everything that an evaluation could leave a mark on."""

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 40)
        )
        self.register_buffer("passes", torch.zeros((), dtype=torch.long))
        self.net[0].requires_grad_(False)
        self.net[1].eval()
        self.net[4].register_forward_hook(lambda module, inputs, output: output * 2)
        self.net[4].weight.register_hook(lambda gradient: gradient * 2)
        self.first = self.net[0]  # under a second name
        self.net.append(nn.Sequential(nn.GELU(), nn.Linear(40, 40), nn.Linear(40, 40), self.net[3]))
        self.net[5][2].weight = self.net[5][1].weight
        self.register_buffer("same_passes", self.passes)
        self.table = torch.linspace(0.5, 1, 40)  # a tensor that is no buffer
        self.plain, self.cache, self.recent = 0, {"passes": [0]}, ()
        self.generator = torch.Generator().manual_seed(3)
        self.fails_at, self.tally = fails_at, Tally()

    def forward(self, batch: Tensor) -> Tensor:
        self.passes += 1
        self.plain += 1
        self.table *= 1 + 1e-3
        self.cache["passes"][0] += 1
        self.cache[self.plain] = self.recent = (batch,)
        self.tally.passes += 1
        torch.rand(1)
        torch.rand(1, generator=self.generator)
        if self.tally.passes == self.fails_at:
            raise RuntimeError("no luck")
        return self.net(batch) * self.table


def marks(encoder: nn.Module) -> dict[str, Any]:
    return {
        "modes": [module.training for module in encoder.modules()],
        "hooks": [
            {name: list(getattr(module, name)) for name in HOOKS} for module in encoder.modules()
        ],
        "parameters": {
            name: (id(p), p._version, p.requires_grad, id(p.grad), list(p._backward_hooks or ()))
            for name, p in encoder.named_parameters(remove_duplicate=False)
        },
        "gradients": {
            name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None
        },
        "buffers": {
            name: (id(b), b._version) for name, b in encoder.named_buffers(remove_duplicate=False)
        },
        "plain": (encoder.plain, copy.deepcopy(encoder.cache), encoder.recent, id(encoder.cache)),
        "table": (id(encoder.table), encoder.table.clone()),
        "generator": encoder.generator.get_state(),
        "state": {name: value.clone() for name, value in encoder.state_dict().items()},
    }


@pytest.mark.parametrize("context", CONTEXTS)
def test_an_evaluation_leaves_no_mark(context: str) -> None:
    monitor = DensityMonitor(images(6, 3), reference=images(12, 4), polarity_samples=2)
    sound = Encoder()
    weights = copy.deepcopy(sound.state_dict())  # how many are refined in float64 depends on them
    monitor.evaluate(sound)  # the first look also checks the sketch
    sound.tally.passes = 0
    monitor.evaluate(sound)
    passes = sound.tally.passes
    # At the first, the last and some passes between: the law, each set, float64, polarity.
    for fails_at in (None, 1, 2, 3, passes // 2, passes):
        encoder = Encoder(fails_at).train()
        encoder.load_state_dict(weights)
        encoder.net[1].eval()
        encoder.net(images(2)).sum().backward()
        with CONTEXTS[context]():
            before = marks(encoder), interpreter_settings()
            if fails_at in (1, 2, 3, passes // 2):
                with pytest.raises(RuntimeError, match="no luck"):
                    monitor.evaluate(encoder)
            else:  # what an insight adds may fail: it is told, and the look goes on
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    told = " ".join(map(str, monitor.evaluate(encoder).failed.values()))
                assert ("no luck" in told) == bool(fails_at)
            assert_same((marks(encoder), interpreter_settings()), before)


class Dying(Dataset):  # type: ignore[type-arg]
    """Cannot be read the first few times, like a disk that comes back."""

    def __init__(self, times: int) -> None:
        self.times = times

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        if index == 5 and self.times:
            self.times -= 1
            raise OSError("disk is gone")
        return images(8, 3)[index]


def failing(*steps: int, error: type[Exception] = RuntimeError) -> Callable[[Any], Any]:
    """An encoder that fails at the given steps."""

    def find(module: pl.LightningModule) -> Any:
        def embed(batch: Tensor) -> Tensor:
            if module.global_step in steps:
                raise error("no luck")
            return module.encoder(batch)

        embed.encoder = module.encoder
        return embed

    return find


class BrokenLogger(CSVLogger):
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if "jepa_score/mean" in metrics and step:
            raise ConnectionError("server is gone")


def to_nan(module: pl.LightningModule) -> Any:
    if module.global_step == 6:
        return lambda batch: module.encoder(batch) * torch.nan
    return module.encoder


# What goes wrong: the callback's arguments, the warning, the failures, the steps that were scored.
FAILURES: dict[str, tuple[dict[str, Any], str, int, list[int]]] = {
    "raises": ({"encoder": failing(6)}, "RuntimeError: no luck", 1, [0, 12]),
    "raises from the first": ({"encoder": failing(0, 6)}, "RuntimeError: no luck", 2, [12]),
    "key error": ({"encoder": failing(6, error=KeyError)}, "KeyError: 'no luck'", 1, [0, 12]),
    "memory": ({"encoder": failing(6, error=MemoryError)}, "MemoryError: no luck", 1, [0, 12]),
    "GPU memory": (
        {"encoder": failing(6, error=torch.OutOfMemoryError)}, "OutOfMemoryError: no luck", 1, [0, 12],
    ),
    "shape": (
        {"encoder": lambda m: (lambda x: x.sum()) if m.global_step == 6 else m.encoder},
        "ValueError: `encoder` must return one embedding", 1, [0, 12],
    ),
    "gone": (
        {"encoder": lambda m: None if m.global_step == 6 else m.encoder},
        "TypeError: `encoder` is a function that must return", 1, [0, 12],
    ),
    "data": ({"probe": Dying(2)}, "OSError: disk is gone", 1, [6, 12]),
    "data for good": ({"probe": Dying(99)}, "OSError: disk is gone", 3, []),
    "logger": ({}, "ConnectionError: server is gone", 2, [0, 6, 12]),
}  # fmt: skip


@pytest.fixture(scope="module")
def plain_losses(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return run(tmp_path_factory.mktemp("plain"), [])["losses"]


@pytest.mark.parametrize("name", FAILURES)
def test_a_failing_evaluation_never_ends_training(
    tmp_path: pathlib.Path, plain_losses: list[float], name: str
) -> None:
    arguments, message, failures, scored = FAILURES[name]
    callback = JepaScoreCallback(max_overhead=None, polarity_samples=0, **copy.deepcopy(arguments))
    logger = BrokenLogger(tmp_path) if name == "logger" else False
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pl.seed_everything(7, verbose=False)
        module = Validated()
        runner = trainer(tmp_path, [callback], logger=logger)
        runner.fit(module, loader(48, 2, shuffle=True), loader(16, 3))
    said = [str(w.message) for w in caught if "could not" in str(w.message)]
    assert len(said) == 1
    assert message in said[0]
    assert callback.failures == failures
    assert float(runner.callback_metrics["monitor/failures"]) == failures
    assert [values["step"] for values in callback.history] == scored
    assert module.losses == plain_losses


@pytest.mark.parametrize("name", FAILURES)
def test_strict_raises_what_went_wrong(tmp_path: pathlib.Path, name: str) -> None:
    arguments, message, *_ = FAILURES[name]
    callback = JepaScoreCallback(
        max_overhead=None, polarity_samples=0, strict=True, **copy.deepcopy(arguments)
    )
    logger = BrokenLogger(tmp_path) if name == "logger" else False
    with pytest.raises(Exception) as caught:
        trainer(tmp_path, [callback], logger=logger).fit(Validated(), loader(48, 2), loader(16, 3))
    assert message in f"{type(caught.value).__name__}: {caught.value}"


def test_scores_that_are_not_finite_are_counted_not_averaged(tmp_path: pathlib.Path) -> None:
    callback = JepaScoreCallback(to_nan, max_overhead=None, max_probe_samples=8)
    run(tmp_path, [callback])
    assert callback.failures == 0
    nonfinite = [values["monitor/nonfinite"] for values in callback.history]
    assert nonfinite == [0, 8, 0]  # without a law of the reference, it is not scored
    assert ["jepa_score/mean" in values for values in callback.history] == [True, False, True]


@pytest.mark.parametrize("kind", ["KeyboardInterrupt", "SIGTERM"])
def test_interrupted_in_an_evaluation(tmp_path: pathlib.Path, kind: str) -> None:
    def find(module: pl.LightningModule) -> Any:
        def embed(batch: Tensor) -> Tensor:
            if module.global_step == 4:
                if kind == "KeyboardInterrupt":
                    raise KeyboardInterrupt
                os.kill(os.getpid(), signal.SIGTERM)
            return module.encoder(batch)

        return embed

    plain = ModelCheckpoint(tmp_path / "plain", "{step}", every_n_train_steps=2, save_top_k=-1)
    pl.seed_everything(7, verbose=False)
    trainer(tmp_path, [plain], enable_checkpointing=True).fit(
        Validated(), loader(48, 2), loader(16, 3)
    )
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1, save_last=True)
    callback = JepaScoreCallback(find, every_n_steps=2, max_overhead=None)
    pl.seed_everything(7, verbose=False)
    module = Validated()
    before = signal.getsignal(signal.SIGTERM)
    runner = trainer(tmp_path, [checkpoint, callback], enable_checkpointing=True)
    with contextlib.suppress(BaseException):  # Lightning leaves in its own way, which varies
        runner.fit(module, loader(48, 2), loader(16, 3))
    signal.signal(signal.SIGTERM, before)
    assert runner.global_step < 12
    assert all(part.training for part in module.modules())
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    expected = torch.load(
        tmp_path / "plain" / f"step={saved['global_step']}.ckpt", weights_only=True
    )
    for part in ("state_dict", "optimizer_states", "epoch"):
        assert_same(saved[part], expected[part], part)
    resumed = Validated()
    resumed.load_state_dict(saved["state_dict"])
    again = JepaScoreCallback(every_n_steps=2, max_overhead=None)
    trainer(tmp_path, [again]).fit(
        resumed, loader(48, 2), loader(16, 3), ckpt_path=tmp_path / "last.ckpt"
    )
    assert again.history[-1]["step"] == 12


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_where_it_is() -> None:
    script = """
        import gc, resource, sys
        import torch
        from helpers import images
        from jepa_monitor import DensityMonitor

        torch.set_num_threads(1)
        encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 8))
        monitor = DensityMonitor(
            images(4), reference=images(40), max_probe_samples=4
        )

        def resident():
            gc.collect()
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1])

        for count in range(1, 301):
            report = monitor.evaluate(encoder)
            if count % 60 == 1:
                report.figures()
            if count in (10, 70, 300):
                print(resident())
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        check=True, capture_output=True, text=True, cwd=pathlib.Path(__file__).parents[1],
    )  # fmt: skip
    tenth, _, last = map(int, found.stdout.split())
    assert last <= 1.02 * tenth


def test_a_lazy_encoder_is_watched_from_its_first_batch_on(tmp_path: pathlib.Path) -> None:
    class Lazy(Validated):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Flatten(), nn.LazyLinear(12))

        def configure_optimizers(self) -> None:
            return None  # a lazy parameter's optimizer is the user's affair

    callback = JepaScoreCallback(max_overhead=None)
    with pytest.warns(UserWarning, match="`encoder` has parameters without a shape"):
        trainer(tmp_path, [callback], num_sanity_val_steps=0).fit(
            Lazy(), loader(48, 2), loader(16, 3)
        )
    assert [values["step"] for values in callback.history] == [6, 12]


def test_a_plain_callable_is_watched_too(tmp_path: pathlib.Path) -> None:
    net = mlp(192)
    callback = JepaScoreCallback(lambda module: lambda batch: net(batch) / 2, max_overhead=None)
    plain = run(tmp_path, [])
    watched = run(tmp_path, [callback])
    assert callback.failures == 0
    assert_same(watched, plain)


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_either_import_name(tmp_path: pathlib.Path, package: str) -> None:
    other = pytest.importorskip(package)
    if package == "pytorch_lightning" and RequirementCache("pytorch-lightning<2.6"):
        pytest.skip("its Trainer refuses callbacks of lightning before 2.6")

    class Module(other.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = mlp(192)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return self.encoder(batch[0]).square().mean()

        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.log("val/loss", self.encoder(batch[0]).square().mean())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    score = JepaScoreCallback(max_overhead=None, strict=True)
    fast = CollapseCallback(every_n_steps=2, name="fast", strict=True)
    checkpoint = other.callbacks.ModelCheckpoint(tmp_path, monitor="jepa_score/mean")
    stopping = other.callbacks.EarlyStopping("fast/collapse/rankme", mode="max", patience=9)
    logger = other.loggers.CSVLogger(tmp_path)
    runner = other.Trainer(
        max_epochs=2, accelerator="cpu", callbacks=[score, fast, checkpoint, stopping],
        logger=logger, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip
    module = Module()
    runner.fit(module, loader(48, 2), loader(16, 3))
    assert [values["step"] for values in score.history] == [0, 6, 12]
    assert len(fast.history) == 7
    expected = float64_score(module.encoder, images(16, 3)).mean().item()
    assert float(runner.callback_metrics["jepa_score/mean"]) == pytest.approx(expected, abs=0.02)
    assert "jepa_score/mean" in pathlib.Path(logger.log_dir, "metrics.csv").read_text()
    state = torch.load(checkpoint.best_model_path, weights_only=True)["callbacks"]
    assert len([key for key in state if key.startswith(("JepaScore", "Collapse"))]) == 2


def test_a_configuration_file_makes_the_round_trip(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("jsonargparse")
    from lightning.pytorch.cli import LightningCLI

    class Data(pl.LightningDataModule):
        def train_dataloader(self) -> Any:
            return loader(16, 2)

        def val_dataloader(self) -> Any:
            return loader(16, 3)

    first = tmp_path / "first.yaml"
    first.write_text(
        textwrap.dedent("""
            trainer:
              max_epochs: 1
              accelerator: cpu
              logger: false
              enable_checkpointing: true
              enable_progress_bar: false
              enable_model_summary: false
              callbacks:
                - class_path: jepa_monitor.JepaScoreCallback
                  init_args:
                    encoder: encoder
                    every_n_steps: 1
                    max_probe_samples: 3
                    max_overhead: null
                    pool: flatten
                    options: {method: sketch, rows: 4}
                    strict: true
                - class_path: jepa_monitor.callbacks.CollapseCallback
                  init_args: {name: fast, every_n_steps: 2, on_collapse: stop}
        """)
    )

    def train(config: pathlib.Path, folder: str) -> tuple[pathlib.Path, list[Any]]:
        root = tmp_path / folder
        cli = LightningCLI(
            Validated, Data, args=["fit", "--config", str(config), "--trainer.default_root_dir", str(root)],
            seed_everything_default=1,
        )  # fmt: skip
        kinds = (JepaScoreCallback, CollapseCallback)
        ours = [callback for callback in cli.trainer.callbacks if isinstance(callback, kinds)]
        return root / "config.yaml", ours

    saved, (score, fast) = train(first, "one")
    again, (same_score, same_fast) = train(saved, "two")
    assert saved.read_text().replace("/one", "/two") == again.read_text()
    assert (score.every_n_steps, score.settings.max_probe_samples, score.pool) == (1, 3, "flatten")
    assert score.settings.options == same_score.settings.options == ScoreOptions("sketch", rows=4)
    assert (fast.name, fast.on_collapse) == ("fast", "stop")
    assert len(score.history) == 3
    own = [timeless(values) for values in score.history]
    assert own == [timeless(values) for values in same_score.history]
    assert len(fast.history) == len(same_fast.history) == 2


def timeless(scalars: dict[str, float]) -> dict[str, float]:
    clocks = ("monitor/seconds", "monitor/overhead")
    return {tag: value for tag, value in scalars.items() if tag not in clocks}
