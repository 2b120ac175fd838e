"""What a user's model does, found by running copies of it: where its submodules end, and what crosses there.

The copy runs as the model is, on tensors without data where it can (the meta device). Every operation that gradients
pass has a number that grows in the order of execution, so a moment in the forward pass divides the graph of the
model's prediction and of its own loss in an earlier and a later part.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_SAME_NUMBERS = (
    *(
        "View",
        "UnsafeView",
        "ReshapeAlias",
        "Squeeze",
        "Unsqueeze",
        "Permute",
        "Transpose",
        "TBackward",
        "Clone",
        "ToCopy",
    ),
    *("Slice", "Select", "Alias"),
)
"""How names of operations begin that give the numbers which they are given, or some of them."""

_NODE = Any  # a torch.autograd.graph.Node; its numbers and shapes are not in torch's stubs


@dataclass
class Call:
    """One call of a submodule.

    Attributes:
        path: name of the submodule in the model.
        start: operations before it have smaller numbers.
        end: operations after it have this number or a larger one.
        shape: of its first floating-point output, or None where it has none.
        macs: multiply-accumulates of matrix products and convolutions from the model's start to this call's end.
        node: the operation that made that output, and which of its outputs it is; None where it has no gradient.
        outputs: the same of each of its outputs, depth first.
        batch: the axis of its first output that holds the examples, or None where no axis does.
        channels: the axis of its first output that holds the channels, or None where nothing tells.
        summed: whether it stands for the place after the sum that its output goes into.
        other_tokens: whether its positions are other tokens than those that the model scores.
        recomputed: whether it runs again in the backward pass (activation checkpointing).
        mask_place: where the tokens of the model's mask are among its features; empty where nothing tells.
    """

    path: str
    start: int
    end: int = 0
    shape: tuple[int, ...] | None = None
    macs: int = 0
    node: tuple[_NODE, int] | None = None
    outputs: tuple[tuple[_NODE, int] | None, ...] = ()
    batch: int | None = None
    channels: int | None = None
    other_tokens: bool = False
    summed: bool = False
    recomputed: bool = False
    mask_place: str = ""


@dataclass
class Trace:
    """One forward pass of a model.

    Attributes:
        calls: of submodules, in the order in which they ended; the model itself is the last, and its first output is
            the model's prediction.
        scorer: the linear layer whose output is the prediction, or None.
        has_loss: whether the model computed a loss of its own.
        edges: (later operation, earlier operation, which of its outputs) of the graph of the prediction and the loss.
        leaves: (operation, parameter's name) where a parameter enters the graph.
        macs: multiply-accumulates of the whole pass.
        names: of the model's parameters.
        trainable: names of those that require gradients.
        loss_edges: those of the edges that are in the graph of the model's own loss alone.
        idle_edges: those that lead to batch norms in neither graph, which keep statistics all the same.
        buffers: names of the model's buffers that ``state_dict`` has.
        kept: (path, attribute, operation that made it) of single numbers that submodules keep in attributes.
        aliases: other paths of submodules that have several, by the path that calls have.
        unregistered: shapes of parameters that the model computes with and does not name, as layers in a plain list.
    """

    calls: list[Call]
    scorer: str | None = None
    has_loss: bool = False
    edges: list[tuple[_NODE, _NODE, int]] = field(default_factory=list)
    leaves: list[tuple[_NODE, str]] = field(default_factory=list)
    macs: int = 0
    names: tuple[str, ...] = ()
    trainable: frozenset[str] = frozenset()
    loss_edges: frozenset[int] = frozenset()
    idle_edges: frozenset[int] = frozenset()
    buffers: tuple[str, ...] = ()
    kept: Sequence[tuple[str, str, _NODE]] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    unregistered: dict[int, tuple[int, ...]] = field(default_factory=dict)

    @property
    def scores(self) -> tuple[int, ...]:
        """Shape of the model's prediction; empty where the model gives its loss alone."""
        return self.calls[-1].shape or ()

    @property
    def squashed(self) -> str:
        """``"softmax"`` or ``"sigmoid"`` where the prediction is that of scores, else nothing."""
        node = self.calls[-1].node
        each = None if node is None else node[0]
        while each is not None and each.name().startswith(_SAME_NUMBERS) and len(self.before(each)) == 1:
            (each,) = self.before(each)
        kind = "" if each is None else each.name().removesuffix("Backward0").lower()
        return kind if kind in ("softmax", "sigmoid") else ""

    def sum_after(self, call: Call) -> Call | None:
        """The place after ``x + layer(x)``, for a call of ``layer``; None where its output goes anywhere else.

        The other addend is there before the call ends, and has the same shape; what runs again in a backward pass has
        no such places.
        """
        uses = self._uses_of.get(call.node, []) if call.node is not None else []
        node = uses[0] if uses else None
        if node is None or len(uses) > 1 or not node.name().startswith("AddBackward"):
            return None
        others = [earlier for earlier in self.before(node) if call.node is None or earlier is not call.node[0]]
        number = node._sequence_nr()
        before = bool(others) and all(each._sequence_nr() < call.end for each in others)
        if not before or call.recomputed or tuple(node._input_metadata[0].shape) != call.shape:
            return None
        return dataclasses.replace(call, node=(node, 0), end=number + 1, summed=True)

    @functools.cached_property
    def _uses_of(self) -> dict[tuple[_NODE, int], list[_NODE]]:
        found: dict[tuple[_NODE, int], list[_NODE]] = {}
        for later, earlier, output in self.edges:
            found.setdefault((earlier, output), []).append(later)
        return found

    def crossing(self, call: Call, loss: bool = True, idle: bool = True) -> list[tuple[_NODE, int]]:
        """What is made before the end of a call and used after it, other than the call's own output.

        Args:
            call: the call.
            loss: whether what the model's own loss alone uses counts.
            idle: whether what only batch norms beside prediction and loss are given counts.
        """
        later, earlier = self._numbers
        over = np.flatnonzero((earlier < call.end) & (call.end <= later))
        apart = (frozenset() if loss else self.loss_edges) | (frozenset() if idle else self.idle_edges)
        found = {self.edges[i][1:]: None for i in over if i not in apart}
        if call.node is not None:
            found.pop(call.node, None)
        return list(found)

    def lost(self, start: float, cut: Call) -> list[_NODE]:
        """Operations from a moment to a cut, whose results the model's own loss uses later, past its prediction.

        The cut's own features are not among them.
        """
        later, earlier = self._numbers
        over = np.flatnonzero((start <= earlier) & (earlier < cut.end) & (cut.end <= later))
        found = dict.fromkeys(self.edges[i][1] for i in over if i in self.loss_edges)
        return [node for node in found if cut.node is None or node is not cut.node[0]]

    def numbers_given(self, start: float, end: float) -> list[tuple[str, int | str, _NODE]]:
        """Single numbers that submodules give or keep between two moments, with where, the last made first.

        Of several of which one is made of the others there is that one.
        """
        found: dict[_NODE, tuple[str, int | str]] = {}
        for path, place, node in self.kept:
            if start <= node._sequence_nr() < end:
                found.setdefault(node, (path, place))
        for call in self.calls[:-1]:
            for place, made in enumerate(call.outputs):
                if made is None or self.times[call.path] > 1 or not start <= made[0]._sequence_nr() < end:
                    continue
                if tuple(made[0]._input_metadata[made[1]].shape) in ((), (1,)):
                    found.setdefault(made[0], (call.path, place))
        chosen: list[_NODE] = []
        for node in sorted(found, key=lambda node: -node._sequence_nr()):
            if not any(node in self._behind([later]) for later in chosen):
                chosen.append(node)
        return [(*found[node], node) for node in chosen]

    def covered(self, nodes: Collection[_NODE], start: float, cut: Call) -> bool:
        """Whether what is made from a moment to a cut enters the model's own loss through some operations alone."""
        fresh = {name for number, name in self.uses if start <= number < cut.end}
        for each in self.lost(start, cut):
            behind = self._behind([each], without=nodes)
            if any(self._entering.get(node, set()) & fresh for node in behind if node not in nodes):
                return False
        return True

    def _behind(self, nodes: Collection[_NODE], without: Collection[_NODE] = ()) -> set[_NODE]:
        """Operations that some depend on, those included; not past those of ``without``."""
        waiting, seen = list(nodes), set(nodes)
        while waiting:
            each = waiting.pop()
            if each not in without:
                fresh = [earlier for earlier in self.before(each) if earlier not in seen]
                seen.update(fresh)
                waiting += fresh
        return seen

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
    def reached(self) -> frozenset[str]:
        """Names of the parameters that the prediction or the model's own loss has a gradient in."""
        return frozenset(name for _, name in self.leaves)

    def upstream(self, node: _NODE) -> frozenset[str]:
        """Names of the parameters that an operation's output depends on, with a gradient."""
        return frozenset(name for each in self._behind([node]) for name in self._entering.get(each, ()))

    @functools.cached_property
    def _entering(self) -> dict[_NODE, set[str]]:
        found: dict[_NODE, set[str]] = {}
        for node, name in self.leaves:
            found.setdefault(node, set()).add(name)
        return found

    @functools.cached_property
    def uses(self) -> list[tuple[int, str]]:
        """(number of an operation, parameter that it uses), in the order of the model's own list of parameters.

        A parameter without a gradient counts as used when the submodule that holds it first starts, and at the
        beginning where that never runs.
        """
        order = {name: i for i, name in enumerate(self.names)}
        found = [(node._sequence_nr(), name) for node, name in self.leaves if name in order]
        starts = {call.path: call.start for call in reversed(self.calls)}
        found += [(starts.get(name.rpartition(".")[0], 0), name) for name in set(order) - self.reached]
        return sorted(found, key=lambda use: order[use[1]])


def described(trace: Trace, node: _NODE, output: int) -> str:
    """A tensor in words: its shape and who made it."""
    metadata = node._input_metadata
    shape = " x ".join(str(size) for size in metadata[output].shape) if output < len(metadata) else "?"
    maker = trace.maker(node)
    return f"a tensor of {shape or 'one number'} made in {maker or 'the model itself'}"
