"""What a forward pass draws from: the generators of torch, numpy and Python, seeded and put back together.

Models of others draw from any of them: layers are dropped and masks are made with numpy and ``random``, too.
"""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seed all of them, those of all devices too."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextlib.contextmanager
def keeping(device: torch.device) -> Iterator[None]:
    """Leave all of them at the end as they were, that of the device too."""
    back = restoring(device)
    try:
        yield
    finally:
        back()


def restoring(device: torch.device) -> Callable[[], None]:
    """A function that puts all of them back to where they are now, that of the device too."""
    states = (torch.get_rng_state(), np.random.get_state(), random.getstate())
    return partial(_set, device, *states, torch.cuda.get_rng_state(device) if device.type == "cuda" else None)


def nothing() -> None:
    """Does nothing, in the place of such a function."""


def _set(device: torch.device, of_torch: Any, of_numpy: Any, of_python: Any, of_device: Any) -> None:
    torch.set_rng_state(of_torch)
    np.random.set_state(of_numpy)
    random.setstate(of_python)
    if of_device is not None:
        torch.cuda.set_rng_state(of_device, device)


def generator_state(generator: Any) -> Any:
    """Where a generator of torch, numpy or Python's ``random`` that a model has for itself is."""
    if isinstance(generator, torch.Generator):
        return generator.get_state().tolist()
    if isinstance(generator, np.random.Generator):
        return copy.deepcopy(generator.bit_generator.state)
    return generator.get_state(legacy=False) if isinstance(generator, np.random.RandomState) else generator.getstate()


def set_generator(generator: Any, state: Any) -> None:
    """Put it where ``generator_state`` found it."""
    if isinstance(generator, torch.Generator):
        generator.set_state(torch.tensor(state, dtype=torch.uint8))
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        generator.setstate(state)
