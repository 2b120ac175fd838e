"""Runs of copies of a user's model, and what they tell."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import set_checkpoint_early_stop

from locallearn.errors import UsageError
from locallearn.nn.axes import BATCH_NORMS, channel_axis
from locallearn.nn.checkpointing import non_reentrant
from locallearn.nn.copies import copied, untouched, without_data
from locallearn.nn.features import features_of, own_loss, prediction, tensors_of
from locallearn.nn.hooks import removed_after
from locallearn.nn.named_tensors import kept_tensors
from locallearn.nn.padding import find_places
from locallearn.nn.products import ProductCounter
from locallearn.nn.trace import Call, Trace
from locallearn.nn.variants import find_batch_axes, find_other_tokens

_NODE = Any


def trace(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Trace:
    """Run copies of ``model`` and record what they do; the model itself is not touched.

    They run on the meta device, or on real tensors where the model looks at values on its way.

    Raises:
        UsageError: it cannot be copied or does not run, or its output has no gradient.
    """
    copies = without_data(model)
    try:
        with untouched(model):
            return _run(copies, *_given((args, dict(kwargs)), "meta"))
    except Exception:  # it needs values; or it is broken, and then says so on real ones
        copies = copied(model)
    try:
        with untouched(model):
            return _run(copies, *_given((args, dict(kwargs)), None))
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"example: {type(model).__name__} does not run on it: {error}") from error


def _given(values: Any, device: str | None) -> Any:
    """Arguments of a call with tensors of their own, on another device where one is named."""
    return tree_map_only(Tensor, lambda x: x.detach().clone() if device is None else x.detach().to(device), values)


def _run(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Trace:
    """Run a model, which it changes, and record it.

    Layers that training drops at random are left in: where evaluating runs more submodules, that is recorded.

    Raises:
        UsageError: its output has no gradient.
    """
    modes = {part: part.training for part in model.modules()}
    found = _record(model, args, kwargs)
    if any(modes.values()) and not _all_ran(model, found):
        evaluated = _record(model.eval(), args, kwargs)
        if len(evaluated.times) > len(found.times):
            found = evaluated
        else:
            for part, training in modes.items():
                part.training = training
    if not found.leaves:
        raise UsageError(f"model: the output of {type(model).__name__} has no tensor that gradients come from")
    find_batch_axes(found, model, args, kwargs)
    find_places(found, model, args, kwargs)
    if len(found.scores) == 3:
        find_other_tokens(found, model, args, kwargs)
    return found


def _all_ran(model: nn.Module, found: Trace) -> bool:
    """Whether every submodule that holds parameters has run."""
    ran = {call.path for call in found.calls}
    return all(path in ran for path, part in model.named_modules() if part._parameters)


def _record(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Trace:
    counter = ProductCounter()
    whole = set_checkpoint_early_stop(False)  # so that recomputing ends where the first pass did
    with torch.enable_grad(), non_reentrant(), whole, counter, _recorded(model, counter) as calls:
        output = model(*args, **kwargs)
    scores, loss = prediction(output), own_loss(output)
    roots = [x for x in (scores, loss) if x is not None and x.grad_fn is not None]
    _describe(calls[-1], scores)
    macs = counter.macs
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = Trace(
        calls,
        _scorer(model, calls, calls[-1].node),
        loss is not None and loss.requires_grad,
        macs=macs,
        names=tuple(names.values()),
        trainable=frozenset(name for name, p in model.named_parameters() if p.requires_grad),
        buffers=tuple(name for name in kept_tensors(model) if name not in names.values()),
        kept=_kept(model),
        aliases=_aliases(model),
    )
    seen = _walk([x.grad_fn for x in roots], names, found)
    _walk_beside([x.grad_fn for x in tensors_of(output)], seen, found)
    for call in calls:
        if call.node is not None:
            call.channels = channel_axis(*call.node)
    _find_recomputed(model, roots, calls)
    return found


@contextlib.contextmanager
def _recorded(model: nn.Module, counter: ProductCounter) -> Iterator[list[Call]]:
    """Record every call of every submodule while the context lasts."""
    ended: list[Call] = []
    open_calls: list[Call] = []

    def enter(path: str) -> Any:
        return lambda *_: open_calls.append(Call(path, now()))

    def leave(_module: nn.Module, _args: Any, output: Any) -> None:
        call = open_calls.pop()
        made = tensors_of(output)
        call.outputs = tuple(None if x.grad_fn is None else (x.grad_fn, x.output_nr) for x in made)
        _describe(call, features_of(output))
        call.macs = counter.macs
        call.end = now()
        ended.append(call)

    hooks: list[Any] = []
    for path, module in model.named_modules():
        hooks += [module.register_forward_pre_hook(enter(path)), module.register_forward_hook(leave)]
    with removed_after(hooks):
        yield ended


def now() -> int:
    """A number that operations from here on reach, and those before do not."""
    with torch.enable_grad():
        return torch.empty(0, requires_grad=True).clone().grad_fn._sequence_nr()  # type: ignore[union-attr]


def _describe(call: Call, tensor: Tensor | None) -> None:
    """Note the first output of a call."""
    call.shape = None if tensor is None else tuple(tensor.shape)
    call.node = None if tensor is None or tensor.grad_fn is None else (tensor.grad_fn, tensor.output_nr)


def _scorer(model: nn.Module, calls: Iterable[Call], node: tuple[_NODE, int] | None) -> str | None:
    """The linear layer whose output a tensor is."""
    ends = (call.path for call in calls if node is not None and call.node == node)
    return next((path for path in ends if isinstance(model.get_submodule(path), nn.Linear)), None)


def _kept(model: nn.Module) -> list[tuple[str, str, _NODE]]:
    """Single numbers with a gradient that submodules keep in attributes, as layers do that record a loss."""
    return [
        (path, name, value.grad_fn)
        for path, part in model.named_modules()
        for name, value in vars(part).items()
        if isinstance(value, Tensor) and value.numel() == 1 and value.grad_fn is not None
    ]


def _aliases(model: nn.Module) -> dict[str, str]:
    """Every path of every submodule, with the path that stands for it."""
    first = {id(part): path for path, part in model.named_modules()}
    return {path: first[id(part)] for path, part in model.named_modules(remove_duplicate=False)}


def _walk(roots: Iterable[_NODE], names: Mapping[int, str], found: Trace) -> set[_NODE]:
    """Fill in the edges and the leaves of the graph that ends in ``roots``: the prediction, then the model's loss.

    Its operations are returned.
    """
    seen: set[_NODE] = set()
    before = 0
    for root in roots:
        before = len(found.edges)
        waiting = [root] if root not in seen else []
        seen.add(root)
        while waiting:
            node = waiting.pop()
            for earlier, output in node.next_functions:
                if earlier is None:
                    continue
                if hasattr(earlier, "variable"):
                    leaf = earlier.variable
                    found.leaves.append((node, names.get(id(leaf), "an input")))
                    if id(leaf) not in names and isinstance(leaf, nn.Parameter):
                        found.unregistered[id(leaf)] = tuple(leaf.shape)
                    continue
                found.edges.append((node, earlier, output))
                if earlier not in seen:
                    seen.add(earlier)
                    waiting.append(earlier)
    if found.has_loss and found.scores:
        found.loss_edges = frozenset(range(before, len(found.edges)))
    return seen


def _walk_beside(outputs: Iterable[_NODE | None], seen: set[_NODE], found: Trace) -> None:
    """Fill in what batch norms are given that only other outputs than the prediction use: statistics."""
    before, waiting, others = len(found.edges), [node for node in outputs if node is not None], set[_NODE]()
    while waiting:
        node = waiting.pop()
        if node not in others and node not in seen:
            others.add(node)
            waiting += [earlier for earlier, _ in node.next_functions if earlier is not None]
    waiting = [node for node in others if node.name().startswith(BATCH_NORMS)]
    seen = seen | set(waiting)
    while waiting:
        node = waiting.pop()
        for earlier, output in node.next_functions:
            if earlier is None or hasattr(earlier, "variable"):
                continue
            found.edges.append((node, earlier, output))
            if earlier not in seen:
                seen.add(earlier)
                waiting.append(earlier)
    found.idle_edges = frozenset(range(before, len(found.edges)))


def _find_recomputed(model: nn.Module, roots: Iterable[Tensor], calls: list[Call]) -> None:
    """Mark the submodules that run in the backward pass too."""
    again: set[str] = set()

    def note(path: str) -> Any:
        return lambda *_: again.add(path)

    hooks = [part.register_forward_hook(note(path)) for path, part in model.named_modules()]
    try:
        with removed_after(hooks), non_reentrant():
            torch.autograd.backward([x.sum() for x in roots])
    except RuntimeError:
        return  # whoever trains it will see the same error
    for call in calls:
        call.recomputed = call.path in again
