"""What stages send each other: a header that names what comes, and a payload."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from locallearn.errors import LocalLearnError

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_MAX_DIMS = 5
FIELDS = 7 + 2 * _MAX_DIMS
_VERSION = 1


class TransportError(LocalLearnError):
    """What arrived is not what was awaited."""


class Header(NamedTuple):
    """What a message is: features of ``module`` at ``step``, and whether training stops after them."""

    step: int
    module: int
    last: bool
    dtype: torch.dtype
    wire: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def pack(self) -> Tensor:
        """As int64."""
        pad = [0] * (_MAX_DIMS - len(self.shape))
        codes = _DTYPES.index(self.dtype), _DTYPES.index(self.wire)
        head = [_VERSION, self.step, self.module, int(self.last), *codes, len(self.shape)]
        return torch.tensor([*head, *self.shape, *pad, *self.stride, *pad])

    @classmethod
    def unpack(cls, packed: Tensor) -> Header:
        """From int64."""
        version, step, module, last, dtype, wire, dims, *sizes = packed.tolist()
        if version != _VERSION or not 0 <= dims <= _MAX_DIMS:
            raise TransportError("it is not a message of this version of locallearn")
        shape, stride = tuple(sizes[:dims]), tuple(sizes[_MAX_DIMS : _MAX_DIMS + dims])
        return cls(step, module, bool(last), _DTYPES[dtype], _DTYPES[wire], shape, stride)


def dense(x: Tensor) -> Tensor:
    """The same tensor in memory without gaps; channels-last memory is kept."""
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return x if last or x.is_contiguous() else x.contiguous()


def without_gaps(x: Tensor) -> Tensor:
    """The same tensor in memory without gaps, in the order that its axes have there.

    Operators may round otherwise where axes lie in another order, which features so keep on their way.
    """
    order = sorted(range(x.dim()), key=x.stride, reverse=True)
    return x if x.permute(order).is_contiguous() else x.contiguous()


def flat(x: Tensor) -> Tensor:
    """The memory of a dense tensor as one dimension."""
    return x.as_strided((x.numel(),), (1,))


class Link(NamedTuple):
    """One end of a connection: the other rank, and how messages name it."""

    rank: int
    name: str


def elements(shape: Sequence[int]) -> int:
    """Numbers in a tensor of this shape."""
    size = 1
    for n in shape:
        size *= n
    return size
