"""Losses of scores that have any shape, and which one labels ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from locallearn.errors import ConfigError, UsageError
from locallearn.nn.precision import precise

IGNORED = -100
"""Labels with this value do not count."""

VOID = 255
"""Nor do labels with this one where there are no more classes than that, as in maps of segmentation."""

KINDS = ("cross-entropy", "binary-cross-entropy", "mean-squared-error")


@dataclass(frozen=True)
class ScoresLoss:
    """The mean loss of scores and labels, computed in at least fp32; called with both it gives one number.

    Attributes:
        kind: ``cross-entropy`` of classes (integers) or of their probabilities (floating point),
            ``binary-cross-entropy`` of every score, or ``mean-squared-error``.
        axis: the axis of the scores that holds the classes.
        shift: the label of a token is the next one's, as in causal language models.
    """

    kind: str
    axis: int = 1
    shift: bool = False

    def __call__(self, scores: Tensor, labels: Tensor) -> Tensor:
        """A scalar; scores and labels of any number of dimensions, whose first is the examples."""
        scores = precise(scores)
        if self.kind != "cross-entropy":
            labels = _alike(labels, scores)
            binary = self.kind == "binary-cross-entropy"
            return F.binary_cross_entropy_with_logits(scores, labels) if binary else F.mse_loss(scores, labels)
        if self.shift:
            scores, labels = scores[:, :-1], labels[:, 1:]
        scores = scores.movedim(self.axis, 1)
        if labels.is_floating_point():
            return F.cross_entropy(scores, labels.movedim(self.axis, 1).to(scores.dtype))
        labels = without_axis(labels, scores.dim(), self.axis).long()
        if scores.dim() == 4 and scores.shape[2:] != labels.shape[1:]:
            scores = F.interpolate(scores, labels.shape[1:], mode="bilinear", align_corners=False)
        if scores.shape[1] <= VOID and scores.dim() > 2:
            labels = labels.masked_fill(labels == VOID, IGNORED)
        return F.cross_entropy(scores, labels, ignore_index=IGNORED)

    def check(self, scores: Sequence[int], labels: Any) -> None:
        """Refuse labels that do not fit scores of that shape, in a line.

        Raises:
            UsageError: another type or shape, or classes that there are not.
        """
        self.check_type(labels)
        said = f"labels {tuple(labels.shape)} {str(labels.dtype).removeprefix('torch.')}, scores {tuple(scores)}"
        if self.kind != "cross-entropy" or labels.is_floating_point():
            if labels.numel() != torch.Size(scores).numel():
                raise UsageError(f"batch: {self.kind} needs a label for every score ({said})")
            return
        rest = (*scores[: self.axis], *scores[self.axis + 1 :])
        found = tuple(without_axis(labels, len(scores), self.axis).shape)
        if len(found) != len(rest) or found[0] != rest[0] or (len(rest) < 3 and found != rest):
            raise UsageError(f"batch: {self.kind} needs a class for every place of the scores ({said})")
        self.check_classes(labels, scores[self.axis], len(scores))

    def check_numbers(self, labels: Tensor) -> None:
        """Refuse numbers that are no targets of this loss; looks at their values.

        Raises:
            UsageError: NaN or infinity, probabilities of classes that do not sum to 1, or a yes or no outside [0, 1].
        """
        if not labels.isfinite().all():
            raise UsageError(f"batch: labels of {self.kind} have NaN or infinity in them")
        if self.kind == "binary-cross-entropy" and not ((labels >= 0) & (labels <= 1)).all():
            raise UsageError("batch: labels of binary-cross-entropy are from 0 to 1, and some are not")
        if self.kind != "cross-entropy" or labels.dim() <= self.axis:
            return
        sums = labels.float().sum(self.axis)
        if (labels < 0).any() or not ((sums - 1).abs() < 0.02).all():
            raise UsageError(
                "batch: labels of cross-entropy are probabilities that sum to 1 over the classes, and some do not "
                "(several labels of one example are objective='binary-cross-entropy')"
            )

    def check_type(self, labels: Any) -> None:
        """Refuse labels that are no tensor."""
        if not isinstance(labels, Tensor):
            raise UsageError(f"batch: labels of {self.kind} are a tensor, not {type(labels).__name__}")
        if labels.is_complex():
            raise UsageError(f"batch: labels of {self.kind} are real numbers, not {str(labels.dtype)[6:]}")

    def check_classes(self, labels: Tensor, classes: int, dims: int) -> None:
        """Refuse integer labels that are no classes of scores with so many dimensions; looks at their values."""
        labels = labels.long()  # some integer types have no minimum
        counted = labels[(labels != IGNORED) & ((labels != VOID) | (dims < 3))]
        if counted.numel() and not 0 <= int(counted.min()) <= int(counted.max()) < classes:
            outside = int(counted.min()) if counted.min() < 0 else int(counted.max())
            raise UsageError(
                f"batch: label {outside} is not one of the model's {classes} classes, 0 to {classes - 1}"
            )


def span_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy, over the tokens, of where an answer starts and of where it ends; the mean of both.

    Args:
        scores: [B, T, 2].
        labels: positions [B, 2]; those outside [0, T), where an answer was cut off, do not count.
    """
    tokens = scores.shape[1]
    kept = torch.where((labels < 0) | (labels > tokens), tokens, labels)
    ends = [F.cross_entropy(precise(scores[..., i]), kept[:, i], ignore_index=tokens) for i in (0, 1)]
    return (ends[0] + ends[1]) / 2


