"""The command line that the recipes share: Lightning's, with defaults for everything."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from rich.console import Console
from rich.table import Table

from jepa_monitor.callbacks import JepaScoreCallback
from jepa_monitor.functional import paired_interval
from jepa_monitor.probes.sources import Source
from jepa_monitor.recipes.curriculum import SecondStage
from jepa_monitor.recipes.data import ImageDataModule
from jepa_monitor.recipes.evaluation import OnlineKNN

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

AS_THE_MONITOR = 0  # epochs between validations: as many as between looks


class MonitoredCLI(LightningCLI):
    """LightningCLI without subcommands, with a monitor: no argument at all trains with the defaults.

    Args:
        *args: See ``LightningCLI``.
        defaults: What a method asks of data and callbacks unless told otherwise, by full name.
        **kwargs: See ``LightningCLI``.
    """

    short: ClassVar[Mapping[str, str]] = {}  # options by what may be written for them

    def __init__(self, *args: Any, defaults: Mapping[str, Any], **kwargs: Any) -> None:
        self.defaults = dict(defaults)
        super().__init__(*args, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the callbacks, ``--ckpt_path``, and let the seed decide what follows from it.

        Args:
            parser: The parser to extend.
        """
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help="Checkpoint to resume from, or ``last`` for the newest of this recipe.",
        )
        parser.add_lightning_class_args(JepaScoreCallback, "monitor")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults({"checkpoint.save_last": True, "monitor.max_overhead": 0.2})
        # None, and 1 with an interval of batches, mean something to Lightning.
        parser.set_defaults({"trainer.check_val_every_n_epoch": AS_THE_MONITOR})
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)
        self.add_method_arguments(parser)
        parser.set_defaults(self.defaults)

    def add_method_arguments(self, parser: LightningArgumentParser) -> None:
        """Add what a kind of methods needs besides.

        Args:
            parser: The parser to extend.
        """

    @property
    def cadence(self) -> int:
        """Epochs between measurements: about ten in the run, one of them at its end."""
        epochs = self.config["trainer.max_epochs"] or 1
        return next(n for n in range(max(epochs // 10, 1), 0, -1) if epochs % n == 0)

    def before_instantiate_classes(self) -> None:
        """Measure about ten times in the run, and at its end, unless told when."""
        monitor = self.config["monitor"]
        if monitor["every_n_epochs"] is None and monitor["every_n_steps"] is None:
            monitor["every_n_epochs"] = self.cadence
        trainer = self.config["trainer"]
        if trainer["check_val_every_n_epoch"] == AS_THE_MONITOR:
            told = trainer["val_check_interval"] is not None
            trainer["check_val_every_n_epoch"] = 1 if told else self.cadence

    def before_fit(self) -> None:
        """Do what a method needs once all is built."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Accept the short forms of options, then parse.

        Args:
            parser: The parser.
            args: Arguments, or None for those of the process.
        """
        if args is None:
            sys.argv[1:] = spell_out(sys.argv[1:], self.short)
        elif isinstance(args, list):
            args = spell_out(args, self.short)
        super().parse_arguments(parser, args)


class RecipeCLI(MonitoredCLI):
    """The command line of methods for images, with k-NN; ``--data NAME`` stands for ``--data.name NAME``."""

    short: ClassVar[Mapping[str, str]] = {"--data": "--data.name"}

    def add_method_arguments(self, parser: LightningArgumentParser) -> None:
        """Add k-NN, and let the data decide what follows from them.

        Args:
            parser: The parser to extend.
        """
        parser.add_lightning_class_args(OnlineKNN, "knn")
        parser.link_arguments("data.image_size", "model.image_size")
        parser.link_arguments("data.channels", "model.in_channels", apply_on="instantiate")
        if "first_epochs" in inspect.signature(self._model_class).parameters:
            parser.link_arguments("data.first_epochs", "model.first_epochs")
            parser.link_arguments("model.anchor_weight", "data.paired", compute_fn=bool)

    def before_instantiate_classes(self) -> None:
        """Measure k-NN about ten times in the run, too."""
        super().before_instantiate_classes()
        knn = self.config["knn"]
        knn["every_n_epochs"] = knn["every_n_epochs"] or self.cadence

    def before_fit(self) -> None:
        """Let the monitor of a run of two stages compare held-out images with those of the second.

        It would ask the sampler, which answers by the first epoch: with denoised or small images.
        """
        monitor = self.config_init["monitor"]
        if self.datamodule.first_epochs and monitor.settings.reference is None:
            reference = Source(SecondStage(self.datamodule), for_training=True)
            monitor.settings = dataclasses.replace(monitor.settings, reference=reference)

    def instantiate_classes(self) -> None:
        """Build everything, and keep what the data decide among the module's hyperparameters."""
        super().instantiate_classes()
        # Lightning 2.4 keeps only what the command line has decided.
        self.model.hparams["in_channels"] = self.datamodule.channels


def spell_out(arguments: Sequence[str], short: Mapping[str, str]) -> list[str]:
    """Write ``--data NAME`` as ``--data.name NAME``; leave ``--data FILE.yaml`` as it is.

    Args:
        arguments: Arguments of the command line.
        short: Options by what may be written for them.

    Returns:
        The arguments to parse.
    """
    result: list[str] = []
    for position, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        following = value if equals else "".join(arguments[position + 1 : position + 2])
        if option in short and not following.endswith((".yaml", ".yml", ".json")):
            argument = f"{short[option]}{equals}{value}"
        result.append(argument)
    return result


def verdict(metrics: Mapping[str, float]) -> str:
    """Say in words how a run went, by the monitor's last look.

    Args:
        metrics: Values by tag; what is missing is not spoken of.

    Returns:
        A few sentences; empty if nothing is known.
    """
    states = {
        0: "Healthy: the embeddings have not collapsed.",
        1: "Dimensional collapse: the embeddings lie in few of their dimensions.",
        2: "Complete collapse: the embeddings are nearly one point.",
    }
    said = [states[int(metrics["collapse/state"])]] if "collapse/state" in metrics else []
    if "density/precondition" in metrics:
        said.append(
            "They are close enough to Gaussian to read densities off them."
            if metrics["density/precondition"]
            else "They are not Gaussian enough to trust densities read off them."
        )
    elif "density/precondition_needed" in metrics:
        needed = int(metrics["density/precondition_needed"])
        said.append(f"Whether they are Gaussian takes {needed} embeddings of probe and reference.")
    if metrics.get("density/polarity_high", 1.0) < 0.5:
        polarity = metrics["density/polarity"]
        said.append(f"JEPA-SCORE is inverted: corrupted images score higher ({polarity:.2f}).")
    if failures := int(metrics.get("monitor/failures", 0)):
        said.append(f"{failures} evaluations of the monitor failed.")
    return " ".join(said)


def against_pixels(measure: str, hits: Tensor, pixels: Tensor) -> str:
    """Say whether training was worth it: an encoder that does not beat raw pixels is none.

    Args:
        measure: What was measured.
        hits: Which images the encoder tells, (M,), bool.
        pixels: Which of them the raw pixels tell.

    Returns:
        A sentence.
    """
    difference, (low, high) = paired_interval(hits.cpu(), pixels.cpu())
    points = " to ".join(f"{100 * float(end):+.1f}" for end in (low, high))
    if low > 0:
        told = "the encoder beats raw pixels"
    else:
        told = "raw pixels beat the encoder" if high < 0 else "the encoder equals raw pixels"
    return f"{measure}: {told}, {100 * float(difference):+.1f} points (95 % interval {points})."


class ClosingTable(Callback):
    """Print what training changed, how the run went, and how to look at the curves."""

    rows: tuple[tuple[str, str, str], ...] = (
        ("JEPA-SCORE, mean (nats)", "jepa_score/mean", "{:.1f}"),
        ("JEPA-SCORE, terms", "jepa_score/terms", "{:.0f}"),  # means of as many are on one scale
        ("RankMe", "collapse/rankme", "{:.1f}"),
        ("k-NN accuracy", "eval/knn_accuracy", "{:.1%}"),
        ("linear accuracy", "eval/linear_accuracy", "{:.1%}"),
    )

    def __init__(self) -> None:
        self.start: dict[str, float] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the values of the untrained encoder, unless a checkpoint brought them.

        Args:
            trainer: The trainer.
            pl_module: The method that trains.
        """
        self.start = self.start or self._values(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table.

        Args:
            trainer: The trainer.
            pl_module: The method that trains.
        """
        if not trainer.is_global_zero:
            return
        probes = [c for c in trainer.callbacks if isinstance(c, OnlineKNN)]  # type: ignore[attr-defined]
        pixels, latest = (probes[0].pixels, probes[0].latest) if probes else ({}, {})
        known = {tag: float(hits.double().mean()) for tag, hits in pixels.items()}
        end = self._values(trainer)
        heads = ["raw pixels"] if probes else []
        table = Table("", *heads, "before training", "after", title="Result")
        for label, key, form in self.rows:
            cells = [form.format(v[key]) if key in v else "-" for v in (self.start, end)]
            beside = [form.format(known[key]) if key in known else ""] if probes else []
            table.add_row(label, *beside, *cells)
        console = Console()
        console.print(table)
        for label, key, _ in self.rows:
            if key in pixels and key in latest:
                console.print(against_pixels(label, latest[key], pixels[key]))
        console.print(verdict({k: float(v) for k, v in trainer.callback_metrics.items()}))
        if trainer.log_dir:
            folder = Path(trainer.log_dir).parent
            console.print(f"Open the curves with: tensorboard --logdir {folder}", soft_wrap=True)

    def state_dict(self) -> dict[str, Any]:
        """Keep the first values over a resume.

        Returns:
            Plain numbers by key.
        """
        return {"start": self.start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the first values from a checkpoint.

        Args:
            state_dict: What ``state_dict`` returned.
        """
        self.start = state_dict["start"]

    def _values(self, trainer: Trainer) -> dict[str, float]:
        metrics = trainer.callback_metrics
        return {key: float(metrics[key]) for _, key, _ in self.rows if key in metrics}


def newest_checkpoint(folder: Path) -> str:
    """Find the newest ``last.ckpt`` of a recipe.

    Args:
        folder: Folder of the recipe's runs.

    Returns:
        Path of the checkpoint.

    Raises:
        ValueError: If there is none.
    """
    found = sorted(folder.glob("*/checkpoints/last*.ckpt"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise ValueError(
            f"ckpt_path='last': there is no */checkpoints/last.ckpt in {str(folder)!r}."
        )
    return str(found[-1])


def parse(
    model: type[LightningModule],
    name: str,
    max_epochs: int,
    args: list[str] | None = None,
    defaults: Mapping[str, Any] | None = None,
    cli: type[MonitoredCLI] = RecipeCLI,
    data: type[LightningDataModule] = ImageDataModule,
    closing: Callback | None = None,
) -> MonitoredCLI:
    """Parse the command line and build data, model and trainer from it.

    Args:
        model: The method.
        name: Its name, for the folder of its runs.
        max_epochs: Default number of epochs.
        args: Arguments, or None for those of the process.
        defaults: What the method asks of data and callbacks, by full name such as
            ``data.global_views``.
        cli: The command line, for a method that needs more than the others.
        data: The data module.
        closing: What prints the end of a run; by default a :class:`ClosingTable`.

    Returns:
        An object with ``model``, ``datamodule``, ``trainer`` and ``config``.
    """
    logger = {
        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
        "init_args": {"save_dir": "runs", "name": name, "default_hp_metric": False},
    }
    # Newer Lightnings have a `--ckpt_path` of their own, which clashes with ours.
    clash = "load_from_checkpoint_support"
    known = clash in inspect.signature(LightningCLI).parameters
    own_checkpoint_option = {clash: False} if known else {}
    return cli(
        model,
        data,
        trainer_defaults={
            "max_epochs": max_epochs,
            "logger": logger,
            "log_every_n_steps": 10,
            "callbacks": closing or ClosingTable(),
        },
        seed_everything_default=0,
        args=args,
        defaults=defaults or {},
        run=False,
        auto_configure_optimizers=False,
        **own_checkpoint_option,
    )


def train(run: MonitoredCLI) -> Trainer:
    """Train what a command line has built.

    Args:
        run: What :func:`parse` returned.

    Returns:
        The trainer after ``fit``.
    """
    # Methods that compare views have no loss of single held-out images; those are for the monitor.
    known = (".*many workers", ".*smaller than the logging interval", ".*have no `validation_step`")
    for message in known:
        warnings.filterwarnings("ignore", message)
    checkpoint = run.config["ckpt_path"]
    if checkpoint == "last":
        checkpoint = newest_checkpoint(Path(run.trainer.log_dir or "runs").parent)
    run.before_fit()
    run.trainer.fit(run.model, datamodule=run.datamodule, ckpt_path=checkpoint)
    return run.trainer
