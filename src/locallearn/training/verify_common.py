"""What the checks of ``locallearn verify`` have in common."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes

from locallearn.errors import LocalLearnError
from locallearn.files import short_temporary_folder
from locallearn.runtime.launch import open_store, rank_environment
from locallearn.runtime.parent import end_with
from locallearn.runtime.preloaded import with_imports
from locallearn.training.checkpoint import CheckpointFolder
from locallearn.training.observer import Quiet
from locallearn.training.record import RunFolder


@dataclass(frozen=True)
class Check:
    """What one check found.

    Attributes:
        name: what should hold.
        passed: whether it does.
        difference: the largest absolute difference that should be 0; None where it could not be measured.
        detail: what was compared, as one line.
    """

    name: str
    passed: bool
    difference: float | None
    detail: str


class KilledError(Exception):
    """Training was ended as a kill does."""


class KillAt(Quiet):
    """Ends training in a step, as a kill does: nothing is written on the way out."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, step: int) -> None:
        """Raise at that step."""
        if step == self.step:
            raise KilledError


def in_processes(count: int, threads: int, work: Callable[[], Any]) -> None:
    """Do the same work in so many processes that find each other, with so many CPU threads each.

    Raises:
        LocalLearnError: one of them failed.
    """
    short_temporary_folder()
    start_method = with_imports(__name__, "torch._dynamo").get_start_method()
    store, given = open_store(), (count, threads, dict(os.environ), work)
    try:
        start_processes(_rank, (store.port, *given), count, start_method=start_method)  # ends all once one fails
    except (ProcessRaisedException, ProcessExitedException) as error:
        reason = str(error).strip().splitlines()[-1]
        raise LocalLearnError(f"process {error.error_index} of {count}: {reason}") from None


def _rank(
    rank: int, port: int, count: int, threads: int, environment: dict[str, str], work: Callable[[], Any]
) -> None:
    end_with(os.getppid())
    os.environ.clear()  # of the process that was copied, which may have been started long ago
    os.environ |= environment | rank_environment(rank, count, port)
    torch.set_num_threads(threads)
    work()


def newest(path: Path) -> dict[str, Tensor]:
    """Weights and optimizer state of a run's newest checkpoint."""
    _, found, _ = CheckpointFolder(RunFolder(path).checkpoints, 1).newest()
    assert found is not None
    return {key: value for key, value in found.tensors.items() if not key.startswith("sums/")}


def equal(name: str, detail: str, a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 0.0) -> Check:
    """Whether the same tensors are there, bit for bit or within a share of each one's largest value."""
    if a.keys() != b.keys():
        first = sorted(a.keys() ^ b.keys())[0]
        return Check(name, False, None, f"{first} is in one of them only")
    difference = max((a[key].double() - b[key].double()).abs().max().item() for key in a if a[key].numel())
    return Check(name, all(_close(a[key], b[key], tolerance) for key in a), difference, detail)


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    if not tolerance:
        return torch.equal(a, b)
    allowed = tolerance * max(a.double().abs().max().item(), 1e-3)
    return (a.double() - b.double()).abs().max().item() <= allowed
