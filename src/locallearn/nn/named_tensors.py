"""Parameters and buffers of a model by name."""

from __future__ import annotations

from torch import Tensor, nn


def kept_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, each once, also where the model's own ``state_dict`` leaves them out."""
    passing = {
        f"{path}.{name}".lstrip(".")
        for path, part in model.named_modules()
        for name in part._non_persistent_buffers_set
    }
    buffers = {name: value for name, value in model.named_buffers() if name not in passing}
    return {name: p.detach() for name, p in model.named_parameters()} | buffers
