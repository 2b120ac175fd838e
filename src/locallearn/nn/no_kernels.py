"""What stands for ``locallearn.kernels`` where they are not installed: no kernel fits anything."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch

from locallearn.errors import ConfigError

LANES = 16
"""Numbers of 32 bits in a vector register, which some layers choose by."""


@dataclass(frozen=True)
class Kernels:
    """No compiled code."""

    libraries: Mapping[torch.dtype, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """For people: what a figure was measured with."""
        return "torch (locallearn.kernels is not installed)"


@functools.cache
def kernels() -> Kernels:
    """None.

    Raises:
        ConfigError: the environment asks for them.
    """
    if os.environ.get("LOCALLEARN_KERNELS") == "native":
        raise ConfigError("LOCALLEARN_KERNELS", "native", "auto or torch: locallearn.kernels is not installed")
    return Kernels()


def fits(*_: object, **__: object) -> bool:
    """Whether a kernel takes this input."""
    return False


fits_weight = ahead = behind = fits


def pair(_: torch.dtype) -> int:
    """How many input channels a kernel multiplies at a time: there is none."""
    return 0


def _missing(*_: object, **__: object) -> NoReturn:
    raise RuntimeError("locallearn.kernels is not installed, and nothing fits it")  # unreachable: fits() was asked


grouped = convolution = input_gradient = weight_gradient = statistics = norm_relu = _missing
