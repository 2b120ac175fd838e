"""Where a user's model can be cut, and the K pieces that cuts make of it."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from locallearn.errors import ConfigError
from locallearn.nn.features import Axes
from locallearn.nn.trace import Call, Trace
from locallearn.plan.cuts import balanced

Usable = Callable[[Call], str]
"""Why a place does not serve as a cut for a reason of the caller's, as what would be right; empty where it does."""


@dataclass(frozen=True)
class Crossing:
    """A tensor beside a stage's features that is made before a cut and used after it.

    Attributes:
        path: the outermost submodule that has ended by then and has the tensor in its output; None where no submodule
            gives it, so that only a process that computes both sides has it.
        index: which of the tensors in that output it is, counted depth first from 0.
        shape: of the tensor, for the example's batch.
    """

    path: str | None
    index: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Share:
    """A tensor of a stage that the model's own loss uses beside its prediction, and that trains the stage.

    Attributes:
        path: the submodule that gives or keeps it.
        place: which of the tensors in its output it is, counted depth first from 0, or the name of an attribute.
        weight: what the model's own loss multiplies this number by; None for a router's scores of experts, which are
            balanced with the stage's other ones.
    """

    path: str
    place: int | str
    weight: float | None = 0.0


@dataclass(frozen=True)
class Piece:
    """The part of a user's model that is one stage.

    Attributes:
        path: the submodule after whose output the stage ends; empty for the last stage.
        summed: whether the stage ends after the sum that this output goes into, as in ``x + layer(x)``.
        shape: features of one example as objectives see them, (C, H, W), (T, C) or (C,); of the last stage, the
            model's scores of one example.
        parameters: names of the parameters that are first used here, which the stage trains.
            Those that are frozen, or that no gradient reaches, are among them: they train once one does.
        reads: names of parameters that it uses and an earlier stage trains (tied weights).
        buffers: names of the buffers of its submodules that ``state_dict`` has.
        macs: multiply-accumulates of its matrix products and convolutions, forward, for the whole example.
        layout: where examples and channels are in the features.
        crossing: what else crosses the cut and has a gradient: skips of a U-Net, what a decoder reads of an encoder.
        recomputed: whether the submodule runs again in the backward pass (activation checkpointing).
        lost: submodules of whose tensors the model's own loss makes use after the stage, beside the prediction; that
            part of the loss trains nothing here.
        idle: names of parameters that the features do not depend on, so that nothing trains them.
        shares: what the stage's loss has of the model's own loss beside its prediction.
    """

    path: str
    summed: bool
    shape: tuple[int, ...]
    parameters: tuple[str, ...]
    reads: tuple[str, ...]
    buffers: tuple[str, ...]
    macs: int
    layout: Axes
    crossing: tuple[Crossing, ...]
    recomputed: bool
    lost: tuple[str, ...]
    idle: tuple[str, ...]
    shares: tuple[Share, ...] = ()


def pieces(
    trace: Trace, cuts: Sequence[str] | None, depth: int | None, usable: Usable = lambda _: ""
) -> tuple[Piece, ...]:
    """Cut a model at the ends of some submodules, or into ``depth`` pieces of balanced cost.

    Args:
        trace: a forward pass of the model.
        cuts: paths of submodules; None for ``depth`` balanced pieces.
        depth: K.
        usable: what else is asked of a cut.

    Raises:
        ConfigError: an unknown path, a place whose features cannot be learnt from, or too many pieces; the message
            says why, and names the nearest legal cuts.
    """
    chosen = _named(trace, cuts, usable) if cuts is not None else _balanced(trace, depth or 1, usable)
    ends = [*chosen, trace.calls[-1]]
    found, start, macs = [], -1, 0
    for i, call in enumerate(ends):
        own, reads = _parameters(trace, start, call.end)
        if not any(name in trace.reached for name in own):
            before = ends[i - 1].path if i else ""
            raise ConfigError("cuts", call.path or ends_of(chosen), _empty(call.path, before, reads))
        buffers = _buffers(trace, start, call.end)
        found.append(_piece(trace, call, start, own, reads, buffers, macs))
        start, macs = call.end, call.macs
    return tuple(found)


def end_of(trace: Trace, part: Piece) -> Call:
    """Where a piece ends."""
    call = next(call for call in reversed(trace.calls) if call.path == part.path)
    return (trace.sum_after(call) if part.summed else None) or call


def features_dtype(trace: Trace, part: Piece) -> Any:
    """The type of numbers of a piece's features; None for the last one, which ends in the model's own scores."""
    node = end_of(trace, part).node if part.path else None
    return node[0]._input_metadata[node[1]].dtype if node is not None else None


