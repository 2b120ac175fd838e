"""Torch's generators, put back where a stage's own computation begins."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor


def restoring(device: torch.device) -> Callable[[], None]:
    """A function that puts torch's generators back to where they are now, that of the device too."""
    return partial(_set, device, _now(device))


def nothing() -> None:
    """Does nothing, in the place of such a function."""


def _now(device: torch.device) -> tuple[Tensor, ...]:
    state = (torch.get_rng_state(),)
    return (*state, torch.cuda.get_rng_state(device)) if device.type == "cuda" else state


def _set(device: torch.device, states: tuple[Tensor, ...]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
