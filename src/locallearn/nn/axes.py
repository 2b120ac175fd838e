"""Which axis of a tensor is the channels, read from the operations that made it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

_NODE = Any  # a torch.autograd.graph.Node

RECURRENT = ("MkldnnRnnLayerBackward", "CudnnRnnBackward", "MiopenRnnBackward")

LAST = ("AddmmBackward", "MmBackward", "LinearBackward", "EmbeddingBackward", "NativeLayerNormBackward", *RECURRENT)
"""Operations whose output has its channels on the last axis."""

BATCH_NORMS = ("NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm")

SECOND = ("ConvolutionBackward", *BATCH_NORMS, "NativeGroupNorm")
"""Operations whose output has its channels on the axis after the batch."""

VIEWS = ("ViewBackward", "UnsafeViewBackward", "ReshapeAliasBackward", "SqueezeBackward", "UnsqueezeBackward")


def channel_axis(node: _NODE, output: int, steps: int = 200) -> int | None:
    """The axis of the channels in an output of an operation; None where nothing tells.

    Walks back from the tensor over operations that keep, move or reshape its axes, to the nearest layer whose
    channels have a known place (a convolution's are axis 1, a linear layer's the last).

    Args:
        node: the operation.
        output: which of its outputs.
        steps: operations to look at.
    """
    axes = tuple(range(len(_shape(node, output))))  # of the tensor at hand, as axes of the first tensor; -1 for none
    waiting = [(node, output, axes)]
    seen = {node}
    for _ in range(steps):
        if not waiting:
            return None
        node, output, axes = waiting.pop(0)
        place = _known(node, len(axes))
        if place is not None and axes[place] >= 0:
            return axes[place]
        alike = 1 if node.name().startswith("StackBackward") else None  # such as the steps of a recurrent layer
        for earlier, index in node.next_functions[:alike]:
            if earlier is None or earlier in seen or hasattr(earlier, "variable"):
                continue
            moved = _before(node, _shape(node, output), axes, _shape(earlier, index))
            if moved is not None:
                seen.add(earlier)
                waiting.append((earlier, index, moved))
    return None


def _shape(node: _NODE, output: int) -> tuple[int, ...]:
    metadata = node._input_metadata
    return tuple(metadata[output].shape) if output < len(metadata) else ()


def _known(node: _NODE, dims: int) -> int | None:
    """The axis of the channels in what an operation gives, where its kind says so."""
    name = node.name()
    if name.startswith(LAST) and dims > 1:
        whole = name.startswith("NativeLayerNorm") and len(node._saved_normalized_shape) > 1
        return None if whole else dims - 1
    return 1 if name.startswith(SECOND) and dims > 1 else None


def _before(
    node: _NODE, shape: Sequence[int], axes: tuple[int, ...], shape_before: Sequence[int]
) -> tuple[int, ...] | None:
    """The axes of an operation's input as axes of the first tensor; None where they are not known."""
    name, dims = node.name(), len(shape_before)
    if name.startswith("PermuteBackward"):
        moved = [-1] * dims
        for place, source in enumerate(node._saved_dims):
            moved[_signed(source) % dims] = axes[place]
        return tuple(moved)
    if name.startswith(("TransposeBackward", "TBackward")):
        a, b = (node._saved_dim0, node._saved_dim1) if name.startswith("Transpose") else (0, 1)
        moved = list(axes)
        a, b = _signed(a) % dims, _signed(b) % dims
        moved[a], moved[b] = axes[b], axes[a]
        return tuple(moved)
    if name.startswith(VIEWS):
        return _reshaped(shape, axes, shape_before)
    if name.startswith(("MeanBackward1", "SumBackward1")) and not node._saved_keepdim:
        return _restored(axes, dims, node._saved_dim)
    if name.startswith("StackBackward"):
        return axes[: node._saved_dim] + axes[node._saved_dim + 1 :]
    if name.startswith("SelectBackward"):
        return _restored(axes, dims, [node._saved_dim])
    return axes if dims == len(axes) else None


def _reshaped(shape: Sequence[int], axes: tuple[int, ...], before: Sequence[int]) -> tuple[int, ...]:
    """Axes of the same size and the same stride are the same; others are not known."""
    places = {(size, math.prod(shape[i + 1 :])): axes[i] for i, size in enumerate(shape) if size > 1}
    return tuple(places.get((size, math.prod(before[i + 1 :])), -1) for i, size in enumerate(before))


def _restored(axes: tuple[int, ...], dims: int, removed: Sequence[int]) -> tuple[int, ...] | None:
    """Axes before some were taken away."""
    gone = {_signed(axis) % dims for axis in removed}
    if len(axes) + len(gone) != dims:
        return None
    left = iter(axes)
    return tuple(-1 if axis in gone else next(left) for axis in range(dims))


def _signed(number: int) -> int:
    """Autograd saves negative axes as 64-bit numbers without sign."""
    return number - 2**64 if number >= 2**63 else number
