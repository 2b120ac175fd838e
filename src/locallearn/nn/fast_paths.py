"""torch's shortcuts for transformers in eval mode, switched off where stages begin and end inside of them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

_lock = threading.Lock()
_inside = 0
_before = True


@contextlib.contextmanager
def layer_by_layer() -> Iterator[None]:
    """``torch.nn.TransformerEncoder`` computes its layers one by one while it lasts, as it does in training.

    In eval mode with a padding mask it packs its input into a nested tensor before the first layer, which has no
    shape for a head, and gives zeros for padding, which it does not in training. The switch is the process's; it is
    as it was when the last of the threads that asked for it leaves.
    """
    global _inside, _before
    with _lock:
        if not _inside:
            _before = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                torch.backends.mha.set_fastpath_enabled(_before)
