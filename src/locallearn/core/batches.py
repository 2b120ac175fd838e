"""A batch of the user's own loader, as arguments of the user's own model."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_map_only

from locallearn.data.store import Batch
from locallearn.errors import UsageError
from locallearn.nn.features import map_tensors, seen_by_objective, tensors_of
from locallearn.nn.padding import MASKS, fitted_mask

LABELS = ("labels", "label", "targets", "target", "future_values", "target_values")
"""Names under which a batch that is a mapping has its labels."""

SPANS = ("start_positions", "end_positions")
"""Names of the first and the last token of an answer in a batch of questions, which are labels too."""


@dataclass(frozen=True)
class ModelCall:
    """How a model is called on a batch.

    Attributes:
        args: positional arguments.
        kwargs: named arguments.
        labels: labels of the batch: a tensor, or whatever the user's own loss takes; None where there are none.
        given: the batch as the loader made it.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    labels: Any
    given: Any = None

    @property
    def first(self) -> Tensor:
        """The first tensor among the inputs: images [B, C, H, W], tokens [B, T] or vectors [B, C]."""
        named = [value for name, value in self.kwargs.items() if name not in (*LABELS, *SPANS)]
        values = [*self.args, *named]
        tensors = [x for x in (*values, *tensors_of(values)) if isinstance(x, Tensor) and x.dim() > 0]
        if not tensors:
            raise UsageError("batch: there is no tensor among the model's inputs")
        return tensors[0]

    @property
    def kept(self) -> Tensor | None:
        """Booleans [B, T] of the tokens that are no padding, from the model's mask; None where it has none."""
        for name in MASKS:
            mask = self.kwargs.get(name)
            if isinstance(mask, Tensor) and mask.dim() == 2:
                return mask == 0 if name.endswith("padding_mask") else mask != 0
        return None

    def batch(self) -> CalledBatch:
        """The batch as stages and objectives take it; labels are empty where there are none."""
        labels = self.first.new_empty(0) if self.labels is None else self.labels
        return CalledBatch(self.first, labels, self.first, 0, call=self, given=self.given)


@dataclass(frozen=True, eq=False)
class CalledBatch(Batch):
    """A batch of a user's own model.

    Attributes:
        call: how the model is called on it.
        given: the batch as the loader made it.
        whole: the batch that this one is some rows of, of a replica; None where it is whole.
        shared: arguments of the model without a row for each example, however long they are, as ``tensors`` has them.
    """

    call: ModelCall | None = None
    given: Any = None
    whole: CalledBatch | None = None
    shared: frozenset[str] = frozenset()

    def rows(self, span: range) -> CalledBatch:
        """Some examples: these rows of every tensor that has one for each example of the batch."""
        return self.converted(lambda x: x[span.start : span.stop])

    def converted(self, convert: Callable[[Tensor], Tensor]) -> CalledBatch:
        """What ``convert`` makes of every tensor that has a row for each example of the batch."""
        assert self.call is not None
        shared = {id(x) for path, x in self.tensors() if path in self.shared}

        def part(x: Tensor) -> Tensor:
            return convert(x) if x.dim() and len(x) == self.examples and id(x) not in shared else x

        own = (self.call.args, self.call.kwargs, self.call.labels)
        args, kwargs, labels = tree_map_only(Tensor, part, own)
        given = map_tensors(dict(self.given) if isinstance(self.given, Mapping) else self.given, part)
        found = ModelCall(args, kwargs, labels, given).batch()
        return dataclasses.replace(found, step=self.step, whole=self, shared=self.shared)

    def tensors(self) -> list[tuple[str, Tensor]]:
        """The tensors among the model's arguments by where they are: ``[0][1]`` is the second positional one."""
        assert self.call is not None
        leaves, _ = tree_flatten_with_path((self.call.args, self.call.kwargs))
        return [(keystr(path), leaf) for path, leaf in leaves if isinstance(leaf, Tensor)]

    def with_labels_of_all(self) -> CalledBatch:
        """The same with the labels of the whole batch, for objectives that bring all rows' outputs together."""
        return self if self.whole is None else dataclasses.replace(self, labels=self.whole.labels)

    def without_padding(self) -> CalledBatch:
        """The same where labels of tokens that the model's mask hides do not count."""
        kept = None if self.call is None else self.call.kept
        labels: Any = self.labels
        if kept is None or not isinstance(labels, Tensor) or labels.shape != kept.shape:
            return self
        if labels.is_floating_point() or kept.all():
            return self
        return dataclasses.replace(self, labels=labels.masked_fill(~kept, -100))

    def seen(self, features: Tensor, tokens: str, mask_place: str = "") -> Tensor:
        """What an objective sees of ordered features of this batch; tokens that the model's mask hides do not count.

        Args:
            features: [B, C, H, W], [B, C] or [B, T, C].
            tokens: as for ``seen_by_objective``.
            mask_place: where the mask's tokens are among the features, as of a ``Piece``.
        """
        call = self.call
        mask = None if call is None or features.dim() != 3 else fitted_mask(call.kept, features.shape[1], mask_place)
        return seen_by_objective(features, tokens, mask)

    @property
    def examples(self) -> int:
        """B, the size of the first input's first dimension."""
        return len(self.images)


