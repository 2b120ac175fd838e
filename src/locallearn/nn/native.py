"""The one door to kernels of our own: without the house ``locallearn.kernels`` torch's operators compute."""

from __future__ import annotations

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

__all__ = ["build", "conv", "norm"]
