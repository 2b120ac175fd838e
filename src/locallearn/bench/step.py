"""Training steps of K x G networks against a loop over groups and against backpropagation, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from locallearn.bench.cells import HEAD
from locallearn.bench.group_loop import LoopNetwork
from locallearn.bench.timing import Timing, interleaved, ratio
from locallearn.config import ObjectiveConfig, OptimizerConfig, RunConfig
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.core.local_step import LocalStep
from locallearn.core.network import LocalNetwork
from locallearn.costs.memory import ActivationMeter
from locallearn.costs.nodes import cost
from locallearn.data.store import Batch
from locallearn.nn.heads import heads
from locallearn.runtime.inline import InlineRuntime
from locallearn.runtime.threads import ThreadsRuntime
from locallearn.training.optim import build_optimizer

_OPTIMIZER = OptimizerConfig(learning_rate=0.01)


@dataclass(frozen=True)
class Setting:
    """What is the same for everything that is timed.

    Attributes:
        image: channels and side [pixels] of the images, and the number of classes.
        batch_size: images a step.
        device: where.
        precision: ``"fp32"`` or ``"bf16"``.
        repeats: measurements of each thing.
        threads: CPU threads; None leaves torch's choice.
    """

    image: ImageShape
    batch_size: int
    device: torch.device
    precision: str
    repeats: int
    threads: int | None = None

    def batch(self, memory_format: torch.memory_format = torch.channels_last) -> Batch:
        """Random images and labels, the same at every call."""
        draw = torch.Generator().manual_seed(0)
        shape = (self.batch_size, *self.image.sizes)
        images = torch.rand(shape, generator=draw).to(self.device, memory_format=memory_format)
        labels = torch.randint(self.image.classes, (self.batch_size,), generator=draw).to(self.device)
        return Batch(images, labels, images, 0)

    def network(self, config: RunConfig) -> LocalNetwork:
        """The network of a configuration, on the device, channels-last."""
        network = build_network(config, self.image).to(self.device)
        return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@dataclass(frozen=True)
class Contender:
    """One way to train.

    Attributes:
        step: is called again and again.
        parameters: what it trains.
        steps: training steps of one call.
    """

    step: Callable[[], object]
    parameters: Sequence[torch.nn.Parameter]
    steps: int = 1

    def seconds(self, wait: Callable[[], None]) -> float:
        """How long a step takes [s].

        Args:
            wait: returns when the device has done what it was given.
        """
        begin = time.perf_counter()
        self.step()
        wait()
        return (time.perf_counter() - begin) / self.steps

    def peak_bytes(self) -> int:
        """Peak of what autograd keeps for the backward pass during one step."""
        with ActivationMeter(self.parameters) as meter:
            self.step()
        return meter.peak_bytes


class OnThreads(Contender):
    """Modules that train at the same time, some steps a call: a single step would be half of it filling up.

    Args:
        runtime: trains them.
        parameters: theirs.
        batch: makes the batch of a step.
        steps: of a call.
    """

    def __init__(
        self,
        runtime: ThreadsRuntime,
        parameters: Sequence[torch.nn.Parameter],
        batch: Callable[[], Batch],
        steps: int = 12,
    ) -> None:
        super().__init__(self._train, parameters, steps)
        self.runtime, self.batch = runtime, batch

    def _train(self) -> None:
        with self.runtime:
            for i in range(self.steps):
                self.runtime.step(self.batch(), i)
            self.runtime.settle()

    def seconds(self, wait: Callable[[], None]) -> float:
        """How long a step takes once the modules are busy [s], which a training is but for the ends of its epochs."""
        lead = self.runtime.at_once + 1
        begin = 0.0
        with self.runtime:
            for i in range(lead + self.steps):
                if i == lead:  # one batch has been through all modules
                    begin = time.perf_counter()
                self.runtime.step(self.batch(), i)
            wait()
            took = time.perf_counter() - begin
            self.runtime.settle()
        return took / self.steps

    def peak_bytes(self) -> int:
        """Peaks of as many of the largest modules as train at the same time, together."""
        with self.runtime:
            return self.runtime.weighed_step(self.batch(), 0, None, False, self.parameters)[1]


def local(config: RunConfig, setting: Setting, runtime: str = "inline") -> Contender:
    """The package's own step, as ``train`` runs it inline or on threads."""
    network, batch = setting.network(config), setting.batch()
    optimizers = [build_optimizer(config.optimizer, m.parameters(), m.groups) for m in network]
    steps = [LocalStep(m, each, setting.precision) for m, each in zip(network, optimizers, strict=True)]
    parameters = list(network.parameters())
    if runtime == "threads":
        threads = torch.get_num_threads()
        return OnThreads(ThreadsRuntime(steps, threads, threads), parameters, lambda: batch)
    inline = InlineRuntime(steps)
    return Contender(lambda: inline.step(batch, 0), parameters)


