"""Activation memory, measured: the bytes that autograd keeps for the backward pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class ActivationMeter:
    """Counts the bytes saved for backward while it is entered, their peak, and those of the largest storage.

    Storages are counted once however often they are saved, and parameters not at all. The count is the same on
    every device, and for tensors without data. Bytes fall again as graphs are freed, so a network whose modules
    free their graph one after the other peaks at its largest module and not at the sum.

    Args:
        parameters: tensors that are there anyway and do not count.
    """

    def __init__(self, parameters: Iterable[Tensor] = ()) -> None:
        self.live_bytes = 0
        self.peak_bytes = 0
        self.largest_bytes = 0
        self._excluded = {p.untyped_storage()._cdata for p in parameters}
        self._references: Counter[int] = Counter()
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda held: held.tensor)

    def __enter__(self) -> ActivationMeter:
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._hooks.__exit__(*exception)

    def holds(self, tensor: Tensor) -> bool:
        """Whether the memory of a tensor is kept now."""
        return self._references[tensor.untyped_storage()._cdata] > 0

    def _pack(self, tensor: Tensor) -> _Held:
        return _Held(self, tensor)

    def _hold(self, storage: torch.UntypedStorage) -> int:
        key = storage._cdata  # the storage itself and not its address: tensors without data have none
        if key in self._excluded:
            return 0
        self._references[key] += 1
        if self._references[key] == 1:
            self.live_bytes += storage.nbytes()
            self.peak_bytes = max(self.peak_bytes, self.live_bytes)
            self.largest_bytes = max(self.largest_bytes, storage.nbytes())
        return key

    def _release(self, key: int, n_bytes: int) -> None:
        self._references[key] -= 1
        if self._references[key] == 0:
            self.live_bytes -= n_bytes


class _Held:
    """A saved tensor; it tells its meter when autograd drops it."""

    _key = 0

    def __init__(self, meter: ActivationMeter, tensor: Tensor) -> None:
        self.tensor = tensor
        self._meter = meter
        values = (
            tensor if tensor.layout == torch.strided else tensor._values() if tensor.is_sparse else tensor.values()
        )
        self._bytes = values.untyped_storage().nbytes()
        self._key = meter._hold(values.untyped_storage())

    def __del__(self) -> None:
        if self._key:
            self._meter._release(self._key, self._bytes)
