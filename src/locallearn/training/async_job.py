"""What the process of one module is given in asynchronous training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from locallearn.config import RunConfig
from locallearn.data.datasets import Dataset


@dataclass(frozen=True)
class AsyncJob:
    """What a module's process is given.

    Attributes:
        config: the run's resolved configuration.
        dataset: its images, in shared memory.
        run: the run's folder.
        sockets: the folder of the boundaries' sockets.
        index: the module, counted from 0.
    """

    config: RunConfig
    dataset: Dataset
    run: Path
    sockets: Path
    index: int


def module_folder(run: Path, name: str) -> Path:
    """Where the process of a module keeps its checkpoints."""
    return run / "modules" / name
