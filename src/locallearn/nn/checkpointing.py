"""Activation checkpointing inside a user's model, where only a stage's own parameters get gradients."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch.utils.checkpoint as torch_checkpoint

_LOCK = threading.Lock()
_INSIDE = threading.local()
_REENTRANT: Any = torch_checkpoint.CheckpointFunction
_users = 0


class _NonReentrant:
    """Stands for ``CheckpointFunction``, whose backward pass cannot be limited to some parameters."""

    @staticmethod
    def apply(function: Any, preserve_rng_state: bool, *args: Any) -> Any:
        if not getattr(_INSIDE, "depth", 0):
            return _REENTRANT.apply(function, preserve_rng_state, *args)
        return torch_checkpoint.checkpoint(
            function, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state
        )


@contextlib.contextmanager
def non_reentrant() -> Iterator[None]:
    """While it lasts, ``checkpoint(..., use_reentrant=True)`` on this thread computes as with ``False``.

    The values are the same; but the reentrant form hides its parameters from the graph, gives gradients to all of
    them, and refuses a backward pass for some.
    """
    global _users
    with _LOCK:
        _users += 1
        torch_checkpoint.CheckpointFunction = _NonReentrant  # type: ignore[misc,assignment]
    _INSIDE.depth = getattr(_INSIDE, "depth", 0) + 1
    try:
        yield
    finally:
        _INSIDE.depth -= 1
        with _LOCK:
            _users -= 1
            if not _users:
                torch_checkpoint.CheckpointFunction = _REENTRANT  # type: ignore[misc]
