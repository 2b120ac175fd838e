"""Where a user's model can be cut, and the places that make K pieces of it."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Sequence

from locallearn.errors import ConfigError
from locallearn.nn.trace import Call, Trace
from locallearn.plan.cuts import balanced

Usable = Callable[[Call], str]
"""Why a place does not serve as a cut for a reason of the caller's, as what would be right; empty where it does."""


def named_places(trace: Trace, cuts: Sequence[str], usable: Usable) -> list[Call]:
    """The places that paths name, in the order of execution.

    Raises:
        ConfigError: there is no such path, or no cut after it; why, and which are near.
    """
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


def balanced_places(trace: Trace, depth: int, usable: Usable) -> list[Call]:
    """Cuts at the ends of submodules that nothing jumps over, where those make ``depth`` pieces of like cost.

    Else the places after sums are taken too, else all cuts that leave nothing untrained, and else all. One that
    tensors jump over is not taken where fewer do near it, unless the pieces are far more alike with it.

    Raises:
        ConfigError: ``depth`` is more than there are places for.
    """
    best: list[Call] | None = None
    places: list[Call] = []
    for sums, jumped, whole in ((False, False, False), (True, False, False), (True, True, True), (True, True, False)):
        if best is not None and jumped and not whole:
            break
        places = chain(trace, usable, sums, jumped, whole)
        for some in (_least_jumped(trace, places, trace.macs / depth / 4), places) if jumped else (places,):
            if depth > len(some) + 1:
                continue
            chosen = [some[i] for i in balanced(_costs(trace, some), depth)]
            if best is None or max(_costs(trace, chosen)) < 0.75 * max(_costs(trace, best)):
                best = chosen
        if best is not None and not uneven(_costs(trace, best)):
            return best
    if best is None:
        where = f"can be cut after {ends_of(places)}" if places else f"has no legal cut{_why_none(trace, usable)}"
        raise ConfigError("depth", depth, f"at most {len(places) + 1}: this model {where}")
    return best


def _least_jumped(trace: Trace, places: Sequence[Call], near: float) -> list[Call]:
    """The places but those that have one near them which fewer tensors jump over.

    Inside a layer its residual stream jumps over, beside what jumps over all layers (what a decoder reads).

    Args:
        trace: a forward pass of the model.
        places: where it can be cut.
        near: so many multiply-accumulates apart.
    """
    over = [(_jumping(trace, call), call.macs) for call in places]
    return [
        call
        for call, (mine, macs) in zip(places, over, strict=True)
        if not any(fewer < mine and abs(there - macs) < near for fewer, there in over)
    ]


def _jumping(trace: Trace, call: Call) -> int:
    """How many tensors jump over a place, on their way to the prediction."""
    return len(trace.crossing(call, loss=False, idle=False))


def _why_none(trace: Trace, usable: Usable) -> str:
    """What the outermost submodule nearest to half of the cost would have to be, as a phrase in brackets."""
    inner = [call for call in trace.calls[:-1] if 0 < call.macs < trace.macs]
    for call in sorted(inner, key=lambda call: (abs(2 * call.macs - trace.macs), call.path.count("."))):
        obstacle = _obstacle(trace, call, usable)
        if obstacle:
            return f" (a cut after {call.path} would need {obstacle})"
    return ""


def _costs(trace: Trace, cuts: Sequence[Call]) -> list[int]:
    edges = [0, *(call.macs for call in cuts), trace.macs]
    return [after - before for before, after in itertools.pairwise(edges)]


def uneven(costs: Sequence[int]) -> bool:
    """Whether a piece costs less than a tenth of its share, or more than twice it."""
    share = sum(costs) / len(costs)
    return len(costs) > 1 and (min(costs) < 0.1 * share or max(costs) > 2 * share)


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
    with them) those that the fewest tensors jump over are taken, of these the outermost, and of those the last.

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
    places = [call for call in found if jumped or not _jumping(trace, call)]
    for _, group in itertools.groupby(places, key=lambda call: call.macs):
        best = min(reversed(list(group)), key=lambda call: (_jumping(trace, call), call.path.count(".")))
        start = kept[-1].end if kept else -1
        if _trains(trace, start, best.end) and not (jumped and idle_parameters(trace, -1 if whole else start, best)):
            kept.append(best)
    while kept and not (_trains(trace, kept[-1].end, trace.calls[-1].end) and kept[-1].macs < trace.macs):
        kept.pop()
    return kept


def _trains(trace: Trace, start: float, end: float) -> bool:
    """Whether there is something to train between two moments."""
    return any(name in trace.reached for name in parameters_between(trace, start, end)[0])


def parameters_between(trace: Trace, start: float, end: float) -> tuple[list[str], list[str]]:
    """Names of the parameters that are first used between two moments, and of those used before as well."""
    before = {name for number, name in trace.uses if number < start}
    used = list(dict.fromkeys(name for number, name in trace.uses if start <= number < end))
    return [name for name in used if name not in before], [name for name in used if name in before]


def idle_parameters(trace: Trace, start: float, call: Call) -> list[str]:
    """Parameters of a piece that its features do not depend on, as where others than the features cross its end."""
    if call.node is None:
        return []
    own = [name for name in parameters_between(trace, start, call.end)[0] if name in trace.reached]
    upstream = trace.upstream(call.node[0])
    return [name for name in own if name not in upstream]


def ends_of(calls: Sequence[Call]) -> str:
    """Paths of calls as one text."""
    return ", ".join(call.path for call in calls)
