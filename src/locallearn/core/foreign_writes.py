"""What a forward pass writes into, where stages that compute apart would each do so, or of what others train."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from locallearn.errors import ConfigError
from locallearn.nn.features import tensors_of


class ForeignWrites(TorchFunctionMode):
    """Watches a stage's first pass, while it is entered.

    A submodule that gradients do not pass, as a teacher that follows the model by a moving average, runs in every
    stage that computes apart; so does the code of the model's own forward method. What they write would be written
    several times; and what they make of weights that other stages train, of another step's weights.

    Args:
        view: the modules that the stage computes with.
        own: names of the parameters that belong to the stage, and of those that it has copies of.
        buffers: names of the buffers of other stages that are not copies here.
    """

    def __init__(self, view: nn.Module, own: Collection[str], buffers: Collection[str]) -> None:
        super().__init__()
        named = dict(view.named_parameters())
        frozen = {name: p for name, p in named.items() if not p.requires_grad}
        self._others = {name: p for name, p in frozen.items() if name not in own}
        self._others |= {name: view.get_buffer(name) for name in sorted(buffers)}
        self._own = {name: p for name, p in frozen.items() if name in own}
        self._trained = {id(p): name for name, p in named.items() if p.requires_grad and name not in own}
        self._read = ""
        self._before = {name: _state(x) for name, x in (self._others | self._own).items()}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self._read and isinstance(result, Tensor):
            given = tensors_of([*args, *(kwargs or {}).values()])
            self._read = next((self._trained[id(x)] for x in given if id(x) in self._trained), "")
        return result

    def check(self, cut: str) -> None:
        """Refuse a stage that has written what it alone should not.

        Args:
            cut: where it begins.

        Raises:
            ConfigError: it has written into something of other stages, or into its own of what they train.
        """
        expected = "another one for stages that compute apart: the forward pass writes into"
        written = self._changed(self._others)
        if written:
            expected = f"{expected} {written}, which every stage that runs it would do"
            raise ConfigError("cuts", cut, f"{expected}; runtime inline trains it")
        written = self._changed(self._own)
        if written and self._read:
            expected = f"{expected} {written}, and looks at {self._read}, which another stage trains meanwhile"
            raise ConfigError("cuts", cut, f"{expected}; runtime inline trains it")

    def _changed(self, watched: Iterable[str]) -> str:
        now = self._others | self._own
        return next((name for name in watched if _state(now[name]) != self._before[name]), "")


def _state(x: Tensor) -> Any:
    """What tells a tensor's memory and values apart from others, without a copy."""
    kind = torch.complex128 if x.is_complex() else torch.float64
    return x.data_ptr(), str(x.detach().sum(dtype=kind).item())
