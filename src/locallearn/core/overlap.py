r"""Overlapping stages: a stage's loss reaches into the stage before it. The one exception to local learning here.

.. math:: \Delta\theta_k \propto -\nabla_{\theta_k} (L_k + L_{k+1})

Gradients cross one cut and stop at the next. LoCo (Xiong, Ren and Urtasun, NeurIPS 2020) has stages that share a
block, interlocking backpropagation (Gomez et al., JMLR 2022) lets the loss of every module reach N - 1 modules below,
and HPFF (Su et al., ECCV 2024) trains pairs of modules; this is the second, with N = 2. The network's own classifier
on the features of several groups is no module, and its loss reaches none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from locallearn.core.local_step import LocalStep
from locallearn.core.module import LocalModule
from locallearn.data.store import Batch
from locallearn.errors import ConfigError
from locallearn.losses.objectives import LocalLoss
from locallearn.nn.pieces import Piece

CLASSIFIER = "classifier"
"""Name of the decoupled classifier, which is no module: nothing of its loss reaches anything but itself."""


def check_overlap(overlap: int, pieces: Sequence[Piece]) -> None:
    """Refuse overlapping stages of a user's model whose graphs cannot wait for the next stage.

    Raises:
        ConfigError: there is one stage, one that runs again in a backward pass, or one that reads weights which are
            updated before its graph is gone.
    """
    if overlap not in (0, 1):
        raise ConfigError("overlap", overlap, "0, or 1 (the module before)")
    if not overlap:
        return
    if len(pieces) == 1:
        raise ConfigError("overlap", overlap, "0 with depth 1: there is no module before")
    for k, piece in enumerate(pieces[:-1], 1):
        if piece.recomputed:
            expected = f"0 with activation checkpointing around the end of stage {k}, {piece.path}"
            raise ConfigError("overlap", overlap, expected)
        if piece.reads:
            expected = f"0 where stage {k} reads {piece.reads[0]}, which an earlier one trains"
            raise ConfigError("overlap", overlap, expected)


def check_reads(stage: int, owners: Iterable[int], runtime: str) -> None:
    """Refuse a stage, counted from 0, that reads weights of the stage before it, which wait for its own loss.

    Raises:
        ConfigError: it does; ``runtime`` is one in which stages do not compute in turn.
    """
    if stage - 1 in owners:
        expected = f"inline with overlap 1 where stage {stage + 1} reads weights that stage {stage} trains"
        raise ConfigError("runtime", runtime, expected)


@dataclass
class Waiting:
    """A stage whose graph waits for the loss of the stage after it."""

    step: LocalStep
    features: Tensor

    def end(self, gradient: Tensor | None, rate: float | None) -> None:
        """Add the gradient that came back, and update."""
        with torch.autocast(self.features.device.type, enabled=False):
            if gradient is not None:
                self.step.backward_from(self.features, gradient)
            self.step.update(rate)
        torch.clear_autocast_cache()  # as after every update in a forward pass that goes on


def overlapping_walk(
    steps: Sequence[LocalStep], batch: Batch, index: int | None = None, rate: float | None = None
) -> list[LocalLoss]:
    """Train stages one after the other on one batch, each by its own loss and by that of the stage after it.

    A stage's graph is kept until the loss of the next one has gone through it, so activations are those of two
    stages at a time; each stage but the last is walked backward twice, and the gradient by its features goes back to
    it. What the next stage sees is as ever computed before the update.

    Args:
        steps: local steps of the stages that the package builds, in order.
        batch: the batch.
        index: number of the step, which seeds what is drawn; None leaves torch's generator as it is.
        rate: learning rate of the step; None leaves the optimizers as they are.
    """
    losses: list[LocalLoss] = []
    features, below = batch.images, None
    for step in steps:
        features, below, loss = train_over(step, features, batch, index, rate, below)
        losses.append(loss)
    assert below is not None
    below.end(None, rate)
    return losses


def train_over(
    step: LocalStep,
    features: Any,
    batch: Batch,
    index: int | None = None,
    rate: float | None = None,
    below: Waiting | None = None,
) -> tuple[Any, Waiting, LocalLoss]:
    """Train one stage over the one below it, which ends with that; else as ``overlapping_walk``.

    Returns:
        The stage's features, detached; the stage, which waits for the next one; and its losses.
    """
    assert isinstance(step.module, LocalModule)
    given = features[0] if isinstance(features, tuple) else features  # beside it there is context at most
    reaches = [given.requires_grad_()] if below is not None and step.module.name != CLASSIFIER else []
    out, loss = step.compute(features, batch, index)
    step.backward(loss, reaches, keep=True)
    if below is not None:
        below.end(reaches[0].grad if reaches else None, rate)
    return step.module.handed_on(out), Waiting(step, step.module.features(out)), loss.detached()
