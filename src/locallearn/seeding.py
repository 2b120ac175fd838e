"""One seed per purpose, so that no draw depends on which process makes it or on what was drawn before."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def derive(seed: int, *keys: int | str) -> int:
    """A 63-bit seed for one purpose of a run, for example ``derive(seed, "init", module, group)``.

    Equal arguments give equal seeds on every machine; any other key gives an unrelated one.
    """
    text = "/".join([str(seed), *(f"{type(key).__name__}:{key}" for key in keys)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *keys: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator seeded with ``derive``."""
    return torch.Generator(device=device).manual_seed(derive(seed, *keys))


@contextlib.contextmanager
def seeded(seed: int, *keys: int | str) -> Iterator[None]:
    """Draws from torch's global CPU generator are seeded with ``derive`` in here, and leave no trace outside."""
    with torch.random.fork_rng([]):
        torch.manual_seed(derive(seed, *keys))
        yield
