"""What is never computed in half precision."""

from __future__ import annotations

import torch
from torch import Tensor


def precise(x: Tensor) -> Tensor:
    """At least fp32: losses and sums over a batch are never computed in half precision."""
    return x.float() if x.dtype.itemsize < 4 else x


def as_autocast(x: Tensor) -> Tensor:
    """Cast as autocast does, which does not look inside a custom function."""
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        return x.to(torch.get_autocast_dtype(device))
    return x
