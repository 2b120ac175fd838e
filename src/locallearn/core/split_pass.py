"""One forward pass of a whole model in which its stages train, each where it ends."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from locallearn.core.batches import CalledBatch
from locallearn.core.generators import keeping
from locallearn.core.local_step import DRAWING, LocalStep, autocast
from locallearn.core.model_stage import ModelStage
from locallearn.core.overlap import Waiting
from locallearn.core.shares import listening
from locallearn.core.stage_ends import at_ends
from locallearn.errors import UsageError
from locallearn.losses.objectives import LocalLoss
from locallearn.nn.checkpointing import non_reentrant
from locallearn.nn.features import features_of, prediction, with_features
from locallearn.nn.hooks import removed_after


class SplitPass:
    """One forward pass of a whole model in which the stages train, each where it ends."""

    def __init__(
        self,
        stages: Sequence[ModelStage],
        steps: Sequence[LocalStep],
        batch: CalledBatch,
        index: int | None,
        rate: float | None,
        overlap: int = 0,
    ) -> None:
        self.stages, self.steps, self.batch, self.index, self.rate = stages, steps, batch, index, rate
        self.losses: dict[int, LocalLoss] = {}
        stages[0].give(batch.images)
        self._features: dict[int, Tensor] = {}
        self._learning = False
        self._overlap = overlap
        self._below: Waiting | None = None
        self._given: list[Tensor] = []  # what the present stage is given, where its loss reaches there

    def run(self, compiled: contextlib.AbstractContextManager[None]) -> list[LocalLoss]:
        """Let the model's forward pass run, and its stages train in it.

        Args:
            compiled: lasts while the model's blocks are compiled ones.
        """
        model, device = self.stages[0].model, self.batch.images.device
        assert self.batch.call is not None
        with (
            torch.enable_grad(),
            non_reentrant(),
            contextlib.nullcontext() if self.index is None else DRAWING,  # of another training on another thread, too
            contextlib.nullcontext() if self.index is None else keeping(device),  # stages seed what is drawn
            autocast(device, self.steps[0].precision),
            listening_for(self.stages),
            compiled,
            at_ends(model, [stage.piece for stage in self.stages[:-1]], self.train_here),
        ):
            seed(self.steps[0], self.index)
            with self.stages[-1].calling(model, self.batch.call) as call:
                output = model(*call.args, **call.kwargs)
            return self.end(output)

    def train_here(self, k: int, output: Any) -> Any:
        """Train stage k (from 0) on the features that it just gave, and let the pass go on with them, detached.

        A submodule that runs again in a backward pass, for a checkpointed segment, answers with the features that it
        gave the first time.
        """
        if self._learning or k in self.losses:
            return with_features(output, self._features[k]) if k in self._features else output
        features = features_of(output)
        assert features is not None
        if self.stages[k].piece.recomputed:
            self._features[k] = features.detach()
        self._learn(k, output)
        seed(self.steps[k + 1], self.index)
        handed_on = features.detach()
        if self._overlap:
            self._given = [handed_on.requires_grad_()]
            handed_on = handed_on.clone()  # the stage before still needs its own, and leaves are not written into
        self.stages[k + 1].give(handed_on)
        return with_features(output, handed_on)

    def end(self, output: Any) -> list[LocalLoss]:
        """Train the last stage on the model's output; all losses."""
        for k, stage in enumerate(self.stages[:-1]):
            if k not in self.losses:
                if not stage.model.training or not stage.piece.parameters:
                    raise UsageError(f"cuts: {stage.piece.path} did not run on this batch, as it did on the example")
                warnings.warn(
                    f"{stage.piece.path} did not run on a batch, which stage {k + 1} was not trained on", stacklevel=5
                )
                self.losses[k] = LocalLoss(torch.zeros(0), {}, None)
        self._learn(len(self.steps) - 1, output)
        if self._below is not None:
            self._below.end(None, self.rate)
        return [self.losses[k] for k in range(len(self.steps))]

    def _learn(self, k: int, output: Any) -> None:
        self._learning = True
        try:
            self.stages[k].copies.read_now()  # where stages have copies, of having run apart before
            self.stages[k].begin()
            # a checkpoint around this place is not to recompute what the loss saves
            with saved_tensors_hooks(_same, _same) if self.stages[k].piece.recomputed else contextlib.nullcontext():
                step, waits = self.steps[k], bool(self._overlap)
                self.losses[k] = step.learn(output, self.batch, self.rate, self._given, waits)
            if self._overlap:
                self._wait(k, output)
        finally:
            self._learning = False

    def _wait(self, k: int, output: Any) -> None:
        """End the stage below with the gradient that stage k gave it; k waits for the next one."""
        if self._below is not None:
            self._below.end(self._given[0].grad, self.rate)
        features = prediction(output) if self.stages[k].last else features_of(output)
        assert features is not None
        self._below = Waiting(self.steps[k], features)


@contextlib.contextmanager
def listening_for(stages: Sequence[ModelStage]) -> Iterator[None]:
    """While it lasts, stages note what their shares of the model's own loss are made of, and what they are given."""
    with contextlib.ExitStack() as stack:
        for stage in stages:
            stack.enter_context(listening(stage.model, stage.piece.shares, stage.noted))
            stack.enter_context(removed_after(stage.listen_to(stage.model)))
        yield


def _same(tensor: Tensor) -> Tensor:
    return tensor


def seed(step: LocalStep, index: int | None) -> None:
    """Set generators to where the draws of a stage at a step begin; a step without a number leaves them alone."""
    if index is not None:
        step.seed_draws(index)
