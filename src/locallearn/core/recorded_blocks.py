"""How blocks of a user's model are called, and where in an earlier stage what they are given is found."""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten
from torch.utils.hooks import RemovableHandle

from locallearn.core.batches import ModelCall
from locallearn.core.block_arguments import Arguments, Origin, tensors_in
from locallearn.nn.features import features_of
from locallearn.nn.hooks import removed_after
from locallearn.nn.modes import evaluating

_PLAIN = (type(None), bool, int, float, complex, str, torch.dtype, torch.device, torch.Size)
"""What a copy is given as it was on the example; other objects, as caches of keys and values are, it does without."""


@dataclass
class _Call:
    """One call of a submodule: when it began and ended, and the tensors that it had and gave."""

    path: str
    started: int
    ended: int = -1
    tensors: dict[tuple[str, int], weakref.ref[Tensor]] = field(default_factory=dict)


class RecordedBlocks:
    """How some blocks of a model are called, from one pass on the example.

    Args:
        model: a copy of the model, which runs in eval mode and is put back.
        call: the example.
        blocks: paths of blocks that run once.
    """

    def __init__(self, model: nn.Module, call: ModelCall, blocks: Collection[str]) -> None:
        self.model = model
        self._calls: list[_Call] = []
        self._given: dict[str, tuple[Any, Any]] = {}
        self._made: dict[str, Tensor | None] = {}
        self._now = 0
        hooks: list[RemovableHandle] = []
        for path, part in model.named_modules():
            keep = path in blocks
            hooks.append(part.register_forward_pre_hook(partial(self._enter, path, keep), with_kwargs=True))
            hooks.append(part.register_forward_hook(partial(self._leave, path, keep)))
        with removed_after(hooks), _as_in_training(model):
            model(*call.args, **call.kwargs)
        times = Counter(each.path for each in self._calls)
        self._once = {path for path, n in times.items() if n == 1}

    def _enter(self, path: str, keep: bool, _module: nn.Module, args: Any, kwargs: Any) -> None:
        self._now += 1
        self._calls.append(_Call(path, self._now))
        self._calls[-1].tensors = _noted(args, kwargs)
        if keep:
            self._given[path] = args, kwargs

    def _leave(self, path: str, keep: bool, _module: nn.Module, _args: Any, output: Any) -> None:
        self._now += 1
        call = next(each for each in reversed(self._calls) if each.path == path and each.ended < 0)
        call.ended = self._now
        call.tensors |= _noted((), {}, output)
        if keep:
            self._made[path] = features_of(output)

    def arguments(self, path: str, shape: Sequence[int], after: str, until: str) -> Arguments | None:
        """How a block is called, from what a stage has at hand before its end; None where copies cannot be.

        Args:
            path: of the block.
            shape: of the features that it is given, for the example.
            after: the submodule at whose end the stage begins; empty for the first.
            until: the submodule at whose end the stage ends.
        """
        args, kwargs = self._given[path]
        # caches and the like stay whole
        leaves, structure = tree_flatten((args, kwargs), is_leaf=lambda x: not isinstance(x, (tuple, list, dict)))
        features = next((i for i, x in enumerate(leaves) if _like(x, shape)), None)
        if features is None or path not in self._once:
            return None
        sources = {}
        for i, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor) and i != features:
                source = self._source(leaf, after, until)
                if source is None:
                    return None
                sources[i] = source
        plain = [leaf if isinstance(leaf, _PLAIN) else None for leaf in leaves]
        found = Arguments(plain, structure, features, sources)
        return found if self._is_same(path, found, leaves) else None

    def _source(self, tensor: Tensor, after: str, until: str) -> Origin | None:
        """Where a stage finds a tensor: in calls that go on in it, in every runtime."""
        start = max((each.ended for each in self._calls if each.path == after), default=0) if after else 0
        end = next(each.ended for each in self._calls if each.path == until)
        for each in self._calls:
            if each.path not in self._once or each.started >= end or each.ended <= start:
                continue
            for (place, number), known in each.tensors.items():
                if known() is tensor and not (place == "output" and each.ended > end):
                    return Origin(each.path, place, number)
        return None

    def _is_same(self, path: str, found: Arguments, leaves: Sequence[Any]) -> bool:
        """Whether the block called so gives what it gave in the model."""
        made, features = self._made[path], leaves[found.features]
        seen = {source: leaves[leaf] for leaf, source in found.sources.items()}
        try:
            with _as_in_training(self.model):
                block = self.model.get_submodule(path)
                again = features_of(replace(found, seen=seen).called(block, features))
        except Exception:  # it needs what copies do without
            return False
        if made is None or again is None or made.shape != again.shape:
            return False
        return made.is_meta or torch.allclose(made, again, rtol=1e-2 if made.dtype.itemsize < 4 else 1e-4, atol=1e-4)


def _noted(args: Any, kwargs: Any, output: Any = None) -> dict[tuple[str, int], weakref.ref[Tensor]]:
    return {place: weakref.ref(x) for place, x in tensors_in(args, kwargs, output).items()}


def _like(value: Any, shape: Sequence[int]) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and tuple(value.shape) == tuple(shape)


@contextlib.contextmanager
def _as_in_training(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients, and layers that compute as they do in training; all as it was in the end."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.random.fork_rng(), torch.no_grad(), evaluating(model):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
