"""What submodules of a user's model keep from batch to batch in attributes: states, counts, buffers made anew."""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from locallearn.core.generators import generator_state, set_generator

_NOT_KEPT = frozenset((*vars(nn.Module()), "forward"))
"""What torch itself has in attributes, and a method that a stage which computes alone replaces."""
_CONTAINERS = (list, dict, set, deque)
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
_BUFFER = "_buffers."


class Attributes:
    """What submodules have in attributes and buffers at a moment.

    Args:
        model: whose.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._before = {path: _held(part) for path, part in model.named_modules()}
        values = [value for held in self._before.values() for value in held.values()]
        self._versions = {id(x): x._version for x in values if isinstance(x, Tensor) and not x.is_inference()}
        self._contents = {id(x): _content(x) for x in values if isinstance(x, (*_CONTAINERS, *_GENERATORS, Tensor))}

    def changed(self) -> list[tuple[str, str]]:
        """(path, name) of those that are something else now."""
        found = []
        for path, part in self._model.named_modules():
            before, now = self._before.get(path, {}), _held(part)
            names = dict.fromkeys([*before, *now])
            found += [(path, name) for name in names if self._differ(before.get(name, self), now.get(name, self))]
        return found

    def made_anew(self, own: Collection[str]) -> list[tuple[str, str]]:
        """The same, of buffers only those that are other tensors now; ``own`` are names of buffers that may be."""
        found = []
        for path, name in self.changed():
            part = self._model.get_submodule(path)
            held, key = _place(part, name)
            if held is part._buffers:
                kept = f"{path}.{key}" in own or key in part._non_persistent_buffers_set
                if not kept or held.get(key) is self._before[path].get(name):
                    continue
            found.append((path, name))
        return found

    def _differ(self, before: Any, now: Any) -> bool:
        if before is not now:
            return type(now) not in (bool, int, float, str) or type(before) is not type(now) or before != now
        if isinstance(now, Tensor):
            return now._version != self._versions.get(id(now))
        if isinstance(now, _GENERATORS):
            return repr(generator_state(now)) != repr(self._contents[id(now)])
        return isinstance(now, _CONTAINERS) and not _same(self._contents[id(now)], now)

    @torch.no_grad()
    def put_back(self) -> None:
        """Have all of them as they were."""
        for path, name in self.changed():
            part, before = self._model.get_submodule(path), self._before.get(path, {})
            held, key = _place(part, name)
            if name not in before:
                held.pop(key, None)
                continue
            value = held[key] = before[name]
            if isinstance(value, Tensor) and value._version != self._versions.get(id(value)):
                value.copy_(self._contents[id(value)])
            elif isinstance(value, _GENERATORS):
                set_generator(value, self._contents[id(value)])
            elif isinstance(value, (list, deque)):
                value.clear()
                value.extend(self._contents[id(value)])
            elif isinstance(value, (dict, set)):
                value.clear()
                value.update(self._contents[id(value)])


def hand_over(names: Iterable[tuple[str, str]], source: nn.Module, target: nn.Module) -> None:
    """Have a model keep what a copy of it keeps.

    Args:
        names: (path, name) of attributes and buffers, as ``Attributes.changed`` gives them.
        source: the copy.
        target: the model.
    """
    for path, name in names:
        (theirs, key), (own, _) = _place(source.get_submodule(path), name), _place(target.get_submodule(path), name)
        if key not in theirs:
            own.pop(key, None)
            continue
        value = theirs[key]
        own[key] = value.detach() if isinstance(value, Tensor) and value.grad_fn is not None else value


def move_kept(names: Iterable[tuple[str, str]], model: nn.Module, device: torch.device) -> None:
    """Put what a model keeps on a device; names as of ``hand_over``."""
    for path, name in names:
        held, key = _place(model.get_submodule(path), name)
        if isinstance(held.get(key), Tensor):
            held[key] = held[key].to(device)


def _held(part: nn.Module) -> dict[str, Any]:
    """Attributes of a module that are not torch's, and its buffers."""
    own = {name: value for name, value in vars(part).items() if name not in _NOT_KEPT}
    return own | {_BUFFER + name: value for name, value in part._buffers.items()}


def _place(part: nn.Module, name: str) -> tuple[dict[str, Any], str]:
    """The dictionary that holds an attribute or a buffer, and its name there."""
    if name.startswith(_BUFFER):
        return part._buffers, name.removeprefix(_BUFFER)
    return vars(part), name


def _content(value: Any) -> Any:
    if isinstance(value, _GENERATORS):
        return generator_state(value)
    return value.detach().clone() if isinstance(value, Tensor) else copy.copy(value)


def _same(before: Any, now: Any) -> bool:
    """Whether containers hold the same things."""
    if len(before) != len(now):
        return False
    if isinstance(now, set):
        return before == now
    if isinstance(now, dict):
        return all(key in before and before[key] is value for key, value in now.items())
    return all(a is b for a, b in zip(before, now, strict=True))
