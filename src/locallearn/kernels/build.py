"""Compiling and loading the C sources of this folder, when they are first needed."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from locallearn import processor
from locallearn.errors import ConfigError
from locallearn.kernels import code_cache

VARIABLE = "LOCALLEARN_KERNELS"
"""The environment variable: ``auto`` (or nothing), ``native`` (an error where they cannot be had) or ``torch``."""

LANES = 16
"""Numbers of 32 bits in a vector register."""


@dataclass(frozen=True)
class Kernels:
    """What this process computes with.

    Attributes:
        libraries: compiled code by the type of its numbers; none where torch's operators are used.
        why_not: why there is none, or not for every type; nothing where the processor lacks what a type needs.
    """

    libraries: Mapping[torch.dtype, ctypes.CDLL] = field(default_factory=dict)
    why_not: str = ""

    def __str__(self) -> str:
        """For people: what a figure was measured with."""
        kinds = ["bf16" if dtype == torch.bfloat16 else "fp32" for dtype in self.libraries]
        if not kinds:
            return f"torch ({self.why_not})"
        return f"native ({', '.join(kinds)}{'; ' if self.why_not else ''}{self.why_not})"


@functools.cache
def kernels() -> Kernels:
    """Compile and load them, once a process; compiled code is kept in the user's cache folder.

    Raises:
        ConfigError: ``VARIABLE`` is none of its values, or ``native`` where there can be none.
    """
    wanted = os.environ.get(VARIABLE) or "auto"
    if wanted not in ("auto", "native", "torch"):
        raise ConfigError(VARIABLE, wanted, "auto, native or torch")
    if wanted == "torch":
        return Kernels(why_not=f"{VARIABLE}=torch")
    found = _load()
    if wanted == "native" and not found.libraries:
        raise ConfigError(VARIABLE, wanted, f"auto or torch: {found.why_not}")
    return found


def _load() -> Kernels:
    if platform.system() != "Linux" or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return Kernels(why_not="needs Linux on a CPU with AVX-512")
    libraries, missing = {}, {}
    for dtype, flags in _kinds().items():
        try:
            library = code_cache.library(flags)
        except code_cache.UnavailableError as error:  # the other type may do all the same
            missing[dtype] = str(error)
            continue
        if library.supported():
            libraries[dtype] = library
    return Kernels(libraries, "; ".join(dict.fromkeys(missing.values())))


def _kinds() -> dict[torch.dtype, tuple[str, ...]]:
    """What is defined for the code of each type of numbers."""
    return {torch.bfloat16: ("-DBF16",) if processor.prefers_float() else ("-DBF16", "-DDOT"), torch.float32: ()}


@torch.compiler.assume_constant_result
def pair(dtype: torch.dtype) -> int:
    """How many input channels are multiplied at a time in numbers of this type; 0 where there is no code for it."""
    library = kernels().libraries.get(dtype)
    return 0 if library is None else library.pair()


def take(x: Tensor) -> bool:
    """Whether there is code for maps of this type, device and layout."""
    if type(x) is not Tensor or x.device.type != "cpu" or not pair(x.dtype):  # as a fake tensor
        return False
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


def at(t: Tensor | None) -> ctypes.c_void_p:
    """Where a tensor's numbers begin; NULL for none."""
    return ctypes.c_void_p(None if t is None else t.data_ptr())
