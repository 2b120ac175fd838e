"""What a training step moves between the memory and the cores of a device, counted on tensors without data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from locallearn.config import TrainConfig
from locallearn.core.image_shape import ImageShape
from locallearn.core.local_step import LocalStep
from locallearn.core.network import LocalNetwork
from locallearn.costs.steps import without_data

_PRODUCTS = ("convolution", "mm", "addmm", "bmm", "baddbmm", "_scaled_dot_product")
"""How the names of convolutions, matrix products and attention, and of their gradients, begin."""
_UNREAD = ("copy_", "fill_", "zero_")
"""They write over what was there."""
NOTHING = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")


class Traffic(TorchDispatchMode):
    """Counts, while it is entered, the operators that torch dispatches and the bytes that they must move.

    Every operator reads each tensor that it is given once and writes each that it makes or changes once, however it
    is computed; views move nothing.

    Args:
        number_bytes: of a number in fp32, where the same step in another precision is meant; by default 4.

    Attributes:
        operators: how many were dispatched, views included.
        bytes: what all of them move.
        product_bytes: of it convolutions and matrix products: what is left if all others are fused with them.
    """

    def __init__(self, number_bytes: int = 4) -> None:
        super().__init__()
        self.operators = self.bytes = self.product_bytes = 0
        self._number_bytes = number_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the operator and count it."""
        out = func(*args, **(kwargs or {}))
        if func.namespace != "aten":  # questions about a tensor, and marks for the profiler
            return out
        self.operators += 1
        name = func.overloadpacket.__name__
        moved = 0 if func.is_view or name in NOTHING else self._moved(func, args, kwargs or {}, out)
        self.bytes += moved
        if name.startswith(_PRODUCTS):
            self.product_bytes += moved
        return out

    def _moved(self, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> int:
        schema, over = func._schema, func.overloadpacket.__name__ in _UNREAD
        given = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | kwargs
        changed = [given.get(a.name) for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        read = [value for value in given.values() if not (over and any(value is c for c in changed))]
        return self._size(read) + self._size(changed or out)

    def _size(self, tensors: Any) -> int:
        """Bytes of some tensors, each counted once, and so is every number that one repeats."""
        distinct = {
            (t.untyped_storage()._cdata, t.storage_offset(), t.shape): t
            for t in tree_leaves(tensors)
            if isinstance(t, Tensor)
        }
        return sum(self._bytes(tensor) for tensor in distinct.values())

    def _bytes(self, tensor: Tensor) -> int:
        numbers = math.prod(size for size, step in zip(tensor.shape, tensor.stride(), strict=True) if step)
        there = numbers * tensor.element_size()
        return there * self._number_bytes // 4 if tensor.dtype == torch.float32 else there


def step_traffic(
    network: LocalNetwork,
    image: ImageShape,
    train: TrainConfig,
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
) -> Traffic:
    """What one training step of a network moves with torch's operators, one after the other.

    The step is made in fp32, and in bf16 every number is taken for one of two bytes: weights and what the optimizer
    keeps, too, which are a thousandth of the maps. Making the batch is not counted.

    Args:
        network: the network.
        image: what it was built for.
        train: batch size, precision and layout.
        optimizer: makes a module's optimizer.
    """
    with without_data(network, image, train) as (network, batch):
        steps = [LocalStep(module, optimizer(module.parameters())) for module in network]
        for traffic in (Traffic(), Traffic(2 if train.precision == "bf16" else 4)):  # the first makes buffers
            features = batch.images
            with traffic:
                for step in steps:
                    features, _ = step(features, batch)
    return traffic
