"""The record of a run: config.toml, metrics.jsonl (one event a line), summary.json, and what loggers are told."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from locallearn import lock, plugins
from locallearn.config import RunConfig, from_toml, to_toml
from locallearn.errors import ConfigError, UsageError
from locallearn.files import cannot_write, make_folder, remove, sweep, write_atomically
from locallearn.training.events import DamagedRecordError, read_events, read_summary
from locallearn.training.history import History
from locallearn.training.loggers import Loggers

_UNBORN = re.compile(r"\.lock|\.config\.toml\.[0-9-]+\.tmp|\.shared-[0-9a-f]+\.tmp")
"""What a run that was killed before it began leaves in its folder."""


def now() -> str:
    """The time, in UTC, as ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


SPLIT = "split"
"""The method of runs whose network is a user's own."""


class RunFolder:
    """The files of one run.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._loggers: Loggers | None = None
        self._lock: IO[str] | None = None

    def check_free(self, overwrite: bool) -> None:
        """Make sure that a new run may go here.

        Raises:
            UsageError: there is something in it, and ``overwrite`` was not asked for, it is not a run, or a process
                trains it.
        """
        if self.is_free():
            return
        if not overwrite:
            raise UsageError(
                f"--run: {self.path} is there already; continue it with --resume {self.path}, "
                "replace it with --overwrite, or name another folder"
            )
        if not (self.path / "config.toml").is_file():
            raise UsageError(f"--overwrite: {self.path} is not a run (it has no config.toml), so it is not replaced")
        self.check_idle()

    def is_free(self) -> bool:
        """Whether there is no folder, or one that holds only what a run that never began left there."""
        try:
            if not self.path.exists():
                return True
            return self.path.is_dir() and all(_UNBORN.fullmatch(path.name) for path in self.path.iterdir())
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def check_idle(self) -> None:
        """Make sure that no process trains this run now.

        Raises:
            UsageError: one does; the message names it.
        """
        path = lock.run_lock(self.path)
        try:
            held = lock.is_held(path)
        except OSError as error:
            raise cannot_write(path, error) from None
        if held:
            raise UsageError(f"{self.path} is being trained by process {lock.holder(path)}; stop that one first")

    def claim(self) -> None:
        """Make the folder, and let no other process train it until ``release``, or until this one has ended.

        Raises:
            UsageError: another process trains it, or the folder cannot be made.
            DiskError: the disk is full or broken.
        """
        make_folder(self.path)
        try:
            self._lock = lock.acquire_run(self.path)
        except OSError as error:
            raise cannot_write(lock.run_lock(self.path), error) from None
        if self._lock is None:
            self.check_idle()
            raise UsageError(f"{self.path} is being trained by another process")
        sweep(self.path)

    def release(self) -> None:
        """Let other processes train it."""
        if self._lock is not None:
            lock.release(self._lock)
            self._lock = None

    def create(self, config: RunConfig, overwrite: bool = False) -> None:
        """Make the folder and write the configuration; a run that is to be overwritten goes only now.

        The old configuration stays until the new one takes its place, so that what a kill leaves is a run.

        Raises:
            UsageError: as ``check_free``, or the folder cannot be made.
            DiskError: the disk is full or broken.
        """
        if self._lock is None:
            self.check_free(overwrite)
            make_folder(self.path)
        elif not self.is_free() and not overwrite:
            raise UsageError(f"--run: {self.path} is there already")
        for path in [path for path in self.path.iterdir() if path.name not in ("config.toml", ".lock")]:
            remove(path)
        write_atomically(self.path / "config.toml", to_toml(config))

    def config(self) -> RunConfig:
        """The run's configuration; its plugins are loaded.

        Raises:
            UsageError: the folder is not a run, its configuration is damaged, or a plugin is not there.
        """
        path = self.path / "config.toml"
        try:
            text = path.read_text(encoding="utf-8", errors="surrogateescape") if path.is_file() else None
        except OSError as error:
            raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
        if text is None:
            raise UsageError(f"{self.path} is not a run folder: it has no config.toml")
        try:
            config = from_toml(text)
        except ConfigError as error:
            raise UsageError(f"{path}: {error}") from None
        plugins.load_of(config.plugins, str(self.path))
        return config

    def built_config(self) -> RunConfig:
        """The configuration of a run whose network and images it describes completely.

        Raises:
            UsageError: as ``config``; or the run is a Trainer's, whose network and loader are the user's own.
        """
        config = self.config()
        if config.method == SPLIT:
            raise UsageError(
                f"{self.path} is the run of an ll.Trainer in Python: its model and loader are not in the folder; "
                f"continue it with a Trainer of run={str(self.path)!r}, or load it with "
                f"ll.load_run(network, {str(self.path)!r})"
            )
        return config

    def change(self, config: RunConfig) -> None:
        """Write another configuration in the place of this run's, which then has no summary until it ends again."""
        write_atomically(self.path / "config.toml", to_toml(config))
        (self.path / "summary.json").unlink(missing_ok=True)

    def history(self) -> History:
        """The configurations that it had before."""
        return History(self.path / "history.json")

    def append(self, event: dict[str, Any]) -> None:
        """Add an event to metrics.jsonl, and tell the loggers that ``logging_to`` opened.

        Raises:
            DiskError: the disk is full or broken.
        """
        path = self.path / "metrics.jsonl"
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(event) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(path, error) from None
        if self._loggers is not None:
            self._loggers.on_event(event)

    @contextlib.contextmanager
    def logging_to(self, loggers: Loggers) -> Iterator[None]:
        """Tell these loggers of every event while it lasts, and close them then."""
        self._loggers = loggers
        try:
            yield
        finally:
            self._loggers = None
            loggers.close()

    def events(self) -> list[dict[str, Any]]:
        """The events of metrics.jsonl, without what is damaged."""
        return [line.event for line in read_events(self.path / "metrics.jsonl") if line.event is not None]

    def rewind(self, step: int) -> list[str]:
        """Drop events after ``step``, and what is damaged, so that a resumed run repeats none.

        Returns:
            A line for each damaged one; that a kill cut the last one short is nothing to tell.
        """
        path = self.path / "metrics.jsonl"
        lines = read_events(path)
        kept = [line.text for line in lines if line.event is not None and line.event["step"] <= step]
        if len(kept) < len(lines):
            write_atomically(path, "".join(text + "\n" for text in kept))
        damaged = [line for line in lines if line.event is None and not line.cut_short]
        return [f"{path} line {line.number} is damaged and left out ({line.problem})" for line in damaged]

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json."""
        write_atomically(self.path / "summary.json", json.dumps(summary, indent=2) + "\n")

    def summary(self) -> dict[str, Any] | None:
        """What summary.json holds, or None where the run has not ended.

        Raises:
            DamagedRecordError: it is no summary.
        """
        return read_summary(self.path / "summary.json")

    def usable_summary(self, warn: Callable[[str], None]) -> dict[str, Any] | None:
        """The same for who goes on with the run: a damaged one is warned of, and is none."""
        try:
            return self.summary()
        except DamagedRecordError as error:
            warn(f"{error}; it is written anew")
            return None