def are_classes(labels: Any) -> bool:
    """Whether labels are one class for every example: whole numbers [B], which empty ones are not."""
    return isinstance(labels, Tensor) and labels.dim() == 1 and len(labels) > 0 and not labels.is_floating_point()


def weight_of(labels: Any, examples: int) -> int:
    """What means over batches weigh one by: labels that are classes, as of graphs of several nodes, or its rows."""
    return len(labels) if are_classes(labels) else examples


def as_batch(batch: Any) -> Batch:
    """A ``ll.Batch``, or a pair (images, labels), as a batch of images."""
    if isinstance(batch, Batch):
        return batch
    if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not all(isinstance(x, Tensor) for x in batch):
        raise UsageError(f"batch: {type(batch).__name__} is not valid; expected a pair (images, labels) or a Batch")
    images, labels = batch
    return Batch(images, labels, images, 0)


def model_call(model: nn.Module, batch: Any) -> ModelCall:
    """How ``model`` is called on ``batch``.

    A mapping becomes named arguments, labels included where the model takes them, as Hugging Face's do (answers that
    are spans of tokens, in ``SPANS``, are labels [B, 2]), and so do the fields of a dataclass; a pair is (inputs,
    labels), and its inputs may be a tensor, a tuple of positional or a mapping of named arguments; a named tuple of
    more than two is as a mapping; a tensor, alone or as the one element of a list (as loaders of a
    ``TensorDataset(x)`` give it), is an input without labels.
    """
    batch = tree_map_only(np.ndarray, torch.from_numpy, batch)
    fields = _fields(batch)
    if fields is not None:
        kwargs = fields
        _check_padded(kwargs.values())
        named = next((name for name in LABELS if name in kwargs), None)
        labels = None if named is None else kwargs[named]
        if named is not None and not _takes(model, named):
            kwargs.pop(named)
        spans = [kwargs.get(name) for name in SPANS]
        if named is None and all(isinstance(x, Tensor) and x.dim() < 3 for x in spans):
            labels = torch.stack([x.flatten() for x in spans], -1)  # type: ignore[union-attr]
        return ModelCall((), kwargs, labels, batch)
    if isinstance(batch, Tensor):
        return ModelCall((batch,), {}, None, batch)
    if not isinstance(batch, (tuple, list)) or len(batch) not in (1, 2):
        given = (
            f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, (tuple, list)) else type(batch).__name__
        )
        expected = "a mapping, inputs, or a pair (inputs, labels), whose inputs may be a tuple"
        raise UsageError(f"batch: a {given} is not valid; expected {expected}")
    if len(batch) == 1:
        return ModelCall((batch[0],), {}, None, batch)
    inputs, labels = batch
    _check_padded(inputs.values() if isinstance(inputs, Mapping) else [inputs])
    if isinstance(inputs, Mapping):
        return ModelCall((), dict(inputs), labels, batch)
    return ModelCall(tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,), {}, labels, batch)


def _fields(batch: Any) -> dict[str, Any] | None:
    """The named values of a mapping, a dataclass or a named tuple of more than two; None of anything else."""
    if isinstance(batch, Mapping):
        return dict(batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, (type, Batch)):
        return {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    many = isinstance(batch, tuple) and len(batch) > 2
    return dict(batch._asdict()) if many and hasattr(batch, "_asdict") else None  # type: ignore[union-attr]


def _check_padded(inputs: Iterable[Any]) -> None:
    """Refuse sequences that lie one after the other, of which rows are no examples."""
    if any(isinstance(x, PackedSequence) for x in inputs):
        expected = "padded sequences and their lengths, which the model packs in its forward pass"
        raise UsageError(f"batch: PackedSequence is not valid; expected {expected}")


def _takes(model: nn.Module, name: str) -> bool:
    parameters = inspect.signature(model.forward).parameters
    return name in parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
