"""Where a user's model can be cut, and the K pieces that cuts make of it."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from locallearn.errors import ConfigError
from locallearn.nn.trace import Call, Trace, described
from locallearn.plan.cuts import balanced


@dataclass(frozen=True)
class Piece:
    """The part of a user's model that is one module.

    Attributes:
        path: the submodule after whose output the module ends; empty for the last module.
        shape: features of one example, (C, H, W), (T, C) or (C,); of the last module, its scores.
        parameters: names of the parameters that it trains.
        reads: names of parameters that it uses and an earlier module trains (tied weights).
        buffers: names of the buffers of its submodules that ``state_dict`` has.
        macs: multiply-accumulates of its matrix products and convolutions, forward, for the whole example.
        crossing: (path of a submodule, number of the tensor in its output) of other tensors that cross its end.
    """

    path: str
    shape: tuple[int, ...]
    parameters: tuple[str, ...]
    reads: tuple[str, ...]
    buffers: tuple[str, ...]
    macs: int
    crossing: tuple[tuple[str, int], ...] = ()


def pieces(trace: Trace, batch: int, cuts: Sequence[str] | None, depth: int | None) -> tuple[Piece, ...]:
    """Cut a model at the ends of some submodules, or into ``depth`` pieces of balanced cost.

    Args:
        trace: a forward pass of the model.
        batch: examples in it [examples]; features have as many rows.
        cuts: paths of submodules; None for ``depth`` balanced pieces.
        depth: K.

    Raises:
        ConfigError: an unknown path, a place where a second tensor crosses, or too many pieces; the message says
            which tensor, and names the nearest legal cuts.
    """
    chosen = _named(trace, batch, cuts) if cuts is not None else _balanced(trace, batch, depth or 1)
    ends = [*(call.end for call in chosen), trace.calls[-1].end]
    found, start, macs_before = [], -1, 0
    for i, end in enumerate(ends):
        own, reads = _parameters(trace, start, end)
        path, shape = (chosen[i].path, chosen[i].shape) if i < len(chosen) else ("", trace.scores)
        if not own:
            raise ConfigError("cuts", path or ends_of(chosen), _empty(path, chosen[i - 1].path if i else "", reads))
        assert shape is not None
        macs = chosen[i].macs if i < len(chosen) else trace.macs
        buffers = _buffers(trace, start, end)
        found.append(Piece(path, shape[1:], tuple(own), tuple(reads), buffers, macs - macs_before))
        start, macs_before = end, macs
    return tuple(found)


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


def legal_cuts(trace: Trace, batch: int) -> list[Call]:
    """Every place where the model can be cut, in the order of execution.

    A submodule that runs once, gives features with a row for every example, and is jumped over by no other tensor.
    """
    return [call for call in trace.calls if call.path and not _obstacle(trace, batch, call)]


def chain(trace: Trace, batch: int) -> list[Call]:
    """The longest chain of sensible cuts: legal ones, between any two of which something is computed and trained.

    Of places between which nothing is multiplied (a convolution, its batch norm, its ReLU, and the stage that ends
    with them) the outermost is taken, and of those the last.
    """
    kept: list[Call] = []
    for _, group in itertools.groupby(legal_cuts(trace, batch), key=lambda call: call.macs):
        best = min(reversed(list(group)), key=lambda call: call.path.count("."))
        if _parameters(trace, kept[-1].end if kept else -1, best.end)[0]:
            kept.append(best)
    while kept and not (_parameters(trace, kept[-1].end, trace.calls[-1].end)[0] and kept[-1].macs < trace.macs):
        kept.pop()
    return kept


def _balanced(trace: Trace, batch: int, depth: int) -> list[Call]:
    places = chain(trace, batch)
    if depth > len(places) + 1:
        raise ConfigError("depth", depth, f"at most {len(places) + 1}: this model can be cut after {ends_of(places)}")
    edges = [0, *(call.macs for call in places), trace.macs]
    costs = [after - before for before, after in itertools.pairwise(edges)]
    return [places[i] for i in balanced(costs, depth)]


def _named(trace: Trace, batch: int, cuts: Sequence[str]) -> list[Call]:
    calls = {call.path: call for call in trace.calls if call.path}
    for path in cuts:
        if path not in calls:
            near = difflib.get_close_matches(path, calls, n=3, cutoff=0.3) or list(calls)[:3]
            raise ConfigError("cuts", path, f"the path of a submodule that runs; the nearest are {', '.join(near)}")
        obstacle = _obstacle(trace, batch, calls[path])
        if obstacle:
            raise ConfigError("cuts", path, f"{obstacle}; {_nearest(trace, batch, calls[path])}")
    return sorted((calls[path] for path in cuts), key=lambda call: call.end)


def _obstacle(trace: Trace, batch: int, call: Call) -> str:
    """Why there can be no cut after a call, as what would be right; empty where there can."""
    times = trace.times[call.path]
    if times > 1:
        return f"a submodule that runs once in a forward pass (this one runs {times} times)"
    if call.shape is None:
        return "a submodule that gives a floating-point tensor with a gradient"
    if not 2 <= len(call.shape) <= 4 or call.shape[0] != batch:
        shape = " x ".join(map(str, call.shape)) or "one number"
        return f"features B x C x H x W, B x T x C or B x C for the {batch} examples (this one gives {shape})"
    crossing = trace.crossing(call)
    if crossing:
        return f"a place that nothing jumps over, but {described(trace, *crossing[0])} is used after it too"
    return ""


def _nearest(trace: Trace, batch: int, call: Call) -> str:
    places = chain(trace, batch)
    before = [place.path for place in places if place.end < call.end][-1:]
    after = [place.path for place in places if place.end > call.end][:1]
    if not before + after:
        return "this model has no legal cut"
    return f"the nearest legal cuts are {' and '.join(before + after)}"
