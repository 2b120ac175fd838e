"""What stages have of the model's own loss beside its prediction: losses that balance experts, recorded penalties.

No gradient passes a cut, so the loss that the model gives at its end trains such parts in the last stage alone. Where
a submodule of a stage gives one number, or keeps it in an attribute, and the model's loss adds that with a constant
weight, the stage's own loss has it too. Where routers of experts are balanced over all layers at once, as Hugging
Face's ``load_balancing_loss_func`` does (Fedus et al. 2021, Switch Transformers), a stage balances its own ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from locallearn.core.batches import ModelCall
from locallearn.nn.copies import copied, untouched
from locallearn.nn.features import own_loss, tensors_of
from locallearn.nn.hooks import removed_after
from locallearn.nn.pieces import Piece, Share, crossing, end_of
from locallearn.nn.trace import Trace


def find(model: nn.Module, found: Trace, parts: Sequence[Piece], call: ModelCall) -> list[Piece]:
    """The stages with their shares of the model's own loss; what is found is no longer ``lost``.

    Args:
        model: a model of which copies may run.
        found: its trace.
        parts: the stages.
        call: the example.
    """
    if not any(part.lost for part in parts):
        return list(parts)
    twin, noted, ends = copied(model), dict[Share, Tensor](), [end_of(found, part) for part in parts]
    starts = [-1, *(call.end for call in ends)]
    candidates = [found.numbers_given(start, end.end) for start, end in zip(starts, ends, strict=False)]
    shares = [[Share(path, place) for path, place, _ in each] for each in candidates]
    routers = [tuple(_router(path) for path in part.lost) for part in parts]
    numbers = list(itertools.chain(*shares))
    with untouched(model), torch.enable_grad(), listening(twin, [*numbers, *itertools.chain(*routers)], noted):
        output = twin(*call.args, **call.kwargs)
        read_attributes(twin, numbers, noted)
    loss = own_loss(output)
    assert loss is not None
    result = []
    for i, (part, each, given, routed) in enumerate(zip(parts, candidates, shares, routers, strict=True)):
        weighed = [dataclasses.replace(share, weight=_weight(loss, noted.get(share))) for share in given]
        kept = [(share, node) for share, (_, _, node) in zip(weighed, each, strict=True) if share.weight]
        nodes = [node for _, node in kept]
        if part.lost and kept and found.covered(nodes, starts[i], ends[i]):
            trained = frozenset[str]().union(*map(found.upstream, nodes))
            idle = tuple(name for name in part.idle if name not in trained)
            part = dataclasses.replace(part, shares=tuple(share for share, _ in kept), lost=(), idle=idle)
        elif part.lost and _balances(twin, [noted.get(share) for share in routed], output, call):
            part = dataclasses.replace(part, shares=routed, lost=())
        result.append(part)
    if any(part.lost or any(share.weight is None for share in part.shares) for part in result):
        return result
    return [dataclasses.replace(part, crossing=crossing(found, part, loss=False)) for part in result]


def _router(path: str) -> Share:
    return Share(path, 0, None)


def _weight(loss: Tensor, number: Tensor | None) -> float:
    """What a loss multiplies a number by; 0 where it does not use it, or not linearly."""
    if number is None or not number.requires_grad:
        return 0.0
    (slope,) = torch.autograd.grad(loss, number, create_graph=True, allow_unused=True)
    return 0.0 if slope is None or slope.requires_grad else float(slope)


@contextlib.contextmanager
def listening(model: nn.Module, shares: Sequence[Share], noted: dict[Share, Tensor]) -> Iterator[None]:
    """While it lasts, what submodules of a model give is noted."""
    with removed_after(listen(model, shares, noted)):
        yield


def listen(model: nn.Module, shares: Sequence[Share], noted: dict[Share, Tensor]) -> list[Any]:
    """Note what submodules give, until the hooks that are returned are removed."""

    def note(share: Share, _module: nn.Module, _args: Any, output: Any) -> None:
        assert isinstance(share.place, int)
        noted[share] = tensors_of(output)[share.place]

    given = [share for share in shares if isinstance(share.place, int)]
    return [model.get_submodule(share.path).register_forward_hook(partial(note, share)) for share in given]


def read_attributes(model: nn.Module, shares: Sequence[Share], noted: dict[Share, Tensor]) -> None:
    """Note what submodules keep in attributes."""
    for share in shares:
        if isinstance(share.place, str):
            noted[share] = getattr(model.get_submodule(share.path), share.place)


def share_of(model: nn.Module, shares: Sequence[Share], noted: dict[Share, Tensor], call: ModelCall) -> Tensor:
    """A stage's part of the model's own loss, from what was noted of its submodules in this pass."""
    read_attributes(model, shares, noted)
    numbers = [share.weight * noted[share].reshape(()).float() for share in shares if share.weight is not None]
    if numbers:
        return torch.stack(numbers).sum()
    found = _balancing(model)
    assert found is not None
    logits = tuple(noted[share] for share in shares)
    gate = type(model.get_submodule(shares[0].path))
    every = sum(type(part) is gate for part in model.modules())
    return found(logits, call) * (len(logits) / every)


def _balancing(model: nn.Module) -> Callable[[tuple[Tensor, ...], ModelCall], Tensor] | None:
    """The weighted loss by which a model of Hugging Face's balances its routers; None where it has none."""
    function = getattr(sys.modules[type(model).__module__], "load_balancing_loss_func", None)
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    weight, top = (getattr(config, name, None) for name in ("router_aux_loss_coef", "num_experts_per_tok"))
    if function is None or weight is None or top is None:
        return None

    def loss(logits: tuple[Tensor, ...], call: ModelCall) -> Tensor:
        return weight * function(logits, logits[0].shape[-1], top, call.kwargs.get("attention_mask"))

    return loss


def _balances(model: nn.Module, given: Sequence[Tensor | None], output: Any, call: ModelCall) -> bool:
    """Whether that is the loss which the model reports, of routers to which these tensors belong."""
    loss, logits = _balancing(model), getattr(output, "router_logits", None)
    reported = getattr(output, "aux_loss", None)
    if loss is None or not isinstance(logits, tuple) or not isinstance(reported, Tensor):
        return False
    if any(all(each is not other for other in logits) for each in given):
        return False
    config: Any = model.config
    weight = config.get_text_config().router_aux_loss_coef
    try:
        return torch.allclose(loss(logits, call), weight * reported)
    except Exception:
        return False