def crossing(trace: Trace, part: Piece, loss: bool = True) -> tuple[Crossing, ...]:
    """What crosses the end of a piece beside its features.

    Args:
        trace: a forward pass of the model.
        part: the piece.
        loss: whether what the model's own loss alone uses counts.
    """
    return tuple(_crossing(trace, end_of(trace, part), loss)) if part.path else ()


def _piece(
    trace: Trace,
    call: Call,
    start: int,
    own: Sequence[str],
    reads: Sequence[str],
    buffers: tuple[str, ...],
    macs_before: int,
) -> Piece:
    last = not call.path
    layout = Axes(call.batch or 0, call.channels)
    shape = tuple(call.shape or ())[1:] if last else layout.shape(call.shape or ())
    macs = (trace.macs if last else call.macs) - macs_before
    crosses = () if last else tuple(_crossing(trace, call))
    again = call.recomputed and not last
    lost = () if last else tuple(dict.fromkeys(map(trace.maker, trace.lost(start, call))))
    idle = () if last else tuple(_idle(trace, start, call))
    return Piece(
        call.path, call.summed, shape, tuple(own), tuple(reads), buffers, macs, layout, crosses, again, lost, idle
    )


def _crossing(trace: Trace, cut: Call, loss: bool = True) -> list[Crossing]:
    """What crosses a cut beside its features."""
    ended = [call for call in trace.calls if call.end <= cut.end and trace.times[call.path] == 1]
    found = []
    for node, output in trace.crossing(cut, loss):
        givers = [call for call in ended if (node, output) in call.outputs]
        metadata = node._input_metadata
        shape = tuple(metadata[output].shape) if output < len(metadata) else ()
        giver = givers[-1] if givers else None  # the one that ended last is the outermost
        index = giver.outputs.index((node, output)) if giver else 0
        found.append(Crossing(giver.path if giver else None, index, shape))
    return found


def ends_of(calls: Sequence[Call]) -> str:
    """Paths of calls as one text."""
    return ", ".join(call.path for call in calls)


def _empty(path: str, before: str, reads: Sequence[str]) -> str:
    where = f"between {before or 'the start'} and {path or 'the end'}"
    tied = f" (an earlier module trains {reads[0]})" if reads else ""
    return f"cuts with parameters to train {where}, where there are none{tied}"


def _parameters(trace: Trace, start: float, end: float) -> tuple[list[str], list[str]]:
    """Names of the parameters that are first used between two moments, and of those used before as well."""
    before = {name for number, name in trace.uses if number < start}
    used = list(dict.fromkeys(name for number, name in trace.uses if start <= number < end))
    return [name for name in used if name not in before], [name for name in used if name in before]


def _buffers(trace: Trace, start: int, end: int) -> tuple[str, ...]:
    """Names of the buffers of submodules that first end between two moments; of one that never runs, at the start."""
    ends: dict[str, int] = {}
    for call in trace.calls:
        ends.setdefault(call.path, call.end)
    return tuple(name for name in trace.buffers if start < ends.get(name.rpartition(".")[0], 0) <= end)


def _idle(trace: Trace, start: float, call: Call) -> list[str]:
    """Parameters of a piece that its features do not depend on, as where others than the features cross its end."""
    if call.node is None:
        return []
    own = [name for name in _parameters(trace, start, call.end)[0] if name in trace.reached]
    upstream = trace.upstream(call.node[0])
    return [name for name in own if name not in upstream]


def _trains(trace: Trace, start: float, end: float) -> bool:
    """Whether there is something to train between two moments."""
    return any(name in trace.reached for name in _parameters(trace, start, end)[0])


def legal_cuts(trace: Trace, usable: Usable = lambda _: "") -> list[Call]:
    """Every place where the model can be cut, in the order of execution.

    A submodule that runs once, and gives features with a row for every example and a known axis of channels.
    """
    return [call for call in trace.calls if call.path and not _obstacle(trace, call, usable)]


