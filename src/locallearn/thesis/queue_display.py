"""A live display of a queue of cells, and the list of its cells."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from locallearn.cli.console import Terminal
from locallearn.cli.tables import accuracy_text
from locallearn.config import RunConfig
from locallearn.lock import is_held
from locallearn.report.compare import duration
from locallearn.thesis.cell_records import read_record
from locallearn.thesis.estimate import Estimates, epoch_seconds
from locallearn.thesis.protocols import Study
from locallearn.thesis.queue import CellJob, Silent

_EVERY = 1.0
"""Seconds between two looks at the runs."""


class QueueDisplay(Silent):
    """A line for each cell that starts and ends and each of its epochs, and on a terminal bars of those that run.

    Args:
        total: number of cells and seeds.
        finished: how many are finished already.
        estimates: tell how long cells will take.
        quiet: show nothing.
    """

    def __init__(self, total: int, finished: int, estimates: Estimates, quiet: bool = False) -> None:
        self._console = Terminal(stderr=True, quiet=quiet)
        self._estimates = estimates
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
        self._epochs: dict[str, int] = {}
        self._looked = 0.0
        self._say(f"{finished} of {total} cells are finished already" if finished else f"{total} cells to train")

    def __enter__(self) -> QueueDisplay:
        self._progress.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._progress.stop()

    def on_start(self, job: CellJob) -> None:
        """A worker was started."""
        config, done = config_of(job), len(epoch_seconds(job.run))
        self._epochs[job.name] = done
        self._bars[job.name] = self._progress.add_task(
            f"{job.name} [epochs]", total=config.train.epochs, completed=done
        )
        place = f"goes on after epoch {done} of {config.train.epochs}" if done else "starts"
        self._say(f"{job.name}: {place}{self._left(job)}")

    def on_finish(self, job: CellJob, seconds: float) -> None:
        """A record is there."""
        accuracy = read_record(Path(job.request["record"]))["accuracy"]
        self._end(job)
        self._say(f"{job.name}: {accuracy_text(accuracy)} ({duration(seconds)})")

    def on_failure(self, job: CellJob, message: str) -> None:
        """A worker failed."""
        self._end(job)
        self._say(f"{job.name}: failed: {message}")

    def on_busy(self, job: CellJob, process: str) -> None:
        """Another queue's worker trains this job."""
        self._say(f"{job.name}: is being trained by process {process or 'of another queue'}")

    def on_tick(self, running: Sequence[CellJob]) -> None:
        """Look whether an epoch has ended, about once a second."""
        if time.monotonic() - self._looked < _EVERY:
            return
        self._looked = time.monotonic()
        for job in running:
            done = epoch_seconds(job.run)
            if len(done) > self._epochs[job.name]:
                self._epochs[job.name] = len(done)
                self._progress.update(self._bars[job.name], completed=len(done))
                of = f"epoch {len(done)} of {config_of(job).train.epochs}"
                self._say(f"{job.name}: {of} ({duration(done[-1])}{self._left(job)})")

    def _left(self, job: CellJob) -> str:
        seconds = self._estimates.seconds_left(job.run, config_of(job))
        return "" if seconds is None else f", about {duration(seconds)} left"

    def _end(self, job: CellJob) -> None:
        if job.name in self._bars:
            self._progress.remove_task(self._bars.pop(job.name))
        self._progress.advance(self._all)

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True, markup=False)


def config_of(job: CellJob) -> RunConfig:
    """What a job of ``reproduce`` trains."""
    return Study(**job.request["study"]).config(job.request["cell"], job.request["seed"])


def print_list(jobs: Sequence[CellJob], estimates: Estimates, as_json: bool) -> int:
    """Show how far jobs are and how long they need still, as a table or as JSON; return the exit code."""
    states = [_state(job, estimates) for job in jobs]
    if as_json:
        print(json.dumps(states, indent=2))
        return 0
    table = Table(title=f"{len(jobs)} cells in the order of the queue")
    for heading in ("cell", "seed", "state", "time left"):
        table.add_column(heading)
    for state in states:
        table.add_row(state["cell"], str(state["seed"]), state["state"], duration(state["seconds_left"]))
    Terminal().print(table)
    left = [state["seconds_left"] for state in states]
    if None not in left and sum(left):
        Terminal().print(f"about {duration(sum(left))} left for one cell at a time")
    return 0


def _state(job: CellJob, estimates: Estimates) -> dict[str, Any]:
    """How far a job is, in words, and the time that its training needs still [s], where that can be told."""
    config, done = config_of(job), len(epoch_seconds(job.run))
    if job.is_finished():
        state, left = "finished", 0.0
    else:
        state = f"{done} of {config.train.epochs} epochs done" if done else "started" if job.run.exists() else ""
        left = estimates.seconds_left(job.run, config)
        if is_held(job.beside(".lock")):
            state = f"being trained, {state}" if done else "being trained"
    return {
        **{key: job.request[key] for key in ("cell", "seed")},
        "state": state or "not started",
        "seconds_left": left,
    }
