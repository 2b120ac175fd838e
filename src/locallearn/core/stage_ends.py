"""Where stages of a user's model end in its forward pass: at a submodule's end, or at the sum after it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from locallearn.nn.fast_paths import layer_by_layer
from locallearn.nn.features import features_of
from locallearn.nn.hooks import removed_after
from locallearn.nn.pieces import Piece

_SUMS = ("add", "add_", "__add__", "__radd__", "__iadd__")


class ResidualSums(TorchFunctionMode):
    """While it lasts, a sum that an awaited tensor goes into may be answered with another tensor.

    Awaited tensors are known by identity, so that a residual sum ``x + layer(x)`` in the forward pass of a model is
    found however the model names it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._awaited: list[tuple[Tensor, Callable[[Tensor], Any]]] = []

    def wait(self, output: Any, then: Callable[[Tensor], Any]) -> None:
        """Call ``then`` with the sum that the features go into; what it gives, but for None, is the answer."""
        features = features_of(output)
        assert features is not None
        self._awaited.append((features, then))

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") not in _SUMS:
            return func(*args, **(kwargs or {}))
        if isinstance(args[0], Tensor) and args[0].dim() and not any(args[0].stride()):
            func = torch.add  # placeholders take the memory of one number, which cannot be added to in place
        result = func(*args, **(kwargs or {}))
        for i, (tensor, then) in enumerate(self._awaited):
            if any(value is tensor for value in args):
                del self._awaited[i]
                answer = then(result)
                return result if answer is None else answer
        return result


@contextlib.contextmanager
def at_ends(model: nn.Module, pieces: Sequence[Piece], ended: Callable[[int, Any], Any]) -> Iterator[None]:
    """While it lasts, a forward pass of the model on this thread calls a function wherever one of some stages ends.

    Args:
        model: the model.
        pieces: stages that end before the model does.
        ended: is called with a stage's place in ``pieces`` and what it gives; what it returns, but for None, is what
            the pass goes on with.
    """
    sums = ResidualSums()

    def leave(k: int, _module: nn.Module, _args: Any, output: Any) -> Any:
        if not pieces[k].summed:
            return ended(k, output)
        return sums.wait(output, partial(ended, k))

    hooks = [
        model.get_submodule(piece.path).register_forward_hook(partial(leave, k)) for k, piece in enumerate(pieces)
    ]
    with (
        layer_by_layer(),
        removed_after(hooks),
        sums if any(piece.summed for piece in pieces) else contextlib.nullcontext(),
    ):
        yield
