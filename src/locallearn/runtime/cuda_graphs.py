"""The runtime of CUDA graphs: a GPU is given the passes of all modules as one launch.

A step of a K x G network is hundreds or thousands of operators, most of which a GPU computes in less time than it
takes the host to launch them. Recorded once, they are launched together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from locallearn.core.local_step import LocalStep
from locallearn.data.store import Batch
from locallearn.errors import ConfigError
from locallearn.losses.objectives import LocalLoss
from locallearn.runtime.inline import InlineRuntime, Trained

WARM_UP = 2
"""Steps with batches of one shape before they are recorded: libraries choose their algorithms in them."""

_Result = TypeVar("_Result")


class CudaGraph:
    """A CUDA graph of a function, and the stream that it is recorded on.

    Args:
        device: a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self._stream = torch.cuda.Stream(device)

    def warm_up(self, function: Callable[[], _Result]) -> _Result:
        """Call the function on the stream of the recording."""
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            result = function()
        torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
        return result

    def record(self, function: Callable[[], _Result]) -> _Result:
        """Record the function, without computing anything; tensors of the result hold what replays compute."""
        with torch.cuda.graph(self._graph, stream=self._stream):
            return function()

    def replay(self) -> None:
        """Compute it, from what the tensors that it read hold now."""
        self._graph.replay()


@dataclass
class RecordedShape:
    """Batches of one shape.

    Attributes:
        graph: of the passes of all modules.
        seen: steps before it was recorded.
        given: the batch that it reads.
        losses: that it writes.
        gradients: likewise, of every parameter that has one.
    """

    graph: CudaGraph
    seen: int = 0
    given: Batch | None = None
    losses: Sequence[LocalLoss] = ()
    gradients: Sequence[tuple[torch.nn.Parameter, Tensor]] = ()


class CudaGraphsRuntime(InlineRuntime):
    """Train all modules on one batch after the other; the passes of all of them, forward and backward, are one graph.

    What is computed is what ``InlineRuntime`` computes. Updates are not in the graph,
    for their learning rate changes; nor are the first steps with batches of a shape (``WARM_UP``).

    Args:
        steps: the local steps of the modules, in order.
        device: a GPU.

    Raises:
        ConfigError: a module draws random numbers, which a graph would repeat.
    """

    def __init__(self, steps: Sequence[LocalStep], device: torch.device) -> None:
        super().__init__(steps)
        self._device = device
        self._shapes: dict[tuple[object, ...], RecordedShape] = {}
        for step in steps:
            if step.module.random:
                raise ConfigError("runtime", "cuda-graphs", f"inline with the dropout of module {step.module.name}")

    def step(self, batch: Batch, index: int, rate: float | None = None, stop: bool = False) -> list[Trained]:
        """Train every module on one batch. The losses hold until the next step."""
        given = tensors_of(batch)
        key = tuple((name, tensor.shape, tensor.stride()) for name, tensor in given.items())
        if key not in self._shapes:
            self._shapes[key] = RecordedShape(CudaGraph(self._device))
        shape = self._shapes[key]
        if shape.seen < WARM_UP:
            shape.seen += 1
            return shape.graph.warm_up(lambda: InlineRuntime.step(self, batch, index, rate, stop))
        if shape.given is None:
            self.record(shape, batch)
        assert shape.given is not None
        for name, tensor in tensors_of(shape.given).items():
            tensor.copy_(given[name])
        shape.graph.replay()
        for parameter, gradient in shape.gradients:
            parameter.grad = gradient  # steps that are not replayed leave others
        for step in self.steps:
            step.update(rate)
        return [Trained(batch.labels, list(shape.losses), batch.examples)]

    def record(self, shape: RecordedShape, batch: Batch) -> None:
        """Record the passes of all modules on batches of this shape, and keep what they write to."""
        copies = {name: tensor.clone() for name, tensor in tensors_of(batch).items()}
        given = Batch(copies.pop("images"), copies.pop("labels"), copies.pop("pixels"), batch.step, **copies)
        shape.losses = shape.graph.record(lambda: self._passes(given))
        parameters = [p for step in self.steps for p in step.module.parameters()]
        shape.gradients = [(p, p.grad) for p in parameters if p.grad is not None]
        shape.given = given

    def _passes(self, batch: Batch) -> list[LocalLoss]:
        features, losses = batch.images, []
        for step in self.steps:
            features, loss = step.passes(features, batch)
            losses.append(loss)
        return losses


def tensors_of(batch: Batch) -> dict[str, Tensor]:
    """What a batch holds, by name."""
    found = {field.name: getattr(batch, field.name) for field in dataclasses.fields(Batch)}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}
