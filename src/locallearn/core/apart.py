"""Stages of a user's model that compute each without the others: on threads, on devices or in processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from locallearn.core.local_step import LocalStep
from locallearn.core.model_stage import ModelStage
from locallearn.core.module import Features
from locallearn.core.recorder import Recorder
from locallearn.data.store import Batch
from locallearn.errors import ConfigError
from locallearn.losses.objectives import LocalLoss


def set_apart(stages: Sequence[ModelStage], recorder: Recorder) -> None:
    """Let every stage compute without the others.

    Args:
        stages: all of them, in order.
        recorder: of their model.

    Raises:
        ConfigError: the model's own loss has a part that no stage can compute alone.
    """
    pieces = [stage.piece for stage in stages]
    owners = {name: k for k, piece in enumerate(pieces) for name in piece.parameters}
    for stage in stages:
        if any(share.weight is None for share in stage.piece.shares):
            expected = "inline for a model whose own loss balances the experts of all stages"
            raise ConfigError("runtime", "threads", expected)
        stage.run_alone(recorder, owners, pieces)


def walk_apart(
    stages: Sequence[ModelStage], steps: Sequence[LocalStep], batch: Batch, index: int | None, rate: float | None
) -> list[LocalLoss]:
    """Train stages that are on devices of their own, one after the other; arguments as of ``LocalNetwork.walk``."""
    features: Features = batch.images
    losses = []
    for stage, step in zip(stages, steps, strict=True):
        stage.copies.read_now()
        features, loss = step(features, batch, index, rate)
        losses.append(loss)
    return losses


def look_apart(stages: Sequence[ModelStage], batch: Batch) -> Iterator[tuple[str, Tensor | None, Tensor]]:
    """What ``LocalNetwork.look`` gives, of stages that are on devices of their own."""
    features: Features = batch.images
    for stage in stages:
        stage.copies.read_now()
        features, here = stage.brought(features, batch)
        output = stage(features, here)
        loss, features = stage.told(stage.loss(output, here)), stage.handed_on(output)
        yield stage.name, loss.logits, loss.total


def release(stages: Sequence[ModelStage], held: Sequence[int]) -> None:
    """Let go of the weights of the stages that are not ``held`` (counted from 0): they become one NaN each."""
    own = {id(p) for k in held for p in stages[k].own_parameters().values()}
    everywhere = {name for stage in stages for name in stage.piece.everywhere}
    own |= {id(p) for name, p in stages[0].model.named_parameters() if name in everywhere}
    for stage in stages:
        for parameter in stage.own_parameters().values():
            if id(parameter) not in own:
                empty = torch.full((), torch.nan, dtype=parameter.dtype, device=parameter.device)
                parameter.data = empty.expand(parameter.shape)


def take_back(parameters: Iterable[nn.Parameter]) -> None:
    """Give memory to the weights that ``release`` has let go of; their values are still to come."""
    for parameter in parameters:
        if parameter.numel() > 1 and not any(parameter.stride()):
            parameter.data = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