def class_axis(scores: Sequence[int], channels: int | None, labels: Any) -> int:
    """The axis of scores that holds the classes.

    Args:
        scores: their shape.
        channels: the axis of their channels, where that is known.
        labels: of a batch; integer labels have the scores' other axes.
    """
    if len(scores) < 3:
        return 1
    if isinstance(labels, Tensor) and not labels.is_floating_point():
        shapes = {axis: (*scores[:axis], *scores[axis + 1 :]) for axis in range(1, len(scores))}
        fitting = [axis for axis, shape in shapes.items() if shape == tuple(labels.shape)]
        if fitting and channels not in fitting:
            return fitting[0]
    return channels if channels else (len(scores) - 1 if len(scores) == 3 else 1)


def picked(scores: Sequence[int], axis: int, labels: Any) -> str:
    """Which of ``KINDS`` labels ask for, by their type, shape and values.

    Integers for every place are classes. A number for every score is a probability where the numbers are not negative
    and sum to 1 over the classes, a yes or no where all are 0 or 1, and else a value to come near to.

    Raises:
        ConfigError: none fits, or there are no labels.
    """
    if not isinstance(labels, Tensor):
        what = "no labels" if labels is None else f"labels in a {type(labels).__name__}"
        expected = f"a function of scores, or of all that the model gives, and labels, for batches with {what}"
        raise ConfigError("objective", None, expected)
    expected = "a function of scores and labels"
    classes = scores[axis] if len(scores) > 1 else 1
    if not labels.is_floating_point() and classes > 1:
        rest = (*scores[:axis], *scores[axis + 1 :])
        found = tuple(without_axis(labels, len(scores), axis).shape)
        if found == rest or (len(scores) == 4 and len(found) == 3 and found[0] == rest[0]):
            return "cross-entropy"
    if labels.numel() != torch.Size(scores).numel() or labels.shape[:1] != tuple(scores[:1]):
        kind = f"{tuple(labels.shape)} {str(labels.dtype).removeprefix('torch.')}"
        raise ConfigError("objective", None, f"{expected}, for labels {kind} and scores {tuple(scores)}")
    if labels.is_floating_point() and classes > 1 and labels.dim() == len(scores):
        sums = labels.sum(axis)
        if labels.min() >= 0 and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
            return "cross-entropy"
    return "binary-cross-entropy" if ((labels == 0) | (labels == 1)).all() else "mean-squared-error"


def marked(labels: Any, scores: Sequence[int], axis: int) -> Any:
    """Labels of an integer type with a number for every class (one-hot, several) as floating-point ones.

    Args:
        labels: of a batch; others are given back as they are.
        scores: shape of the model's scores, of some batch.
        axis: of the classes in them.
    """
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        return labels
    every = labels.dim() == len(scores) > 1 and labels.shape[axis] == scores[axis] > 1
    return labels.float() if every else labels


def without_axis(labels: Tensor, dims: int, axis: int) -> Tensor:
    """Labels without an axis of size 1 where the scores have their classes ([B, 1] for scores [B, C])."""
    axis = axis % dims
    return labels.squeeze(axis) if labels.dim() == dims and labels.shape[axis] == 1 else labels


def _alike(labels: Tensor, scores: Tensor) -> Tensor:
    """Labels as floating-point numbers of the scores' shape; nothing is repeated to fit."""
    if labels.numel() != scores.numel():
        shapes = f"labels {tuple(labels.shape)}, scores {tuple(scores.shape)}"
        raise UsageError(f"batch: there must be a label for every score ({shapes})")
    return labels.to(scores.dtype).reshape(scores.shape)
