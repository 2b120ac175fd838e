"""What a user's model does, found by running it once: where its submodules end, and what crosses there.

The model runs as it is, on tensors without data where it can (the meta device). Every operation that gradients pass
has a number that grows in the order of execution, so a moment in the forward pass divides the graph of the scores in
an earlier and a later part. A cut is legal where all edges between the two leave one tensor: the features.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from locallearn.errors import UsageError
from locallearn.nn.features import features_of, prediction

_NODE = Any  # a torch.autograd.graph.Node; its numbers and shapes are not in torch's stubs


@dataclass
class Call:
    """One call of a submodule.

    Attributes:
        path: name of the submodule in the model.
        start: operations before it have smaller numbers.
        end: operations after it have this number or a larger one.
        shape: of its first floating-point output, or None where it has none with a gradient.
        macs: multiply-accumulates of matrix products and convolutions from the model's start to this call's end.
        node: the operation that made that output, and which of its outputs it is.
    """

    path: str
    start: int
    end: int = 0
    shape: tuple[int, ...] | None = None
    macs: int = 0
    node: tuple[_NODE, int] | None = None


@dataclass
class Trace:
    """One forward pass of a model.

    Attributes:
        calls: of submodules, in the order in which they ended; the model itself is the last.
        scores: shape of the model's prediction.
        scorer: the linear layer whose output is the prediction, or None.
        edges: (later operation, earlier operation, which of its outputs) of the prediction's graph.
        leaves: (operation, parameter's name) where a parameter enters the graph.
        macs: multiply-accumulates of the whole pass.
        names: of the model's parameters.
        buffers: names of the model's buffers that ``state_dict`` has.
    """

    calls: list[Call]
    scores: tuple[int, ...]
    scorer: str | None
    edges: list[tuple[_NODE, _NODE, int]] = field(default_factory=list)
    leaves: list[tuple[_NODE, str]] = field(default_factory=list)
    macs: int = 0
    names: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()

    def crossing(self, call: Call) -> list[tuple[_NODE, int]]:
        """What is made before the end of a call and used after it, other than the call's own output."""
        later, earlier = self._numbers
        over = np.flatnonzero((earlier < call.end) & (call.end <= later))
        found = {self.edges[i][1:]: None for i in over}
        if call.node is not None:
            found.pop(call.node, None)
        return list(found)

    @functools.cached_property
    def _numbers(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the later and of the earlier operation of every edge."""
        pairs = np.array([(a._sequence_nr(), b._sequence_nr()) for a, b, _ in self.edges], np.int64).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]

    @functools.cached_property
    def times(self) -> Counter[str]:
        """How often every submodule runs."""
        return Counter(call.path for call in self.calls)

    def maker(self, node: _NODE) -> str:
        """Path of the innermost submodule that did an operation; empty for the model's own forward."""
        number = node._sequence_nr()
        inside = [call for call in self.calls if call.start <= number < call.end]
        return min(inside, key=lambda call: call.end - call.start).path

    def before(self, node: _NODE) -> list[_NODE]:
        """The operations whose outputs an operation uses."""
        return self._before.get(node, [])

    @functools.cached_property
    def _before(self) -> dict[_NODE, list[_NODE]]:
        found: dict[_NODE, list[_NODE]] = {}
        for later, earlier, _ in self.edges:
            found.setdefault(later, []).append(earlier)
        return found

    @functools.cached_property
    def uses(self) -> list[tuple[int, str]]:
        """(number of an operation, parameter that it uses), in the order of the model's own list of parameters."""
        order = {name: i for i, name in enumerate(self.names)}
        return sorted(
            ((node._sequence_nr(), name) for node, name in self.leaves if name in order),
            key=lambda use: order[use[1]],
        )


def now() -> int:
    """A number that operations from here on reach, and those before do not."""
    return torch.empty(0, requires_grad=True).clone().grad_fn._sequence_nr()  # type: ignore[union-attr]


def trace(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Trace:
    """Run ``model`` once and record it; neither its weights nor its statistics change.

    The run is on the meta device, or on copies of the real tensors where the model looks at values on its way.

    Raises:
        UsageError: it does not run, or its output has no gradient.
    """
    try:
        return _run(model, _moved(args, "meta"), _moved(dict(kwargs), "meta"), "meta")
    except (NotImplementedError, RuntimeError, ValueError, AttributeError, TypeError):
        pass  # it needs values; or it is broken, and then says so on real ones
    try:
        devices = {p.device for p in model.parameters() if p.is_cuda}
        with torch.random.fork_rng(list(devices)):
            return _run(model, args, dict(kwargs), None)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"example: {type(model).__name__} does not run on it: {error}") from error


def _run(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], device: str | None) -> Trace:
    states: dict[str, Tensor] = {
        name: nn.Parameter(_like(p, device), requires_grad=p.requires_grad) for name, p in model.named_parameters()
    }
    names = {id(parameter): name for name, parameter in states.items()}
    states |= {name: _like(buffer, device) for name, buffer in model.named_buffers()}
    counter = FlopCounterMode(display=False)
    with torch.enable_grad(), counter, _recorded(model, counter) as (calls, outputs):
        output = torch.func.functional_call(model, states, args, kwargs)
    scores = prediction(output)
    if scores is None or scores.grad_fn is None:
        raise UsageError(f"model: the output of {type(model).__name__} has no tensor that gradients come from")
    ends = (path for path, node in outputs if node is scores.grad_fn)
    scorer = next((path for path in ends if isinstance(model.get_submodule(path), nn.Linear)), None)
    found = Trace(
        calls, tuple(scores.shape), scorer, macs=counter.get_total_flops() // 2, names=tuple(names.values())
    )
    kept = model.state_dict()
    found.buffers = tuple(name for name, _ in model.named_buffers() if name in kept)
    _walk(scores.grad_fn, names, found)
    return found


def _like(tensor: Tensor, device: str | None) -> Tensor:
    return torch.empty_like(tensor, device=device) if device else tensor.detach().clone()


def _moved(value: Any, device: str) -> Any:
    """Arguments of a call with their tensors on another device."""
    return tree_map_only(Tensor, lambda tensor: tensor.to(device), value)


@contextlib.contextmanager
def _recorded(model: nn.Module, counter: FlopCounterMode) -> Iterator[tuple[list[Call], list[tuple[str, _NODE]]]]:
    """Record every call of every submodule while the context lasts."""
    ended: list[Call] = []
    outputs: list[tuple[str, _NODE]] = []
    open_calls: list[Call] = []

    def enter(path: str) -> Any:
        return lambda *_: open_calls.append(Call(path, now()))

    def leave(_module: nn.Module, _args: Any, output: Any) -> None:
        call = open_calls.pop()
        features = features_of(output)
        if features is not None and features.grad_fn is not None:
            call.shape, call.node = tuple(features.shape), (features.grad_fn, features.output_nr)
            outputs.append((call.path, features.grad_fn))
        call.macs = counter.get_total_flops() // 2
        call.end = now()
        ended.append(call)

    hooks: list[Any] = []
    for path, module in model.named_modules():
        hooks += [module.register_forward_pre_hook(enter(path)), module.register_forward_hook(leave)]
    try:
        yield ended, outputs
    finally:
        for hook in hooks:
            hook.remove()


def _walk(root: _NODE, names: Mapping[int, str], found: Trace) -> None:
    """Fill in the edges and the leaves of the graph that ends in ``root``."""
    seen, waiting = {root}, [root]
    while waiting:
        node = waiting.pop()
        for earlier, output in node.next_functions:
            if earlier is None:
                continue
            if hasattr(earlier, "variable"):
                found.leaves.append((node, names.get(id(earlier.variable), "an input")))
                continue
            found.edges.append((node, earlier, output))
            if earlier not in seen:
                seen.add(earlier)
                waiting.append(earlier)


def described(trace: Trace, node: _NODE, output: int) -> str:
    """A tensor in words: its shape and who made it."""
    metadata = node._input_metadata
    shape = " x ".join(str(size) for size in metadata[output].shape) if output < len(metadata) else "?"
    maker = trace.maker(node)
    return f"a tensor of {shape or 'one number'} made in {maker or 'the model itself'}"
