"""Time and memory of a step of a user's own model, in every way to train it, each in a process of its own."""

from __future__ import annotations

import ctypes
import resource
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from locallearn.bench.step import Contender
from locallearn.bench.timing import Timing, ratio
from locallearn.bench.user_model import load
from locallearn.bench.ways import Way
from locallearn.cli.named_models import Inputs
from locallearn.core.compiled_blocks import compiled_graphs
from locallearn.errors import LocalLearnError, UsageError, one_line
from locallearn.runtime.preloaded import with_imports

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class ModelJob:
    """What is the same for every way.

    Attributes:
        model: name of the model, as ``load`` takes it.
        inputs: of its batches.
        device: where.
        threads: CPU threads.
        repeats: turns; 0 times nothing and measures no peak of the process.
        limit: how long a way may take to build and warm up [s]; one that takes longer is left out, with a line.
    """

    model: str
    inputs: Inputs
    device: str
    threads: int
    repeats: int
    limit: float


def bench_model(
    job: ModelJob, ways: Sequence[Way], told: Callable[[str], None] = lambda _: None
) -> list[dict[str, Any]]:
    """Measure every way, the first of which the others are compared with.

    The processes of the first way and of one other are alive at a time, and train one step in turn.

    Args:
        job: model and setting.
        ways: plain backpropagation, then what to compare with it.
        told: is given a line before every way.

    Returns:
        A row a way: ``name``, ``activation_bytes``, ``memory`` (over the first way's); where timed ``seconds`` (a
        step, median), ``spread``, ``time`` (over the first way's, median over turns), ``resident_bytes`` (peak of
        the process in a step, weights and optimizer included; on a GPU what torch held of its memory), ``resident``
        (over the first way's) and ``warm_up_seconds`` (the first step); of a compiled model ``graphs`` and
        ``recompiles``, those compiled after the first step. A way that fails has ``error``.

    Raises:
        LocalLearnError: the first way fails.
    """
    told(ways[0].name)
    first = _Process(job, ways[0])
    try:
        rows = [first.facts]
        against: Timing | None = None
        for way in ways[1:]:
            told(way.name)
            try:
                other = _Process(job, way)
            except LocalLearnError as error:
                rows.append({"name": way.name, "error": one_line(error)})
                continue
            with other:
                seconds = [(first.step(), other.step()) for _ in range(job.repeats)]
                row = other.end()
            if job.repeats:
                against, own = (Timing(tuple(column)) for column in zip(*seconds, strict=True))
                row |= {"seconds": own.median, "spread": own.spread, "time": ratio(own, against)}
            rows.append(row)
        if job.repeats and against is None:
            against = Timing(tuple(first.step() for _ in range(job.repeats)))
        if against is not None:
            rows[0] |= {"seconds": against.median, "spread": against.spread, "time": 1.0}
    finally:
        first.close()
    for row in rows:
        for name, over in (("activation_bytes", "memory"), ("resident_bytes", "resident")):
            if name in row:
                row[over] = row[name] / rows[0][name]
    return rows


class _Process:
    """A process that trains in one way, one step at a word.

    Raises:
        LocalLearnError: the model cannot be trained in this way, or not in time.
    """

    def __init__(self, job: ModelJob, way: Way) -> None:
        context = _context(job.model)
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=train, args=(theirs, job, way), daemon=True)
        self._process.start()
        theirs.close()
        try:
            if not self._connection.poll(job.limit):
                raise UsageError(f"not built and warmed up within {job.limit:g} s")
            self.facts = self._read()
        except BaseException:
            self.close()
            raise

    def step(self) -> float:
        """Train one step; how long it took [s]."""
        self._connection.send("step")
        return float(self._read())

    def end(self) -> dict[str, Any]:
        """What the process found out about its way."""
        self._connection.send("facts")
        self.facts = self._read()
        return self.facts

    def _read(self) -> Any:
        try:
            kind, value = self._connection.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            raise LocalLearnError(
                f"the process ended with code {code}" + " (out of memory?)" * (code == -9)
            ) from None
        if kind == "error":
            raise UsageError(value)
        return value

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _context(model: str) -> Any:
    """Processes that start with what the model needs imported already, where there are such."""
    of_models = ["transformers.models.auto.modeling_auto", "transformers.modeling_utils"]
    return with_imports("locallearn.bench.model", *(of_models if model.startswith("hf:") else []))


def train(connection: Connection, job: ModelJob, way: Way) -> None:
    """Train in one way until nobody asks for more; what the process runs."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(job.threads)
    device = torch.device(job.device)
    try:
        model, batch = load(job.model, job.inputs)
        model.to(device)
        batch = tree_map_only(torch.Tensor, lambda x: x.to(device), batch)
        contender = way.build(model, batch)
        del model
        facts = _facts(contender, way, job, device)
    except LocalLearnError as error:
        connection.send(("error", one_line(error)))
        return
    except Exception as error:
        connection.send(("error", f"{type(error).__name__}: {one_line(error)[:300]}"))
        return
    connection.send(("facts", facts))
    try:
        while True:
            if connection.recv() == "step":
                connection.send(("seconds", contender.seconds(partial(_wait, device))))
            else:
                connection.send(("facts", facts | _recompiled(way, facts)))
    except (EOFError, OSError):  # the one who asks has closed the connection
        return


def _facts(contender: Contender, way: Way, job: ModelJob, device: torch.device) -> dict[str, Any]:
    facts: dict[str, Any] = {"name": way.name}
    if job.repeats:
        facts["warm_up_seconds"] = Contender.seconds(contender, partial(_wait, device))
        if way.compiled:
            facts["graphs"] = compiled_graphs()
    facts["activation_bytes"] = contender.peak_bytes()
    if job.repeats:
        facts["resident_bytes"] = _peak_of(contender, device)
    return facts


def _recompiled(way: Way, facts: dict[str, Any]) -> dict[str, int]:
    return {"recompiles": compiled_graphs() - facts["graphs"]} if way.compiled and "graphs" in facts else {}


def _peak_of(contender: Contender, device: torch.device) -> int:
    """Peak memory in two steps or more [bytes]: of the process, without what building the model took; a GPU's own."""

    def steps() -> None:
        for _ in range(1 if contender.steps > 1 else 2):
            contender.step()

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        steps()
        return torch.cuda.max_memory_allocated(device)
    try:
        ctypes.CDLL(None).malloc_trim(0)
        _CLEAR.write_text("5")
        steps()
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    except (OSError, AttributeError, StopIteration):  # not Linux: of the process's whole life
        steps()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
