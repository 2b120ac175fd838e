"""A user's own model as local modules, trained inside its own forward pass."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from locallearn.core.batches import ModelCall, model_call
from locallearn.errors import UsageError
from locallearn.losses.objectives import LocalLoss, Objective
from locallearn.nn.features import features_of, own_loss, prediction, seen_by_objective, with_features
from locallearn.nn.split import Piece
from locallearn.nn.width import join_channels

Loss = Callable[[Tensor, Tensor], Tensor]
"""A loss of the user's own: scores and labels in, a scalar out, like ``torch.nn.functional.cross_entropy``."""

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class SplitNetwork(nn.Module):
    """A user's model whose K modules train locally. Use :func:`locallearn.split`.

    Calling it calls the model, without heads. :meth:`step` trains it: the model's own forward pass runs once, and
    where a module ends its head, its loss, its backward pass and its update come at once; what the pass goes on with
    are the features, detached. So one module's graph is gone before the next one's begins, and the model may do
    whatever it does in its forward pass.

    Attributes:
        model: the user's model (a copy); names in its ``state_dict`` are the user's own, after ``model.``.
        pieces: the K modules: where each ends, its features' shape, what it trains and reads, what it costs.
        objectives: local losses of modules 1..K-1, with their heads.
        optimizers: one a module, in order; schedulers of torch may be put on them.
        clip_norm: largest gradient norm of a module; 0 means no clipping.
    """

    def __init__(
        self,
        model: nn.Module,
        found: Sequence[Piece],
        local: Sequence[Objective],
        loss: Loss,
        tokens: str,
        optimizer: OptimizerFactory,
        clip_norm: float = 0.0,
        grouped: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.model = model
        self.pieces = tuple(found)
        self.objectives = nn.ModuleList(local)
        self.clip_norm = clip_norm
        self.optimizers: list[torch.optim.Optimizer] = []
        self._loss, self._tokens, self._grouped = loss, tokens, tuple(grouped)
        self.set_optimizers(optimizer)

    @property
    def depth(self) -> int:
        """K."""
        return len(self.pieces)

    def set_optimizers(self, optimizer: OptimizerFactory) -> None:
        """Give every module a fresh optimizer over :meth:`module_parameters`."""
        self.optimizers = [optimizer(list(self.module_parameters(k).values())) for k in range(1, self.depth + 1)]

    def module_parameters(self, k: int) -> dict[str, nn.Parameter]:
        """What module k = 1..K trains, by the names in ``state_dict``: its part of the model, and its head."""
        names = [f"model.{name}" for name in self.pieces[k - 1].parameters]
        if k < self.depth:
            names += [f"objectives.{k - 1}.{name}" for name, _ in self.objectives[k - 1].named_parameters()]
        return {name: self.get_parameter(name) for name in names}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the user's model gives; heads are not computed."""
        return self.model(*args, **kwargs)

    def step(self, batch: Any) -> dict[str, Tensor]:
        """Train every module on one batch.

        Args:
            batch: a mapping of named arguments with ``labels``, or a pair (inputs, labels), on the model's device.

        Returns:
            ``loss/k`` of every module k = 1..K and ``loss``, the last one's; ``accuracy/k`` as a fraction where
            labels are classes [B]. Tensors without gradient on the model's device, of before the update.
        """
        call = model_call(self.model, batch)
        if call.labels is None and any(each.needs_labels for each in self.objectives):  # type: ignore[union-attr]
            raise UsageError("batch: there are no labels, which the objective of a module needs")
        metrics: dict[str, Tensor] = {}
        hooks = [
            self.model.get_submodule(piece.path).register_forward_hook(partial(self._local_step, k, call, metrics))
            for k, piece in enumerate(self.pieces[:-1], start=1)
        ]
        try:
            with torch.enable_grad():
                output = self.model(*call.args, **call.kwargs)
                self._check_all_ran(metrics)
                loss = self._last_loss(output, call)
        finally:
            for hook in hooks:
                hook.remove()
        self._update(self.depth, loss)
        _note(metrics, self.depth, loss, prediction(output), call.labels)
        metrics["loss"] = metrics[f"loss/{self.depth}"]
        return metrics

    def _local_step(
        self, k: int, call: ModelCall, metrics: dict[str, Tensor], _module: nn.Module, _args: Any, output: Any
    ) -> Any:
        """Train module k on the features that it just gave, and let the forward pass go on with them, detached."""
        features = features_of(output)
        assert features is not None
        objective = self.objectives[k - 1]
        loss: LocalLoss = objective(seen_by_objective(features, self._tokens), call.batch())
        self._update(k, loss.total.sum())
        _note(metrics, k, loss.total.mean(), None if loss.logits is None else loss.logits.mean(0), call.labels)
        return with_features(output, features.detach())

    def _update(self, k: int, loss: Tensor) -> None:
        """Backward and update of one module; parameters of others that it reads get no gradient."""
        optimizer = self.optimizers[k - 1]
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        optimizer.zero_grad()
        with torch.autocast(loss.device.type, enabled=False):
            loss.backward(inputs=parameters)
        if self.clip_norm:
            nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        optimizer.step()
        torch.clear_autocast_cache()  # it may hold a weight that a later module reads, as it was before the update

    def _last_loss(self, output: Any, call: ModelCall) -> Tensor:
        """The last module's loss: the model's own where it computes one, else the user's on its scores."""
        loss = own_loss(output)
        if loss is not None:
            return loss
        scores = prediction(output)
        assert scores is not None  # as in the trace
        if call.labels is None:
            raise UsageError("batch: there are no labels, and the model computes no loss of its own")
        return self._loss(scores, call.labels)

    def _check_all_ran(self, metrics: dict[str, Tensor]) -> None:
        for k, piece in enumerate(self.pieces[:-1], start=1):
            if f"loss/{k}" not in metrics:
                raise UsageError(f"cuts: {piece.path} did not run on this batch, as it did on the example")

    def training_state(self) -> dict[str, Any]:
        """Weights and optimizers, for ``torch.save``; :meth:`load_training_state` continues from them."""
        return {"network": self.state_dict(), "optimizers": [each.state_dict() for each in self.optimizers]}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`training_state` took; read it with ``torch.load(..., weights_only=True)``."""
        self.load_state_dict(state["network"])
        for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)

    def merge(self) -> nn.Module:
        """A copy of the trained model: the user's own class, names and shapes, without heads.

        With width groups its convolutions are dense again, with zeros between groups; ``model`` has grouped ones.
        """
        merged = copy.deepcopy(self.model)
        for path in self._grouped:
            layer = merged.get_submodule(path)
            assert isinstance(layer, nn.Conv2d)
            join_channels(layer)
        return merged


def _note(metrics: dict[str, Tensor], k: int, loss: Tensor, scores: Tensor | None, labels: Tensor | None) -> None:
    metrics[f"loss/{k}"] = loss.detach()
    if scores is not None and labels is not None and scores.dim() == 2 and labels.dim() == 1:
        metrics[f"accuracy/{k}"] = (scores.detach().argmax(-1) == labels).float().mean()
