"""The last stage's loss without the scores of the model's last linear layer, which nothing keeps then."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from locallearn.core.batches import LABELS, CalledBatch, ModelCall
from locallearn.core.rehearsal import SplitWarning
from locallearn.core.task_objectives import ModelLoss
from locallearn.core.tasks import Task
from locallearn.data.store import Batch
from locallearn.losses.chunked import linear_cross_entropy
from locallearn.losses.objectives import LocalLoss
from locallearn.losses.scores import ScoresLoss
from locallearn.losses.tokens import by_token
from locallearn.nn.modes import evaluating
from locallearn.nn.pieces import Piece
from locallearn.nn.trace import Trace


class LastLayerLoss(ModelLoss):
    """The objective of the last stage where that is the cross entropy of its last linear layer's scores.

    In training the model runs up to the layer, and loss and gradients come of what the layer is given
    (``linear_cross_entropy``). In evaluation it is the model's own loss as ever.

    Args:
        of_scores: the loss of scores and labels.
        path: of the layer.
        trained: whether the last stage trains the layer's weight; tied ones belong to an earlier stage.
        chunk: how many scores are computed at a time.
    """

    draws = False

    def __init__(self, of_scores: ScoresLoss, path: str, trained: bool, chunk: int) -> None:
        super().__init__(of_scores)
        self.path, self.trained, self.chunk, self.shift = path, trained, chunk, of_scores.shift
        self._given: tuple[Tensor, nn.Linear] | None = None

    @contextlib.contextmanager
    def instead_of_scores(self, model: nn.Module, call: ModelCall) -> Iterator[ModelCall]:
        """While it lasts a training pass of the model ends before its last layer, and computes no loss of its own.

        Args:
            model: the model that is about to run, or a copy of it.
            call: how it is called.

        Yields:
            How to call it instead.
        """
        self._given = None
        if not model.training:
            yield call
            return
        layer: Any = model.get_submodule(self.path)
        own = layer.__dict__.get("forward")

        def note(x: Tensor) -> Tensor:
            self._given = (x, layer)
            return x.new_zeros(()).expand(*x.shape[:-1], layer.out_features)  # the scores' shape, no memory

        layer.forward = note
        try:
            kwargs = {name: value for name, value in call.kwargs.items() if name not in LABELS}
            yield dataclasses.replace(call, kwargs=kwargs)
        finally:
            if own is None:
                del layer.forward
            else:
                layer.forward = own

    def forward(self, output: Any, batch: Batch) -> LocalLoss:  # type: ignore[override]
        """Loss [1] of what the model gave for a batch."""
        if self._given is None:
            return super().forward(output, batch)
        (given_BTC, layer), self._given = self._given, None
        weight, bias = layer.weight, layer.bias
        if not self.trained:
            weight, bias = weight.detach(), None if bias is None else bias.detach()
        labels = batch.call.labels if isinstance(batch, CalledBatch) and batch.call is not None else batch.labels
        x_NC, labels_N = by_token(given_BTC, labels, self.shift)
        loss = linear_cross_entropy(x_NC, weight, bias, labels_N, self.chunk)
        return LocalLoss(loss[None], {"loss": loss.detach()[None]}, None)


def last_layer_loss(
    task: Task, found: Trace, call: ModelCall, model: nn.Module, pieces: Sequence[Piece], chunk: int
) -> LastLayerLoss | None:
    """The objective where the model's own loss on the example is what it would give; None, with a warning, elsewhere.

    Args:
        task: what is learnt.
        found: the model's trace.
        call: the example.
        model: a copy of the model, which may run.
        pieces: the stages.
        chunk: how many scores are computed at a time.
    """
    layer = model.get_submodule(found.scorer) if found.scorer else None
    if isinstance(layer, nn.Linear) and isinstance(task.loss, ScoresLoss) and task.name in ("token", "next-token"):
        own = {id(model.get_parameter(name)) for name in pieces[-1].parameters}
        loss = LastLayerLoss(task.loss, found.scorer or "", id(layer.weight) in own, chunk)
        if _gives_the_same(loss, model, call):
            return loss
    said = "the last stage keeps its scores: its loss is not the cross entropy of the scores of a last linear layer"
    warnings.warn(said, SplitWarning, stacklevel=6)
    return None


@torch.no_grad()
def _gives_the_same(loss: LastLayerLoss, model: nn.Module, call: ModelCall) -> bool:
    """Whether both ways give the same loss on the example, without dropout and the like."""
    batch = call.batch()
    try:
        with torch.random.fork_rng(), evaluating(model):
            plain = loss(model(*call.args, **call.kwargs), batch).total
            model.training = True  # of the whole alone, which is what is asked
            with loss.instead_of_scores(model, call) as fewer:
                apart = loss(model(*fewer.args, **fewer.kwargs), batch).total
    except Exception:  # it needs labels, or has no data
        return False
    return bool(torch.allclose(plain, apart, rtol=1e-3 if plain.dtype.itemsize < 4 else 1e-4))
