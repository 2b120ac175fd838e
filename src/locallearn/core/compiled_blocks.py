"""The repeated blocks of a user's model under ``torch.compile``, while its stages train."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from locallearn.errors import ConfigError, UsageError
from locallearn.nn.pieces import Piece
from locallearn.nn.repeated import repeated_blocks


def compiled_graphs() -> int:
    """How many graphs ``torch.compile`` has made in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


class CompiledBlocks:
    """The blocks of a model, compiled when they first train; outside a training step they are as they were.

    Blocks of one class share a program where they are called alike, so that compiling takes as long for twelve as for
    one. After as many programs as ``torch._dynamo.config.recompile_limit`` for one class torch computes as without.

    Args:
        model: the model.
        pieces: its stages. A block that a stage ends in is left as it is.
        backend: of ``torch.compile``.

    Attributes:
        paths: of the blocks.
        warm_up: seconds of the first step, in which they were compiled; None before.
        graphs: that they were compiled to in it.

    Raises:
        ConfigError: the model has no repeated blocks, or a stage ends after a sum.
        UsageError: there is no C++ compiler, which programs for CPUs are compiled with.
    """

    def __init__(self, model: nn.Module, pieces: Sequence[Piece], backend: str) -> None:
        ends = [piece.path for piece in pieces[:-1]]
        self.paths = [path for path in repeated_blocks(model) if not any(e.startswith(f"{path}.") for e in ends)]
        if not self.paths:
            raise ConfigError("compile", True, "False for a model that repeats no block")
        if any(piece.summed for piece in pieces):
            raise ConfigError("compile", True, "False, or other cuts: one of these follows a sum")
        if backend == "inductor" and next(model.parameters()).device.type == "cpu":
            _check_compiler()
        self.backend = backend
        self.warm_up: float | None = None
        self.graphs = 0
        self._made = 0
        self._compiled: list[tuple[nn.Module, Callable[..., Any]]] = []
        self._model: nn.Module | None = None

    def __deepcopy__(self, memo: Any) -> CompiledBlocks:
        """For a copy of the network, whose blocks are compiled anew."""
        other = CompiledBlocks.__new__(CompiledBlocks)
        other.__dict__ |= self.__dict__ | {"warm_up": None, "graphs": 0, "_compiled": [], "_model": None}
        return other

    @property
    def recompiles(self) -> int:
        """Graphs that the process has compiled since the first step: for batches of other sizes, say."""
        return compiled_graphs() - self._made if self.warm_up is not None else 0

    @contextlib.contextmanager
    def used(self, model: nn.Module) -> Iterator[None]:
        """While it lasts the model's blocks are compiled ones; the first time a line says what it took."""
        if self._model is not model:
            self._model = model
            blocks = [model.get_submodule(path) for path in self.paths]
            self._compiled = [(block, torch.compile(block.forward, backend=self.backend)) for block in blocks]
        before, begin = compiled_graphs(), time.perf_counter()
        own = [block.__dict__.get("forward") for block, _ in self._compiled]
        for block, forward in self._compiled:
            block.forward = forward
        try:
            yield
        finally:
            for (block, _), forward in zip(self._compiled, own, strict=True):
                if forward is None:
                    del block.forward
                else:
                    block.forward = forward
        if self.warm_up is None:
            self.warm_up, self._made = time.perf_counter() - begin, compiled_graphs()
            self.graphs = self._made - before
            told = (
                f"{len(self.paths)} blocks compiled to {self.graphs} graphs in a first step of {self.warm_up:.1f} s"
            )
            print(f"locallearn: {told}", file=sys.stderr, flush=True)


def _check_compiler() -> None:
    wanted = [*filter(None, [os.environ.get("CXX", "").split(" ")[0]]), "g++", "clang++", "c++"]
    if not any(map(shutil.which, wanted)):
        raise UsageError("compile: True needs a C++ compiler on a CPU: neither CXX is set nor g++ installed")
