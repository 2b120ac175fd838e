"""Backpropagation of torch's own layers under ``torch.compile``: the strongest opponent on one device."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from locallearn.bench.group_loop import LoopNetwork
from locallearn.bench.step import Contender, Setting, step_config
from locallearn.core.assembly import build_network
from locallearn.core.compiled_blocks import compiled_graphs
from locallearn.errors import ConfigError, UsageError, one_line

LIMIT = 600.0
"""How long compiling may take [s]."""


@dataclass(frozen=True)
class Compiled(Contender):
    """A way to train that was compiled.

    Attributes:
        warm_up: seconds of the first step, in which it was compiled.
        graphs: that it was compiled to.
        made: graphs that the process had made by then.
        network: what was compiled; its ``step`` takes any batch of these sizes.
    """

    warm_up: float = 0.0
    graphs: int = 0
    made: int = 0
    network: LoopNetwork | None = None

    def facts(self) -> dict[str, float]:
        """Seconds of the first step, and how many graphs were compiled in it and after it."""
        return {
            "warm_up_seconds": self.warm_up,
            "graphs": self.graphs,
            "recompiles": compiled_graphs() - self.made,
        }


def compiled_backprop(
    model: str, setting: Setting, limit: float = LIMIT, backend: str | Callable[..., object] = "inductor"
) -> Compiled:
    """Backpropagation of the undivided network, of torch's layers, channels-last, compiled in a first step.

    Args:
        model: backbone.
        setting: batch, device and precision.
        limit: how long compiling may take [s].
        backend: of torch.compile, its name or a function.

    Raises:
        ConfigError: the network is no ResNet of basic blocks.
        UsageError: it cannot be compiled here, or not within ``limit`` seconds.
    """
    config = step_config(model, "e2e", 1, 1)
    batch = setting.batch()
    try:
        network = LoopNetwork(
            build_network(config, setting.image), config.objective, config.optimizer, setting.precision
        )
    except ConfigError as error:
        raise ConfigError("model", model, "a ResNet of basic blocks, with compiled backpropagation") from error
    torch.compiler.reset()
    for nodes in network.modules:
        for node in nodes:
            node.to(setting.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            node.compile(backend=backend)
            node.head.compile(backend=backend)
    before, begin = compiled_graphs(), time.perf_counter()
    try:
        with _within(limit):
            network.step(batch)
    except _TooLongError:
        raise UsageError(f"torch.compile: {model} was not compiled within {limit:g} s") from None
    except Exception as error:
        raise UsageError(f"torch.compile: {type(error).__name__}: {one_line(error)[:300]}") from error
    warm_up, made = time.perf_counter() - begin, compiled_graphs()
    return Compiled(lambda: network.step(batch), network.parameters(), 1, warm_up, made - before, made, network)


class _TooLongError(BaseException):
    """No handler of ordinary exceptions is to take it for a failure of its own."""


@contextlib.contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Leave the block when the time is over, where there are such signals.

    What a destructor or a callback of C code raises is lost, so it rings every second, and the
    end looks whether it rang.
    """
    if not hasattr(signal, "setitimer"):
        yield
        return
    rang = False

    def over(*_: object) -> None:
        nonlocal rang
        rang = True
        raise _TooLongError

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    if rang:
        raise _TooLongError
