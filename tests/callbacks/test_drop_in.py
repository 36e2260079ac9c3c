"""The monitor does no harm: the run it watches is bit for bit what it would have been."""

from __future__ import annotations

import contextlib
import copy
import pathlib
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from drop_in_runs import Recording, assert_same, run
from helpers import Tiny, Validated, images, interpreter_settings, seldom, trainer
from torch import Tensor, nn

from jepa_monitor import DensityMonitor, JepaScoreCallback
from jepa_monitor.callbacks import CollapseCallback


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
