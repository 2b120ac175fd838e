"""The one door to kernels of our own: without the house ``locallearn.kernels`` torch's operators compute."""

from __future__ import annotations

import torch
from torch import Tensor

from locallearn.nn.precision import as_autocast

try:
    from locallearn.kernels import (
        build,
        conv,
        norm,
        operators,  # noqa: F401 (registered by being imported)
    )
except ModuleNotFoundError:  # the house is not installed
    from locallearn.nn import no_kernels as build
    from locallearn.nn import no_kernels as conv
    from locallearn.nn import no_kernels as norm

__all__ = ["build", "conv", "laid_out", "norm"]


def laid_out(x: Tensor) -> Tensor:
    """Maps [B, C, H, W] in the memory layout that the kernels take, where there are any for what they are cast to."""
    if x.dim() != 4 or x.device.type != "cpu" or not build.pair(as_autocast(x).dtype):
        return x
    return x.contiguous(memory_format=torch.channels_last)
