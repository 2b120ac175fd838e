"""What blocks of a user's model are given beside features (masks, positions), for copies that run before they do."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_unflatten
from torch.utils.hooks import RemovableHandle

from locallearn.nn.features import features_of, tensors_of


@dataclass(frozen=True)
class Origin:
    """Where a tensor is found that a later block is given.

    Attributes:
        path: a submodule that runs once.
        place: in that: ``output``, ``args``, or an argument's name.
        number: which of the tensors there, counted depth first from 0.
    """

    path: str
    place: str
    number: int

    def of(self, args: Any, kwargs: Any, output: Any = None) -> Tensor:
        """The tensor, from a call of the submodule."""
        return tensors_in(args, kwargs, output)[self.place, self.number]


@dataclass
class Arguments:
    """How a later block is called.

    Attributes:
        leaves: positional and named arguments one after the other; None in the place of tensors.
        structure: of the arguments.
        features: which leaf is the features.
        sources: of the other tensors, by leaf.
        seen: the tensors of the present pass.
    """

    leaves: list[Any]
    structure: TreeSpec
    features: int
    sources: dict[int, Origin]
    seen: dict[Origin, Tensor] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> Arguments:
        """The same for a copy of the head: nothing of it is ever changed but what is seen."""
        return replace(self, seen={})

    def called(self, block: nn.Module, features: Tensor) -> Any:
        """What a block gives for these features, and for what the original is given beside its own in this pass."""
        leaves = list(self.leaves)
        leaves[self.features] = features
        for leaf, source in self.sources.items():
            leaves[leaf] = self.seen[source]
        args, kwargs = tree_unflatten(leaves, self.structure)
        return block(*args, **kwargs)

    def listen(self, model: nn.Module) -> list[RemovableHandle]:
        """Take the tensors from passes of a model, until the hooks are removed."""
        hooks = []
        for source in set(self.sources.values()):
            part, note = model.get_submodule(source.path), partial(self._note, source)
            if source.place == "output":
                hooks.append(part.register_forward_hook(note, with_kwargs=True))
            else:
                hooks.append(part.register_forward_pre_hook(note, with_kwargs=True))
        return hooks

    def _note(self, source: Origin, _module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
        self.seen[source] = source.of(args, kwargs, output)


class CopiedBlock(nn.Module):
    """A block of a user's model, of whose output the features are taken.

    Args:
        block: the block.
        arguments: what it is given beside features; None for features alone.
    """

    def __init__(self, block: nn.Module, arguments: Arguments | None = None) -> None:
        super().__init__()
        self.block, self.arguments = block, arguments

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, C, H, W], [B, T, C] or [B, C]."""
        features = features_of(self.block(x) if self.arguments is None else self.arguments.called(self.block, x))
        assert features is not None
        return features


def listen_to_arguments(head: nn.Module, model: nn.Module) -> list[RemovableHandle]:
    """Let copied blocks in a head or an objective see what passes of a model give to its own blocks."""
    hooks: list[RemovableHandle] = []
    for part in head.modules():
        if isinstance(part, CopiedBlock) and part.arguments is not None:
            hooks += part.arguments.listen(model)
    return hooks


def forget(head: nn.Module) -> None:
    """Let go of the tensors of the last pass."""
    for part in head.modules():
        if isinstance(part, CopiedBlock) and part.arguments is not None:
            part.arguments.seen.clear()


def tensors_in(args: Any, kwargs: Any, output: Any = None) -> dict[tuple[str, int], Tensor]:
    """The tensors of a call by their place."""
    places = {"output": output, "args": args, **kwargs}
    return {(name, n): x for name, values in places.items() for n, x in enumerate(tensors_of(values))}
