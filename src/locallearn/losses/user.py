"""Objectives made of a loss of scores and labels: on an auxiliary head's scores, or on the model's own."""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from locallearn.data.store import Batch
from locallearn.errors import UsageError
from locallearn.losses.objectives import LocalLoss, Objective
from locallearn.nn.features import prediction, tensors_of

Loss = Callable[..., Tensor]
"""A loss of the user's own: scores and labels in, one number out, like ``torch.nn.functional.cross_entropy``.

One that takes an argument named ``batch`` is given the whole batch there, as the loader made it; it may leave the
labels out: ``def loss(scores, batch)``.
"""

_CHECKING: ContextVar[set[int] | None] = ContextVar("checking", default=None)
"""Ids of labels that a loss has written into; None where nothing is checked."""


class UserLoss(Objective):
    """A loss of scores and labels through an auxiliary head.

    Args:
        head: features to scores [G, ...], each as the model's own scores.
        loss: of scores and labels.
        scored: whether the scores are of classes, so that evaluation may count which are right.
    """

    def __init__(self, head: nn.Module, loss: Loss, scored: bool = True) -> None:
        super().__init__()
        self.head = head
        self.loss = loss
        self.scored = scored
        self.needs_labels = not takes_batch(loss)  # type: ignore[misc]

    def forward(self, features: Tensor, batch: Batch) -> LocalLoss:
        """Losses [G] of the nodes."""
        scores = self.head(features)
        total = torch.stack([called(self.loss, each, batch) for each in scores])
        logits = scores.detach() if self.scored and scores.dim() == 3 and scores.shape[2] > 1 else None
        return LocalLoss(total, {"loss": total.detach()}, logits)


def called(loss: Loss, scores: Any, batch: Batch) -> Tensor:
    """The value of a loss; what it does not take is said in a line.

    Args:
        loss: of scores and labels, or of all that a model gives and labels.
        scores: a tensor, or all that a model gave.
        batch: has the labels.

    Raises:
        UsageError: it fails on these scores and labels, or gives anything but one number.
    """
    labels: Any = batch.labels
    first = scores if isinstance(scores, Tensor) else prediction(scores)
    assert first is not None
    more = {"batch": getattr(batch, "given", batch)} if takes_batch(loss) else {}
    checked = _CHECKING.get()
    before = [] if checked is None else [(x, x._version, x.clone()) for x in tensors_of(labels)]
    try:
        with contextlib.nullcontext() if checked is None or not first.dim() else _NoAccidents(len(first)):
            value = value_of(loss, scores, labels, **more)
    except (UsageError, torch.OutOfMemoryError, NotImplementedError):
        raise
    except Exception as error:
        said = str(error).strip().split("\n")[0]
        what = f"scores {tuple(first.shape)}" if first is scores else "the model's whole output"
        what += f" and labels {_described(labels)}" if not more or _takes_labels(loss) else ""
        raise UsageError(f"objective: the loss does not take {what}: {type(error).__name__}: {said}") from error
    if not isinstance(value, Tensor) or value.dim():
        found = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise UsageError(f"objective: a loss gives one number, a tensor without dimensions; this one gives {found}")
    if checked is None:
        return value
    if first.requires_grad and not value.requires_grad:
        raise UsageError("objective: the loss has no gradient, so that it would train nothing")
    for labels_here, version, copy in before:
        if labels_here._version != version:
            if id(labels_here) in checked and not torch.equal(labels_here, copy):
                shared = "which the losses of all modules are given"
                raise UsageError(
                    f"objective: the loss writes into the labels, {shared}; expected labels.clone() first"
                )
            checked.add(id(labels_here))
    return value


@contextlib.contextmanager
def checking() -> Iterator[None]:
    """While it lasts, losses that repeat scores or labels by accident are refused."""
    token = _CHECKING.set(set())
    try:
        yield
    finally:
        _CHECKING.reset(token)


class _NoAccidents(TorchFunctionMode):
    """Refuses operations that spread [B, 1] and [B] to [B, B]: each example's score with each other one's label."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if self.rows > 1 and name in _ELEMENTWISE:
            shapes = [x.shape for x in (*args, *(kwargs or {}).values()) if isinstance(x, Tensor)]
            for a, b in itertools.combinations(shapes, 2):
                by_example = len(a) != len(b) and min(len(a), len(b)) > 0 and a[0] == b[0] == self.rows
                if by_example and 1 in (a[-1], b[-1]):
                    found = f"{tuple(a)} and {tuple(b)}"
                    raise UsageError(
                        f"objective: the loss puts {found} together, which repeats every example's numbers"
                    )
        return result


_ARITHMETIC = ("sub", "add", "mul", "div", "truediv", "pow")
_ELEMENTWISE = frozenset(
    (
        *_ARITHMETIC,
        *(f"__{name}__" for name in _ARITHMETIC),
        *(f"__r{name}__" for name in _ARITHMETIC),
        *("where", "maximum", "minimum", "max", "min", "logaddexp", "xlogy", "lerp", "kl_div"),
        "mse_loss",
        "l1_loss",
        "huber_loss",
        "smooth_l1_loss",
        "gaussian_nll_loss",
        "poisson_nll_loss",
        "binary_cross_entropy_with_logits",
    )
)


def takes_batch(loss: Loss) -> bool:
    """Whether a loss has an argument named ``batch``."""
    signature = _signature(loss)
    return signature is not None and "batch" in signature.parameters


def value_of(loss: Loss, scores: Any, labels: Any, **more: Any) -> Any:
    """What a loss gives for scores and labels; with the batch among ``more`` it may take no labels."""
    return loss(scores, **more) if more and not _takes_labels(loss) else loss(scores, labels, **more)


def _takes_labels(loss: Loss) -> bool:
    """Whether a loss with an argument named ``batch`` takes labels beside scores, too."""
    signature = _signature(loss)
    try:
        return signature is not None and bool(signature.bind(None, None, batch=None))
    except TypeError:
        return False


def _signature(loss: Loss) -> inspect.Signature | None:
    try:
        return inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss)
    except (TypeError, ValueError):
        return None


def _described(labels: Any) -> str:
    if isinstance(labels, Tensor):
        return f"{tuple(labels.shape)} {str(labels.dtype).removeprefix('torch.')}"
    return f"in a {type(labels).__name__}"
