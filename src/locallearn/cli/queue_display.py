"""A live display of a queue of cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from locallearn.cli.console import Terminal
from locallearn.cli.tables import accuracy_text
from locallearn.config import from_toml
from locallearn.experiments.queue import Job, Silent
from locallearn.experiments.results import read_record
from locallearn.report.compare import duration


class QueueDisplay(Silent):
    """A line for each cell that starts and ends, and on a terminal a bar of the epochs of those that run.

    Args:
        total: number of cells and seeds.
        finished: how many are finished already.
        quiet: show nothing.
    """

    def __init__(self, total: int, finished: int, quiet: bool = False) -> None:
        self._console = Terminal(stderr=True, quiet=quiet)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        off = quiet or not self._console.is_terminal
        self._progress = Progress(*columns, console=self._console, transient=True, disable=off)
        self._all = self._progress.add_task("cells", total=total, completed=finished)
        self._bars: dict[str, TaskID] = {}
        self._say(f"{finished} of {total} cells are finished already" if finished else f"{total} cells to train")

    def __enter__(self) -> QueueDisplay:
        self._progress.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._progress.stop()

    def on_start(self, job: Job) -> None:
        """A worker was started."""
        self._say(f"{job.name}: {'goes on' if (job.run / 'config.toml').is_file() else 'starts'}")

    def on_finish(self, job: Job, seconds: float) -> None:
        """A record is there."""
        accuracy = read_record(Path(job.request["record"]))["accuracy"]
        self._end(job)
        self._say(f"{job.name}: {accuracy_text(accuracy)} ({duration(seconds)})")

    def on_failure(self, job: Job, message: str) -> None:
        """A worker failed."""
        self._end(job)
        self._say(f"{job.name}: failed: {message}")

    def on_busy(self, job: Job, process: str) -> None:
        """Another queue's worker trains this job."""
        self._say(f"{job.name}: is being trained by process {process or 'of another queue'}")

    def on_tick(self, running: Sequence[Job]) -> None:
        """Move the bars."""
        for job in running if not self._progress.disable else ():
            if job.name not in self._bars and (job.run / "config.toml").is_file():
                epochs = from_toml((job.run / "config.toml").read_text(encoding="utf-8")).train.epochs
                self._bars[job.name] = self._progress.add_task(f"{job.name} [epochs]", total=epochs)
            if job.name in self._bars:
                self._progress.update(self._bars[job.name], completed=epochs_done(job.run))

    def _end(self, job: Job) -> None:
        if job.name in self._bars:
            self._progress.remove_task(self._bars.pop(job.name))
        self._progress.advance(self._all)

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True, markup=False)


def epochs_done(run: Path) -> int:
    """Epochs that a run has recorded."""
    path = run / "metrics.jsonl"
    return path.read_text(encoding="utf-8").count('"event": "train"') if path.is_file() else 0
