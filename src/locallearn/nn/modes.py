"""Training and evaluation modes of modules."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from locallearn.nn.fast_paths import layer_by_layer


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode while it lasts; every part has the mode that it had in the end."""
    modes = {part: part.training for part in model.modules()}
    model.eval()
    try:
        with layer_by_layer():
            yield
    finally:
        for part, training in modes.items():
            part.training = training
