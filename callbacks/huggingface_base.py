"""What callbacks of Hugging Face's Trainer share: in goes a watch, out come its numbers, reactions and its story in checkpoints."""

from __future__ import annotations

import importlib
import pathlib
from collections.abc import Callable
from typing import Any

import torch

from jepa_monitor._checks import check_choice
from jepa_monitor.monitor.watch import Look, Watch

try:
    TrainerCallback: Any = importlib.import_module("transformers").TrainerCallback
except ImportError:  # an extra: said when it is asked for
    TrainerCallback = object

__all__ = ["WatchingTrainerCallback"]


class WatchingTrainerCallback(TrainerCallback):  # type: ignore[misc]
    """Logs the looks of a watch, does what an alarm is to do, and keeps the story of the run.

    Args:
        trainer: The Trainer.
        reaction: What an alarm does: ``"warn"``, ``"stop"``, or a function of the Trainer and the reading.
        name: What the reaction is called in errors.
        extra: What to install if transformers is missing.

    Raises:
        ImportError: If transformers is not installed.
        TypeError: If the reaction is of the wrong type.
        ValueError: If the reaction is another word.
    """

    file: str  # of the story, beside the model in each of the Trainer's checkpoints
    watch: Watch | None = None

    def __init__(
        self, trainer: Any, reaction: str | Callable[[Any, Any], Any], name: str, extra: str
    ) -> None:
        if TrainerCallback is object:
            raise ImportError(
                f'{type(self).__name__} needs transformers: pip install "jepa-monitor[{extra}]"'
            )
        if not callable(reaction):
            check_choice(reaction, name, ("warn", "stop"))
        self.trainer = trainer
        self._reaction = reaction

    @property
    def history(self) -> list[dict[str, float]]:
        """The scalars of all looks, each with its ``step``."""
        return [] if self.watch is None else self.watch.history

    def resume(self, args: Any, state: Any) -> None:
        """Go on with the story in the checkpoint that training goes on from, if there is one.

        Args:
            args: The Trainer's arguments.
            state: Its state.
        """
        assert self.watch is not None
        story = self._folder(args, state) / self.file
        if state.global_step and story.exists():
            self.watch.load_state_dict(torch.load(story, weights_only=True))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Put the story of the run into the checkpoint.

        Args:
            args: The Trainer's arguments.
            state: Its state.
            control: What it is to do.
            **_: What else it has.
        """
        folder = self._folder(args, state)
        if self.watch is not None and state.is_world_process_zero and folder.is_dir():
            torch.save(self.watch.state_dict(), folder / self.file)

    def report(self, look: Look, state: Any, control: Any) -> None:
        """Log a look, and react to an alarm that begins with it.

        Args:
            look: The look.
            state: The Trainer's state.
            control: What it is to do.
        """
        assert self.watch is not None
        due = control.should_log  # logging takes it for done
        self.trainer.log(dict(look.scalars))
        control.should_log = due
        if look.began is None:
            return
        if callable(self._reaction):
            self._reaction(self.trainer, look.began)
            return
        ending = ""
        if self._reaction == "stop":
            control.should_training_stop, ending = True, " Training stops."
        self.watch.say(
            f"{type(self).__name__} at step {state.global_step}: {look.began.reason}{ending}"
        )

    def _folder(self, args: Any, state: Any) -> pathlib.Path:
        return pathlib.Path(args.output_dir, f"checkpoint-{state.global_step}")
