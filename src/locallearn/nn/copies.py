"""Copies of a user's model that share nothing with it, and the promise that the model itself is left as it was."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from locallearn.errors import UsageError


def copied(model: nn.Module, shared: Iterable[Tensor] = ()) -> nn.Module:
    """A copy with weights and everything else of its own, but for the tensors that are ``shared``.

    Raises:
        UsageError: it cannot be copied.
    """
    return converted(model, lambda tensor: tensor.detach().clone(), shared)


def without_data(model: nn.Module, device: torch.device | str = "meta") -> nn.Module:
    """A copy whose parameters, buffers and other tensors are on the meta device: shapes without memory.

    Args:
        model: the model.
        device: in torch's ``FakeTensorMode``, which gives tensors of other devices no memory either, one of those.

    Raises:
        UsageError: it cannot be copied.
    """
    return converted(model, lambda tensor: torch.empty_like(tensor, device=device))


def converted(model: nn.Module, convert: Callable[[Tensor], Tensor], shared: Iterable[Tensor] = ()) -> nn.Module:
    """A copy with what ``convert`` makes of every tensor, but for those that are ``shared``.

    Raises:
        UsageError: it cannot be copied.
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in shared}
    for name, parameter in model.named_parameters():
        if id(parameter) in memo:
            continue
        if is_lazy(parameter):
            raise UsageError(f"model: {name} has no shape yet; run the model once, then split it")
        if type(parameter) is nn.Parameter or getattr(
            parameter, "_is_param", False
        ):  # which marks other tensors' as such
            made = nn.Parameter(convert(parameter), requires_grad=parameter.requires_grad)
            for hook in (parameter._backward_hooks or {}).values():  # such as one that masks a gradient
                made.register_hook(hook)
            memo[id(parameter)] = made
    memo |= {id(each): _same_draws(each) for each in _generators(model)}
    try:
        with _Converting(convert):
            return copy.deepcopy(model, memo)
    except Exception as error:
        expected = f"copy.deepcopy says: {type(error).__name__}: {error}"
        raise UsageError(
            f"model: {type(model).__name__} cannot be copied, which a split needs; {expected}"
        ) from error


def _generators(model: nn.Module) -> Iterator[torch.Generator]:
    """Generators of torch that submodules have in attributes, of which ``copy.deepcopy`` makes nothing."""
    for part in model.modules():
        yield from (value for value in vars(part).values() if isinstance(value, torch.Generator))


def _same_draws(generator: torch.Generator) -> torch.Generator:
    made = torch.Generator(generator.device)
    made.set_state(generator.get_state())
    return made


class _Converting(TorchFunctionMode):
    """While it lasts, ``copy.deepcopy`` makes another tensor of every tensor as ``convert`` says.

    So tensors that a module keeps in attributes are converted too, and results of operations, which torch itself does
    not copy (as in the older form of weight norm), are copied without their graph.
    """

    def __init__(self, convert: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._convert = convert

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        if id(tensor) not in memo:
            made = self._convert(tensor)
            memo[id(tensor)] = made.requires_grad_(tensor.requires_grad and tensor.is_leaf)
        return memo[id(tensor)]


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Run a copy of ``model``: random states are put back, and the model itself is never called.

    Raises:
        UsageError: something in the copy called the model itself, as functions do that keep a reference to it.
    """

    def refuse(path: str) -> Any:
        def called(*_: Any) -> None:
            raise _CallsItselfError(
                f"model: a copy of {type(model).__name__} still calls {path or 'the model itself'}, through a "
                "function, hook or partial that keeps a reference to it; reach it through self instead"
            )

        return called

    hooks = [part.register_forward_pre_hook(refuse(path)) for path, part in model.named_modules()]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.is_cuda})
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for hook in hooks:
            hook.remove()


class _CallsItselfError(UsageError):
    """A copy calls what it is a copy of."""
