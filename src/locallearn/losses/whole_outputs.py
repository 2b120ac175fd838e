"""Losses of all that a model gives: several outputs in a dict, a tuple or a class of the model's own."""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from locallearn.data.store import Batch
from locallearn.errors import UsageError
from locallearn.losses.user import Loss, called, takes_batch, value_of
from locallearn.nn.features import prediction

_MOST = 2**16
"""Numbers of one example that a head may have to give."""


@dataclass(frozen=True)
class Outputs:
    """The form of what a model gives for an example: several tensors in one structure.

    Attributes:
        structure: of the whole.
        shapes: of an example's part of each tensor; None for what is None.
    """

    structure: TreeSpec
    shapes: tuple[tuple[int, ...] | None, ...]

    @property
    def sizes(self) -> list[int]:
        """Numbers of an example in each tensor."""
        return [math.prod(shape) for shape in self.shapes if shape is not None]

    def __deepcopy__(self, memo: dict[int, Any]) -> Outputs:
        return self  # nothing in it changes

    def flat(self, output: Any) -> Tensor:
        """What a model gave, as one row of numbers for every example [B, sum of sizes]."""
        leaves = [leaf for leaf in tree_flatten(output)[0] if leaf is not None]
        return torch.cat([leaf.flatten(1) if leaf.dim() > 1 else leaf[:, None] for leaf in leaves], 1)

    def whole(self, flat: Tensor) -> Any:
        """The same in the model's own form."""
        parts = iter(flat.split(self.sizes, 1))
        leaves = [None if shape is None else next(parts).reshape(len(flat), *shape) for shape in self.shapes]
        return tree_unflatten(leaves, self.structure)


class WholeLoss(nn.Module):
    """A loss of a model's whole output, as one of rows of numbers, which a head can give.

    Args:
        loss: of the output and labels.
        outputs: the form of the output.
    """

    def __init__(self, loss: Loss, outputs: Outputs) -> None:
        super().__init__()
        self.loss, self.outputs = loss, outputs

    def forward(self, scores: Tensor, labels: Any) -> Tensor:
        """The loss of scores [B, sum of sizes]."""
        return self.loss(self.outputs.whole(scores), labels)


class WholeLossOfBatch(WholeLoss):
    """The same of a loss that takes the whole batch, too."""

    def forward(self, scores: Tensor, labels: Any, batch: Any) -> Tensor:  # type: ignore[override]
        """The loss of scores [B, sum of sizes]."""
        return value_of(self.loss, self.outputs.whole(scores), labels, batch=batch)


def outputs_of(output: Any, examples: int) -> Outputs | None:
    """The form of an output of several tensors with examples first; None of any other."""
    leaves, structure = tree_flatten(output)
    tensors = [leaf for leaf in leaves if leaf is not None]
    fit = all(
        isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() and len(leaf) == examples
        for leaf in tensors
    )
    if len(tensors) < 2 or not fit:
        return None
    found = Outputs(structure, tuple(None if leaf is None else tuple(leaf.shape[1:]) for leaf in leaves))
    return found if sum(found.sizes) <= _MOST else None


def whole_loss(loss: Loss, output: Any, batch: Batch) -> tuple[WholeLoss, Tensor] | None:
    """The loss of the whole output where it takes that, and not the scores in it; None where it takes scores.

    Its value for the output comes with it.

    Args:
        loss: of the user's own.
        output: what the model gave for the batch.
        batch: a batch.

    Raises:
        UsageError: it takes neither.
    """
    scores, outputs = prediction(output), outputs_of(output, len(batch.images))
    if outputs is None or scores is None:
        return None
    try:
        with warnings.catch_warnings():  # of what it does to scores that it does not take
            warnings.simplefilter("ignore")
            called(copy.deepcopy(loss), scores, batch)
    except UsageError as refused:
        try:
            value = called(copy.deepcopy(loss), output, batch)
        except UsageError as error:
            raise UsageError(f"{refused}; and {str(error).removeprefix('objective: ')}") from error
        return (WholeLossOfBatch if takes_batch(loss) else WholeLoss)(loss, outputs), value
    return None