def loop(config: RunConfig, setting: Setting, precision: str) -> Contender:
    """A Python loop over groups (``locallearn.bench.group_loop``), in torch's default memory format."""
    batch = setting.batch(torch.contiguous_format)
    network = LoopNetwork(build_network(config, setting.image), config.objective, config.optimizer, precision)
    network.to(setting.device)
    return Contender(lambda: network.step(batch), network.parameters())


def step_config(model: str, method: str, depth: int, width: int, head: str = HEAD) -> RunConfig:
    """The network of a cell."""
    objective = ObjectiveConfig(head=head)
    return RunConfig(
        method=method, model=model, depth=depth, width=(width,), objective=objective, optimizer=_OPTIMIZER
    )


def bench_step(
    model: str,
    method: str,
    depth: int,
    width: int,
    runtimes: Sequence[str],
    baselines: Sequence[str],
    setting: Setting,
    head: str = HEAD,
) -> list[dict[str, Any]]:
    """Time one cell's step on every runtime, in turns with its baselines.

    Args:
        model: backbone.
        method: method of the cell.
        depth: K.
        width: G.
        runtimes: of ``"inline"`` and ``"threads"``; the latter is left out where there is one module, one CPU thread
            or a GPU.
        baselines: of ``"loop"`` (at the same precision), ``"loop-fp32"``, ``"e2e"`` and ``"compiled"`` (end to end,
            of torch's layers under torch.compile); a loop is left out where it is the same network (e2e) or not
            written (other losses than cross entropy, registered heads).
        setting: batch, device, precision and repeats.
        head: the auxiliary heads.

    Returns:
        For every runtime the cell; ``images_per_second`` (median), ``spread`` (quartile distance over median),
        ``activation_bytes`` (peak of a step), ``predicted`` (multiply-accumulates of a step of the e2e network over
        those of the cell's, heads and backward passes included); and ``baselines``: by name the same figures and
        ``ratio``, how many times faster the cell is (median over turns); of ``compiled`` also ``warm_up_seconds``,
        ``graphs`` and ``recompiles`` (after its first step).

    Raises:
        UsageError: the compiled baseline cannot be compiled.
    """
    from locallearn.bench.compiled import Compiled, compiled_backprop  # which knows this module

    config, e2e = step_config(model, method, depth, width, head), step_config(model, "e2e", 1, 1)
    side_by_side = depth > 1 and setting.device.type == "cpu" and torch.get_num_threads() > 1
    own = [name for name in runtimes if name == "inline" or side_by_side]
    contenders = {name: local(config, setting, name) for name in own}
    for name in baselines:
        if name == "e2e":
            contenders[name] = local(e2e, setting)
        elif name == "compiled":
            contenders[name] = compiled_backprop(model, setting)
        elif method in ("dgl", "gn-dgl") and head not in heads:
            contenders[name] = loop(config, setting, "fp32" if name == "loop-fp32" else setting.precision)
    times = interleaved({name: one.step for name, one in contenders.items()}, setting.repeats, setting.device)
    counted, undivided = (cost(c, setting.image, batch_size=setting.batch_size) for c in (config, e2e))
    figures = {name: _figures(one, times[name], setting.batch_size) for name, one in contenders.items()}
    for name, one in contenders.items():
        if isinstance(one, Compiled):
            figures[name] |= one.facts()
    cell = {
        "model": model,
        "method": method,
        "depth": depth,
        "width": width,
        "predicted": undivided.step_macs / counted.step_macs,
    }
    return [
        {
            **cell,
            "runtime": runtime,
            **figures[runtime],
            "baselines": {
                name: {**row, "ratio": ratio(times[name], times[runtime]) * contenders[runtime].steps}
                for name, row in figures.items()
                if name not in own
            },
        }
        for runtime in own
    ]


def _figures(contender: Contender, timing: Timing, batch_size: int) -> dict[str, Any]:
    return {
        "images_per_second": contender.steps * batch_size / timing.median,
        "spread": timing.spread,
        "activation_bytes": contender.peak_bytes(),
    }
