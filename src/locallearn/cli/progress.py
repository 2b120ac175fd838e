"""A live display of a training."""

from __future__ import annotations

from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from locallearn.cli.console import Terminal, warn
from locallearn.cli.tables import accuracy_text
from locallearn.config import RunConfig
from locallearn.errors import printable
from locallearn.recipes.batch_size import FEW_STEPS, fitted


class LiveProgress:
    """Shows a bar of the steps and a line an epoch; an observer of ``locallearn.training.loop``.

    Args:
        quiet: show warnings only.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._console = Terminal(stderr=True, quiet=quiet)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=quiet or not self._console.is_terminal,  # a log file gets the lines, not the bar
        )
        self._task: TaskID | None = None
        self._epochs = 0
        self._train: dict[str, Any] = {}

    def __enter__(self) -> LiveProgress:
        return self  # the bar starts with the training: before it, an error is one line and nothing else

    def __exit__(self, *exception: Any) -> None:
        self._progress.stop()

    def on_start(self, config: RunConfig, steps_per_epoch: int, epochs: int, step: int) -> None:
        """Show what is trained and start its bar."""
        self._epochs = epochs
        groups = "/".join(str(g) for g in config.groups) if len(set(config.groups)) > 1 else str(config.groups[0])
        name = printable(f"{config.method} {config.model} on {config.data.name}, K={config.depth} G={groups}")
        if self._task is not None:
            self._progress.remove_task(self._task)
        place = f", seed {config.seed}, {config.train.device}, {config.train.precision}"
        self._console.print(Text(name, style="bold") + Text(place + (f", from step {step}" if step else "")))
        if steps_per_epoch < FEW_STEPS and not step:
            self._advise(config, steps_per_epoch)
        self._progress.start()
        self._task = self._progress.add_task(name, total=steps_per_epoch * self._epochs, completed=step)

    def _advise(self, config: RunConfig, steps: int) -> None:
        """Say what to change where an epoch has so few steps that little is learnt in it."""
        images = steps * config.train.batch_size
        better = fitted(config, images)
        if better != config:
            self._console.print(
                f"an epoch has {steps} steps only; --batch-size {better.train.batch_size} "
                f"--lr {better.optimizer.learning_rate:.3g} makes about {images // better.train.batch_size} of it",
                highlight=False,
            )

    def on_step(self, step: int) -> None:
        """Move the bar."""
        if self._task is not None:
            self._progress.update(self._task, completed=step)

    def on_event(self, event: dict[str, Any]) -> None:
        """Print a line after an epoch's evaluation (or after the epoch, where there is none)."""
        if event["event"] == "train":
            self._train = event
            losses = [node["loss"] for node in event["nodes"]]
            self._console.print(
                f"epoch {event['epoch']:>3}/{self._epochs}  train loss of first and last node "
                f"{losses[0]:.3f} {losses[-1]:.3f}  {event['images_per_second']:,.0f} images/s",
                highlight=False,
            )
        elif event["event"] == "evaluate" and "last_layer" in event:
            held = (event.get("validation") or {}).get("last_layer")
            told = "" if held is None else f"; held out {held:.2%}"
            self._console.print(f"        test: {accuracy_text(event)}{told}", highlight=False)
        elif event["event"] == "evaluate":  # of the modules so far, where one is trained after the other
            found = [node["accuracy"] for node in event["nodes"] if "accuracy" in node]
            if found:
                self._console.print(
                    f"        test: module {event['module']}, best node {max(found):.2%}", highlight=False
                )

    def on_warning(self, message: str) -> None:
        """Print a warning."""
        warn(message)