def chain(
    trace: Trace, usable: Usable = lambda _: "", sums: bool = False, jumped: bool = False, whole: bool = False
) -> list[Call]:
    """The longest chain of sensible cuts: legal ones, between any two of which something is computed and trained.

    Of places between which nothing is multiplied (a convolution, its batch norm, its ReLU, and the stage that ends
    with them) the outermost is taken, and of those the last.

    Args:
        trace: a forward pass of the model.
        usable: what else is asked of a cut.
        sums: whether to take the places after sums ``x + layer(x)`` too, which no submodule may end at.
        jumped: whether to take cuts too that other tensors than the features cross.
        whole: whether features at a cut have to depend on all that is trained before it, as those of one of several
            branches do not.
    """
    kept: list[Call] = []
    found = [(trace.sum_after(call) if sums else None) or call for call in legal_cuts(trace, usable)]
    found.sort(key=lambda call: call.end)
    places = [call for call in found if jumped or not trace.crossing(call, loss=False)]
    for _, group in itertools.groupby(places, key=lambda call: call.macs):
        best = min(reversed(list(group)), key=lambda call: call.path.count("."))
        start = kept[-1].end if kept else -1
        if _trains(trace, start, best.end) and not (jumped and _idle(trace, -1 if whole else start, best)):
            kept.append(best)
    while kept and not (_trains(trace, kept[-1].end, trace.calls[-1].end) and kept[-1].macs < trace.macs):
        kept.pop()
    return kept


def _balanced(trace: Trace, depth: int, usable: Usable) -> list[Call]:
    """Cuts at the ends of submodules that nothing jumps over, where those make ``depth`` pieces of like cost.

    Else the places after sums are taken too, else all cuts that leave nothing untrained, and else all.
    """
    best: list[Call] | None = None
    places: list[Call] = []
    for sums, jumped, whole in ((False, False, False), (True, False, False), (True, True, True), (True, True, False)):
        if best is not None and jumped and not whole:
            break
        places = chain(trace, usable, sums, jumped, whole)
        if depth > len(places) + 1:
            continue
        costs = _costs(trace, places)
        chosen = [places[i] for i in balanced(costs, depth)]
        if best is None or max(_costs(trace, chosen)) < 0.75 * max(_costs(trace, best)):
            best = chosen
        if not uneven(_costs(trace, best)):
            return best
    if best is None:
        where = f"can be cut after {ends_of(places)}" if places else "has no legal cut"
        raise ConfigError("depth", depth, f"at most {len(places) + 1}: this model {where}")
    return best


def _costs(trace: Trace, cuts: Sequence[Call]) -> list[int]:
    edges = [0, *(call.macs for call in cuts), trace.macs]
    return [after - before for before, after in itertools.pairwise(edges)]


def uneven(costs: Sequence[int]) -> bool:
    """Whether a piece costs less than a tenth of its share, or more than twice it."""
    share = sum(costs) / len(costs)
    return len(costs) > 1 and (min(costs) < 0.1 * share or max(costs) > 2 * share)


def _named(trace: Trace, cuts: Sequence[str], usable: Usable) -> list[Call]:
    calls = {call.path: call for call in trace.calls if call.path}
    chosen: dict[str, Call] = {}
    for name in cuts:
        path = trace.aliases.get(name, name)
        if path not in calls:
            near = difflib.get_close_matches(name, calls, n=3, cutoff=0.3) or list(calls)[:3]
            raise ConfigError("cuts", name, f"the path of a submodule that runs; the nearest are {', '.join(near)}")
        if path in chosen:
            raise ConfigError("cuts", name, "every cut once")
        obstacle = _obstacle(trace, calls[path], usable)
        if obstacle:
            raise ConfigError("cuts", name, f"{obstacle}; {_nearest(trace, calls[path], usable)}")
        chosen[path] = trace.sum_after(calls[path]) or calls[path]
    return sorted(chosen.values(), key=lambda call: call.end)


def _obstacle(trace: Trace, call: Call, usable: Usable) -> str:
    """Why there can be no cut after a call, as what would be right; empty where there can."""
    times = trace.times[call.path]
    shape = " x ".join(map(str, call.shape or ())) or "one number"
    if times > 1:
        return f"a submodule that runs once in a forward pass (this one runs {times} times)"
    if call.shape is None:
        return "a submodule that gives a floating-point tensor with a gradient"
    if call.node is None:
        return "a submodule whose output has a gradient (all before this one is frozen, or runs under no_grad)"
    if call.batch is None or len(call.shape) < 2:
        return f"features with one row for every example (this one gives {shape})"
    if call.channels is None and len(call.shape) > 2:
        letters = "".join("B" if axis == call.batch else "?" for axis in range(len(call.shape)))
        return (
            f"layout= beside it: nothing tells which axis of its {shape} features is the channels "
            f"({letters}; layout='BCHW', 'BHWC', 'BTC', 'BCT' or 'TBC' say it)"
        )
    return usable(call)


def _nearest(trace: Trace, call: Call, usable: Usable) -> str:
    places = chain(trace, usable) or chain(trace, usable, sums=True, jumped=True)
    before = [place.path for place in places if place.end < call.end][-1:]
    after = [place.path for place in places if place.end > call.end][:1]
    if not before + after:
        return "this model has no legal cut"
    return f"the nearest legal cuts are {' and '.join(before + after)}"
