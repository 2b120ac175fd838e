"""Compiling and loading the C sources of this folder, when they are first needed."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from locallearn.errors import ConfigError
from locallearn.nn.native import processor

VARIABLE = "LOCALLEARN_KERNELS"
"""The environment variable: ``auto`` (or nothing), ``native`` (an error where they cannot be had) or ``torch``."""

LANES = 16
"""Numbers of 32 bits in a vector register."""

_SOURCES = tuple(Path(__file__).with_name(name) for name in ("vectors.h", "conv.c", "norm.c"))
_COMPILE = ("-O3", "-fopenmp", "-fPIC", "-c")  # linked without OpenMP: torch's own is there, with its threads
_SECONDS = 120


@dataclass(frozen=True)
class Kernels:
    """What this process computes with.

    Attributes:
        libraries: compiled code by the type of its numbers; none where torch's operators are used.
        why_not: why there is none.
    """

    libraries: Mapping[torch.dtype, ctypes.CDLL] = field(default_factory=dict)
    why_not: str = ""

    def __str__(self) -> str:
        """For people: what a figure was measured with."""
        kinds = ["bf16" if dtype == torch.bfloat16 else "fp32" for dtype in self.libraries]
        return f"native ({', '.join(kinds)})" if kinds else f"torch ({self.why_not})"

    def take(self, x: Tensor) -> bool:
        """Whether there is code for maps of this type, device and layout."""
        if type(x) is not Tensor or x.device.type != "cpu" or x.dtype not in self.libraries:  # as a fake tensor
            return False
        return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


@functools.cache
def kernels() -> Kernels:
    """Compile and load them, once a process; compiled code is kept in the user's cache folder.

    Raises:
        ConfigError: :data:`VARIABLE` is none of its values, or ``native`` where there can be none.
    """
    wanted = os.environ.get(VARIABLE) or "auto"
    if wanted not in ("auto", "native", "torch"):
        raise ConfigError(VARIABLE, wanted, "auto, native or torch")
    if wanted == "torch":
        return Kernels(why_not=f"{VARIABLE}=torch")
    try:
        return Kernels(_load())
    except _UnavailableError as error:
        if wanted == "native":
            raise ConfigError(VARIABLE, wanted, f"auto or torch: {error}") from None
        return Kernels(why_not=str(error))


class _UnavailableError(Exception):
    """Why there are no kernels."""


def _load() -> dict[torch.dtype, ctypes.CDLL]:
    if platform.system() != "Linux" or torch.backends.cpu.get_cpu_capability() != "AVX512":
        raise _UnavailableError("needs Linux on a CPU with AVX-512")
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise _UnavailableError("no C compiler: neither CC is set nor gcc installed")
    libraries = {}
    for dtype, flags in _kinds().items():
        try:
            library = ctypes.CDLL(str(_compiled(compiler, flags)), mode=os.RTLD_NOW)
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: nobody has a home here
            raise _UnavailableError(f"{compiler}: {_last_line(error)}") from None
        if library.supported():
            libraries[dtype] = library
    return libraries


def _kinds() -> dict[torch.dtype, tuple[str, ...]]:
    """What is defined for the code of each type of numbers."""
    return {torch.bfloat16: ("-DBF16",) if processor.prefers_float() else ("-DBF16", "-DDOT"), torch.float32: ()}


def _last_line(error: Exception) -> str:
    text = getattr(error, "stderr", None) or str(error)
    return text.strip().splitlines()[-1]


def _compiled(compiler: str, flags: tuple[str, ...]) -> Path:
    """The library of one type of numbers; a newer source or another compiler makes another file."""
    sources = b"".join(path.read_bytes() for path in _SOURCES)
    made_from = "\0".join((compiler, *flags, *_COMPILE, torch.__version__)).encode() + sources
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "locallearn"
    target = folder / f"native-{hashlib.sha256(made_from).hexdigest()[:16]}.so"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            objects = [Path(scratch, path.stem).with_suffix(".o") for path in _SOURCES if path.suffix == ".c"]
            for made in objects:
                _run(compiler, *_COMPILE, *flags, Path(__file__).with_name(f"{made.stem}.c"), "-o", made)
            library = Path(scratch, "native.so")
            _run(compiler, "-shared", *objects, "-o", library)
            library.replace(target)
    return target


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS)


def at(t: Tensor | None) -> ctypes.c_void_p:
    """Where a tensor's numbers begin; NULL for none."""
    return ctypes.c_void_p(None if t is None else t.data_ptr())
