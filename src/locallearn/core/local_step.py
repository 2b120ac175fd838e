"""The local step: forward pass, loss, backward pass, clipping by node and update of one stage.

Every runtime only decides where and when it is called.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from locallearn.arguments import checked_on_failure
from locallearn.core.clipping import clip_gradients
from locallearn.core.generators import keeping, seed_all
from locallearn.core.module import Features, Stage
from locallearn.core.own_errors import told_of
from locallearn.core.weight_average import WeightAverage
from locallearn.data.store import Batch
from locallearn.errors import ConfigError
from locallearn.losses.objectives import LocalLoss
from locallearn.nn.peers import Peers, computing_with
from locallearn.nn.replicas import whole_batch_norms
from locallearn.seeding import derive

DRAWING = threading.Lock()
"""Held by whoever draws from torch's own generator: stages that train at the same time share it with the loader."""


class LocalStep:
    """Forward, loss, backward and update of one stage; its graph is gone when the call returns.

    Args:
        module: the stage.
        optimizer: over the stage's parameters. Its rules are elementwise, so that it is every node's own optimizer.
        precision: ``"fp32"`` or ``"bf16"`` (autocast); None leaves what the caller has set.
        clip_norm: largest gradient norm of a node; 0 means no clipping.
        seed: the run's seed, for dropout and whatever else is drawn.
        peers: the other ranks that share the stage; none by default.
        accumulate: batches whose mean gradient an update follows; ``flush`` updates with fewer.

    Attributes:
        schedule: a scheduler of torch on the optimizer, stepped after every update; None leaves the rate alone.
        scaler: scales losses of fp16 and skips an update whose gradients are not finite; None scales nothing.
        average: an exponential moving average of the stage's weights; None keeps none.
        norms: of the nodes' gradients before the last update clipped them [G]; None where none was clipped.
    """

    @checked_on_failure
    def __init__(
        self,
        module: Stage,
        optimizer: torch.optim.Optimizer,
        precision: str | None = "fp32",
        clip_norm: float = 0.0,
        seed: int = 0,
        peers: Peers | None = None,
        accumulate: int = 1,
    ) -> None:
        if not hasattr(optimizer, "param_groups"):
            raise ConfigError("optimizer", type(optimizer).__name__, "a function that gives a torch.optim.Optimizer")
        self.module = module
        self.optimizer = optimizer
        self.precision = precision
        self.clip_norm = clip_norm
        self.seed = seed
        self.peers = peers or Peers()
        self.accumulate = accumulate
        self.schedule: LRScheduler | None = None
        self.scaler: torch.amp.GradScaler | None = None
        self.average: WeightAverage | None = None
        self.norms: Tensor | None = None
        self._gathered = 0

    def __call__(
        self,
        features: Features,
        batch: Batch,
        index: int | None = 0,
        rate: float | None = None,
        hand_on: Callable[[Features], None] | None = None,
    ) -> tuple[Features, LocalLoss]:
        """Train on one batch.

        Args:
            features: detached features of the stage before, or the images.
            batch: what the features are of: labels, and the images themselves.
            index: number of the step in the run; seeds what is drawn. None leaves torch's generator as it is.
            rate: learning rate of the step; None leaves the optimizer as it is.
            hand_on: is given the stage's features, detached, as soon as they are there.

        Returns:
            The stage's features, detached, computed before the update; and the losses, detached.
        """
        out, loss = self.passes(features, batch, index, hand_on)
        self.update(rate)
        return out, loss

    def passes(
        self,
        features: Features,
        batch: Batch,
        index: int | None = 0,
        hand_on: Callable[[Features], None] | None = None,
    ) -> tuple[Features, LocalLoss]:
        """Forward pass, loss and backward pass, which leave gradients in the parameters; else as the whole call."""
        out, loss = self.compute(features, batch, index, hand_on)
        self.backward(loss)
        return self.module.handed_on(out), self.module.told(loss)

    def compute(
        self,
        features: Features,
        batch: Batch,
        index: int | None = 0,
        hand_on: Callable[[Features], None] | None = None,
    ) -> tuple[Any, LocalLoss]:
        """The stage's output and the losses, with their graphs; else as the whole call."""
        features, batch = self.module.brought(features, batch)
        first = features if isinstance(features, Tensor) else features[0]
        self.module.begin()
        with (
            torch.enable_grad(),
            computing_with(self.peers),
            whole_batch_norms(),
            autocast(first.device, self.precision),
        ):
            with self._seeded(index, first.device):
                out = self.module(features, batch)
                if hand_on is not None:
                    hand_on(self.module.handed_on(out))
                if self.module.objective.draws:
                    return out, self.module.loss(out, batch)
            return out, self.module.loss(out, batch)  # while other stages may draw

    def learn(
        self, out: Any, batch: Batch, rate: float | None = None, reaches: Sequence[Tensor] = (), waits: bool = False
    ) -> LocalLoss:
        """Train on an output of the stage that is there already, computed in the caller's own forward pass.

        Generator and autocast are the caller's; only the backward pass is never in autocast. ``reaches`` are tensors
        that get a gradient too; a stage that ``waits`` keeps its graph, and is not updated yet.
        """
        with computing_with(self.peers):
            loss = self.module.loss(out, batch)
        device = loss.total.device
        with torch.autocast(device.type, enabled=False):
            if waits:
                self.backward(loss, reaches, keep=True)
            else:
                self.backward(loss)
                self.update(rate)
        torch.clear_autocast_cache()  # it may hold a weight that a later stage reads, as it was before the update
        return loss.detached()

    def backward(self, loss: LocalLoss, reaches: Sequence[Tensor] = (), keep: bool = False) -> None:
        """Leave gradients in the stage's own parameters; others that it reads get none.

        Args:
            loss: with its graph.
            reaches: tensors that get a gradient too.
            keep: whether the graph is walked again.
        """
        parameters = [*self._trained(), *reaches]
        if not self._gathered:
            self.optimizer.zero_grad(set_to_none=True)
        total = loss.total.sum()  # nodes share no parameters: each gets the gradient of its own loss alone
        if self.accumulate > 1:
            total = total / self.accumulate
        if self.scaler is not None:
            total = self.scaler.scale(total)
        if parameters and total.requires_grad:  # else all that the loss depends on is frozen
            with self._recomputing():
                total.backward(inputs=parameters, retain_graph=keep)

    def backward_from(self, output: Tensor, gradient: Tensor) -> None:
        """Add the gradient of another stage's loss, from what it is by this stage's output."""
        parameters = self._trained()
        if parameters and output.requires_grad:
            output.backward(gradient, inputs=parameters)

    @contextlib.contextmanager
    def _recomputing(self) -> Iterator[None]:
        """What checkpoints compute again, in this thread, is computed with the other replicas."""
        if self.peers.replicas == 1:
            yield
            return
        with computing_with(self.peers), whole_batch_norms(), torch.autograd.set_multithreading_enabled(False):
            yield

    def _trained(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]

    def update(self, rate: float | None = None) -> None:
        """Update the weights by the gradients that the backward pass left, at this learning rate.

        With ``accumulate`` only every so many calls do.
        """
        self._gathered += 1
        if self._gathered == self.accumulate:
            self._update(rate)

    @property
    def gathering(self) -> bool:
        """Whether gradients of some batches wait for the update that follows more of them."""
        return self._gathered > 0

    def flush(self) -> None:
        """Update with the gradients that have been accumulated, though there are fewer batches than usual."""
        if self._gathered:
            self._update(None)

    def _update(self, rate: float | None) -> None:
        self._gathered = 0
        parameters = self.module.own_parameters().values() if self.peers.replicas > 1 or self.clip_norm else ()
        self.peers.sum_gradients(parameters)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if self.clip_norm:
            self.norms = clip_gradients(parameters, self.module.groups, self.clip_norm)
        if rate is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
        stage = f"of stage {self.module.name} makes no step"
        with told_of("optimizer", f"{type(self.optimizer).__name__} {stage}"):
            if self.scaler is None:
                self.optimizer.step()
            else:
                self.scaler.step(self.optimizer)
                self.scaler.update()
        if self.schedule is not None:
            with told_of("schedule", f"{type(self.schedule).__name__} {stage}"):
                self.schedule.step()
        if self.average is not None:
            self.average.update()

    @contextlib.contextmanager
    def _seeded(self, index: int | None, device: torch.device) -> Iterator[None]:
        if not self.module.random or index is None:
            yield
            return
        with DRAWING, keeping(device):
            self.seed_draws(index)
            yield

    def seed_draws(self, index: int) -> None:
        """Set all generators to where the stage's draws at a step begin."""
        replica = [self.peers.replica] if self.peers.replica else []  # of a user's model, whose rows draw apart
        seed_all(derive(self.seed, "dropout", self.module.name, index, *replica))


def autocast(device: torch.device, precision: str | None) -> contextlib.AbstractContextManager[Any]:
    """Autocast to bf16 or fp16, none where ``precision`` is ``"fp32"``; None changes nothing."""
    if precision is None:
        return contextlib.nullcontext()
    kind = torch.float16 if precision == "fp16" else torch.bfloat16
    # without its cache of casts, which all threads share and no layer gains by: each uses its weights once
    return torch.autocast(device.type, dtype=kind, enabled=precision != "fp32", cache_enabled=False)


def walk(
    steps: Sequence[LocalStep], batch: Batch, index: int | None = None, rate: float | None = None
) -> list[LocalLoss]:
    """Train stages one after the other on one batch (Algorithms 1 and 2); arguments as of ``LocalStep``."""
    features: Features = batch.images
    losses = []
    for step in steps:
        features, loss = step(features, batch, index, rate)
        losses.append(loss)
    return losses
