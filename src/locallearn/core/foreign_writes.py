"""What a forward pass writes into, where stages that compute apart would each do so."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from locallearn.errors import ConfigError


class ForeignWrites:
    """Frozen parameters and shared buffers of other stages, as they are before a stage's first pass.

    A submodule that gradients do not pass, as a teacher that follows the model by a moving average, runs in every
    stage that computes apart; so does the code of the model's own forward method. What they write would be written
    several times.

    Args:
        view: the modules that the stage computes with.
        own: names of the parameters that belong to the stage.
        buffers: names of the buffers of other stages that are not copies here.
    """

    def __init__(self, view: nn.Module, own: Collection[str], buffers: Collection[str]) -> None:
        frozen = {name: p for name, p in view.named_parameters() if not p.requires_grad and name not in own}
        self._watched: dict[str, Tensor] = frozen | {name: view.get_buffer(name) for name in sorted(buffers)}
        self._before = {name: _state(x) for name, x in self._watched.items()}

    def check(self, cut: str) -> None:
        """Refuse a stage that has written into some of them.

        Args:
            cut: where it begins.

        Raises:
            ConfigError: it has.
        """
        for name, tensor in self._watched.items():
            if _state(tensor) != self._before[name]:
                expected = (
                    f"another one for stages that compute apart: the forward pass writes into {name}, which every "
                )
                raise ConfigError("cuts", cut, f"{expected}stage that runs it would do; runtime inline trains it")


def _state(x: Tensor) -> Any:
    """What tells a tensor's memory and values apart from others, without a copy."""
    kind = torch.complex128 if x.is_complex() else torch.float64
    return x.data_ptr(), str(x.detach().sum(dtype=kind).item())
