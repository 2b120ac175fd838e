"""The K pieces that cuts make of a user's model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from locallearn.errors import ConfigError
from locallearn.nn.cut_places import (
    Usable,
    balanced_places,
    ends_of,
    idle_parameters,
    named_places,
    parameters_between,
)
from locallearn.nn.features import Axes
from locallearn.nn.trace import Call, Trace


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
        mask_place: where the tokens of the model's mask are among the features; empty where nothing tells.
        everywhere: names of those of its parameters and buffers that later stages compute with too: frozen ones of
            submodules that gradients do not pass.
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
    mask_place: str = ""
    everywhere: tuple[str, ...] = ()


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
    chosen = named_places(trace, cuts, usable) if cuts is not None else balanced_places(trace, depth or 1, usable)
    ends = [*chosen, trace.calls[-1]]
    found, start, macs = [], -1, 0
    for i, call in enumerate(ends):
        own, reads = parameters_between(trace, start, call.end)
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
    idle = () if last else tuple(idle_parameters(trace, start, call))
    return Piece(
        call.path,
        call.summed,
        shape,
        tuple(own),
        tuple(reads),
        buffers,
        macs,
        layout,
        crosses,
        again,
        lost,
        idle,
        mask_place=call.mask_place,
        everywhere=tuple(_without_gradients(trace, [*own, *buffers])),
    )


def _without_gradients(trace: Trace, names: Sequence[str]) -> list[str]:
    """Those parameters and buffers, of some, that are frozen and in a submodule whose outputs have no gradient."""
    quiet = tuple(f"{call.path}." for call in trace.calls if call.path and call.node is None)
    return [name for name in names if name not in trace.trainable and name.startswith(quiet)] if quiet else []


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


def _empty(path: str, before: str, reads: Sequence[str]) -> str:
    where = f"between {before or 'the start'} and {path or 'the end'}"
    tied = f" (an earlier module trains {reads[0]})" if reads else ""
    return f"cuts with parameters to train {where}, where there are none{tied}"


def _buffers(trace: Trace, start: int, end: int) -> tuple[str, ...]:
    """Names of the buffers of submodules that first end between two moments; of one that never runs, at the start."""
    ends: dict[str, int] = {}
    for call in trace.calls:
        ends.setdefault(call.path, call.end)
    return tuple(name for name in trace.buffers if start < ends.get(name.rpartition(".")[0], 0) <= end)
