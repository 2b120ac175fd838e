"""Which submodules of a model run on a batch, and what they give."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from locallearn.core.batches import ModelCall
from locallearn.core.generators import keeping
from locallearn.nn.copies import copied, without_data
from locallearn.nn.features import features_of, map_tensors, tensors_of
from locallearn.nn.hooks import removed_after

_RECORDING = threading.Lock()
"""Stages that train at the same time share a recorder, whose copy of the model runs once at a time."""


_SIGNATURES = 64
"""Shapes of inputs whose answers are remembered."""


@dataclass
class Ran:
    """One call of a submodule in a recorded forward pass.

    Attributes:
        path: name of the submodule.
        parent: the call that it was made in; None for the model's own.
        ended: how many calls had ended before it.
        output: what it gave, with placeholders for tensors; None where no gradient reaches it.
        changed: whether what it gave is changed in place later in the pass.
        tensors: what names the tensors that it gave, as far as gradients reach it; a submodule that hands on what it
            was given has the same names.
    """

    path: str
    parent: Ran | None
    ended: int = -1
    output: Any = None
    changed: bool = False
    tensors: tuple[int, ...] = ()


class Recorder:
    """Records which submodules run, and what they give, by running a copy of a model without data.

    Where the model looks at values in its forward pass, a copy that shares its weights runs on the batch itself. What
    generators draw is as if it had not run.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._real, self._empty = model, without_data(model)
        self._known: OrderedDict[Any, list[Ran]] = OrderedDict()

    def __call__(self, call: ModelCall) -> list[Ran]:
        """The calls of submodules on inputs of these shapes, in the order in which they started."""
        leaves, structure = tree_flatten((call.args, call.kwargs))
        key = (str(structure), tuple((x.shape, x.dtype) if isinstance(x, Tensor) else repr(x) for x in leaves))
        with _RECORDING:
            if key not in self._known:
                self._known[key] = self._record(call)
                if len(self._known) > _SIGNATURES:
                    self._known.popitem(last=False)
            self._known.move_to_end(key)
            return self._known[key]

    def _record(self, call: ModelCall) -> list[Ran]:
        device = next((p.device for p in self._real.parameters()), torch.device("cpu"))
        with keeping(device):
            return self._tried(call)

    def _tried(self, call: ModelCall) -> list[Ran]:
        args, kwargs = tree_map_only(Tensor, lambda x: x.to("meta"), (call.args, call.kwargs))
        try:
            return _recorded(self._empty, args, kwargs)
        except Exception:
            return _recorded(share(self._real, buffers=False), call.args, call.kwargs)


def share(model: nn.Module, buffers: bool = True, apart: Sequence[str] = ()) -> nn.Module:
    """A copy of a model with modules of its own and the same parameters.

    Args:
        model: the model.
        buffers: whether buffers are the same too, or copies.
        apart: names of parameters and buffers that are copies.
    """
    named = [*model.named_parameters(), *(model.named_buffers() if buffers else ())]
    copies = set(apart)
    return copied(model, [tensor for name, tensor in named if name not in copies])


def _recorded(model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Ran]:
    started: list[Ran] = []
    open_calls: list[Ran] = []
    ended = 0
    versions: list[tuple[Ran, list[Tensor], list[int]]] = []

    def enter(path: str) -> Callable[..., None]:
        def begin(*_: Any) -> None:
            started.append(Ran(path, open_calls[-1] if open_calls else None))
            open_calls.append(started[-1])

        return begin

    def leave(_module: nn.Module, _args: Any, output: Any) -> None:
        nonlocal ended
        ran = open_calls.pop()
        ran.ended, ended = ended, ended + 1
        features = features_of(output)
        if features is not None and features.requires_grad:
            ran.output = map_tensors(output, _spec)
            made = tensors_of(output)
            ran.tensors = tuple(map(id, made))  # which are all alive until the pass ends
            versions.append((ran, made, [x._version for x in made]))

    hooks = []
    for path, module in model.named_modules():
        hooks += [module.register_forward_pre_hook(enter(path)), module.register_forward_hook(leave)]
    with removed_after(hooks), torch.enable_grad():
        model(*args, **kwargs)
    for ran, made, before in versions:
        ran.changed = [x._version for x in made] != before
    return started


def _spec(x: Tensor) -> Tensor:
    return torch.empty_like(x, device="meta", requires_grad=False)
