"""The record of a run: config.toml, metrics.jsonl (one event a line), summary.json, TensorBoard events."""

from __future__ import annotations

import datetime
import functools
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from locallearn import plugins
from locallearn.config import RunConfig, from_toml, to_toml
from locallearn.errors import UsageError
from locallearn.files import write_atomically


def now() -> str:
    """The time, in UTC, as ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


class RunFolder:
    """The files of one run.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._tensorboard: Any = None

    def check_free(self, overwrite: bool) -> None:
        """Make sure that a new run may go here.

        Raises:
            UsageError: there is something in it, and ``overwrite`` was not asked for or it is not a run.
        """
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return
        if not overwrite:
            raise UsageError(
                f"--run: {self.path} is there already; continue it with --resume {self.path}, "
                "replace it with --overwrite, or name another folder"
            )
        if not (self.path / "config.toml").is_file():
            raise UsageError(f"--overwrite: {self.path} is not a run (it has no config.toml), so it is not replaced")

    def create(self, config: RunConfig, overwrite: bool = False) -> None:
        """Make the folder and write the configuration; a run that is to be overwritten goes only now.

        Raises:
            UsageError: as :meth:`check_free`, or the folder cannot be made.
        """
        self.check_free(overwrite)
        try:
            if overwrite and self.path.exists():
                shutil.rmtree(self.path)
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--run: {self.path} cannot be made: {error.strerror}") from None
        write_atomically(self.path / "config.toml", to_toml(config))

    def config(self) -> RunConfig:
        """The run's configuration; its plugins are loaded.

        Raises:
            UsageError: the folder is not a run, or a plugin is not there.
        """
        path = self.path / "config.toml"
        if not path.is_file():
            raise UsageError(f"{self.path} is not a run folder: it has no config.toml")
        config = from_toml(path.read_text(encoding="utf-8"))
        plugins.load_of_run(config.plugins, self.path)
        return config

    def append(self, event: dict[str, Any]) -> None:
        """Add an event to metrics.jsonl, and its figures to TensorBoard where that is installed."""
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")
        scalars = _scalars(event)
        if scalars and self._tensorboard is None:
            self._tensorboard = _tensorboard_writer(self.path / "tensorboard", event["step"])
        if scalars and self._tensorboard:
            for name, value in scalars:
                self._tensorboard.add_scalar(name, value, event["step"])
            self._tensorboard.flush()

    def events(self) -> list[dict[str, Any]]:
        """The events of metrics.jsonl, as :meth:`rewind` left it."""
        path = self.path / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []

    def rewind(self, step: int) -> None:
        """Drop events after ``step``, and a line that was cut off, so that a resumed run repeats none."""
        path = self.path / "metrics.jsonl"
        if not path.is_file():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError):
                continue
        write_atomically(path, "".join(line + "\n" for line in kept))

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json."""
        write_atomically(self.path / "summary.json", json.dumps(summary, indent=2) + "\n")

    def summary(self) -> dict[str, Any] | None:
        """What summary.json holds, or None where the run has not ended."""
        path = self.path / "summary.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _scalars(event: dict[str, Any]) -> list[tuple[str, float]]:
    """(name, value) of every figure in a train or evaluate event."""
    if event["event"] not in ("train", "evaluate"):
        return []
    prefix = event["event"]
    scalars = [(f"{prefix}/{key}", value) for key, value in event.items() if isinstance(value, float)]
    for node in event["nodes"]:
        place = f"module {node['module']}, group {node['group']}"
        scalars += [(f"{prefix} {key}/{place}", node[key]) for key in ("loss", "accuracy") if key in node]
    return scalars


def _tensorboard_writer(folder: Path, step: int) -> Any:
    """A writer that replaces what an interrupted run wrote from ``step`` on; False without TensorBoard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return False
    return SummaryWriter(str(folder), purge_step=step)


def hardware(device: str) -> dict[str, Any]:
    """What the machine is, for records: no host name, no paths."""
    import torch

    from locallearn.nn.native import build

    facts: dict[str, Any] = {
        "device": device,
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "kernels": str(build.kernels()) if device == "cpu" else "torch",
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        facts["memory_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if device.startswith("cuda"):
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions that a figure depends on."""
    import torch

    return {
        "locallearn": metadata.version("locallearn"),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


@functools.cache
def commit() -> str | None:
    """The commit of the checkout that this package lies in, with ``-dirty`` where files differ; None elsewhere."""
    folder = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if not git("ls-files", str(Path(__file__).resolve())):
            return None  # installed inside somebody else's repository
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", str(folder)) else "")
    except (OSError, subprocess.SubprocessError):
        return None


def peak_rss_bytes() -> int:
    """The most memory that this process has held so far [bytes]."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
