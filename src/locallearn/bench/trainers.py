"""Ways to train on one batch again and again in one process, perhaps beside others: ours and torch's own.

A trainer is built where it runs, in a process of a ``Crew``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.nn.parallel import DistributedDataParallel

from locallearn.bench.compiled import compiled_backprop
from locallearn.bench.step import Setting, local
from locallearn.config import RunConfig
from locallearn.core.local_step import LocalStep, autocast
from locallearn.core.module import LocalModule
from locallearn.core.network import LocalNetwork
from locallearn.data.store import Batch
from locallearn.nn.peers import Peers
from locallearn.plan.mesh import split
from locallearn.runtime.distributed import DistributedRuntime
from locallearn.runtime.world import Alone, ProcessWorld
from locallearn.training.optim import build_optimizer
from locallearn.training.own_nodes import Nodes

if TYPE_CHECKING:
    from locallearn.bench.own_jobs import OwnModel

Way = Literal["inline", "distributed", "1f1b", "gpipe", "ddp", "backprop", "compiled"]
"""How to train: the package's own step in one process or on a mesh, a pipeline of the modules, or replicas; undivided
also by plain backpropagation of a user's own model, or compiled."""


@dataclass(frozen=True)
class TimedJob:
    """What the processes of a crew train.

    Attributes:
        way: how; ``1f1b``, ``gpipe`` and ``ddp`` train the undivided network, the first two cut where ``config`` is.
        config: the network, and the mesh of the processes.
        setting: batch, device, precision and threads.
        microbatches: parts of a batch of ``1f1b`` and ``gpipe``.
        own: the user's own model that is trained; None for the network of ``config``.
    """

    way: Way
    config: RunConfig
    setting: Setting
    microbatches: int = 4
    own: OwnModel | None = None


class Lap(NamedTuple):
    """What a process did in one turn.

    Attributes:
        ends: when each of its steps ended, on the machine's clock [s].
        waits: seconds that it had waited for others by then.
    """

    ends: list[float]
    waits: list[float]


class TimedTrainer:
    """One process's part of a training.

    Attributes:
        parameters: what is trained here.
        waited: seconds spent waiting for others so far; 0 where nobody measures it.
        losses: what the last step trained on here, of a user's own model.
    """

    parameters: Sequence[nn.Parameter]
    waited = 0.0
    losses: Sequence[Tensor] = ()

    def step(self) -> None:
        """Train on the batch once, with the other processes."""
        raise NotImplementedError

    def alone(self) -> None:
        """What this process computes in a step, without the others."""
        self.step()


def build_trainer(job: TimedJob, world: Alone | ProcessWorld) -> TimedTrainer:
    """The trainer of this process."""
    if job.own is not None:
        from locallearn.bench.own_trainers import build_own_trainer  # which knows this module

        return build_own_trainer(job, job.own, world)
    if isinstance(world, Alone):
        return CompiledBackprop(job) if job.way == "compiled" else Inline(job)
    kinds = {"distributed": Distributed, "1f1b": Pipeline, "gpipe": Pipeline, "ddp": DataParallel}
    return kinds[job.way](job, world)


class Inline(TimedTrainer):
    """The package's step in one process."""

    def __init__(self, job: TimedJob) -> None:
        contender = local(job.config, job.setting)
        self.parameters = contender.parameters
        self.step = contender.step  # type: ignore[method-assign, assignment]


class CompiledBackprop(TimedTrainer):
    """Backpropagation of torch's own layers under ``torch.compile``, compiled before the first turn."""

    def __init__(self, job: TimedJob) -> None:
        contender = compiled_backprop(job.config.model, job.setting)
        self.parameters = contender.parameters
        self.step = contender.step  # type: ignore[method-assign, assignment]


class Distributed(TimedTrainer):
    """The distributed runtime, on the nodes of this process: what ``train --runtime distributed`` calls."""

    def __init__(self, job: TimedJob, world: ProcessWorld) -> None:
        setting = job.setting
        train = dataclasses.replace(
            job.config.train, precision=setting.precision, device=str(setting.device), channels_last=True
        )
        network = setting.network(job.config)
        self._batch = setting.batch()
        self._inputs = _inputs(network, self._batch, setting.precision)
        self._nodes = Nodes(dataclasses.replace(job.config, train=train), network, setting.image, world)
        assert isinstance(self._nodes.runtime, DistributedRuntime)
        self._runtime = self._nodes.runtime
        self._index = 0
        self._runtime.open(0, 2**40)
        self.parameters = list(self._nodes.network.parameters())
        self._alone = {
            i: LocalStep(step.module, step.optimizer, step.precision, peers=_Echo(step.peers))
            for i, step in self._nodes.steps.items()
        }

    @property
    def waited(self) -> float:  # type: ignore[override]
        """Seconds that this process has waited for features, for room to send them, and in exchanges."""
        return self._runtime.waited

    def step(self) -> None:
        """Train on the batch once, with the other processes."""
        self._runtime.step(self._batch, self._index)
        self._index += 1

    def alone(self) -> None:
        """Train the nodes of this process on what reaches them, without any message."""
        for i, step in self._alone.items():
            step(self._inputs[i], self._batch)


class _Echo(Peers):
    """In the place of ranks that share a module: their values are this rank's own."""

    def __init__(self, like: Peers) -> None:
        self.index, self.ways = like.index, like.ways

    def gather_groups(self, x: Tensor, dim: int) -> Tensor:
        """The values as often as there are ranks."""
        return torch.cat([x if i == self.index else x.detach() for i in range(self.ways)], dim)


class Pipeline(TimedTrainer):
    """torch's own pipelining (``torch.distributed.pipelining``): the modules are stages, gradients flow back."""

    def __init__(self, job: TimedJob, world: ProcessWorld) -> None:
        setting, self._count = job.setting, job.microbatches
        network = setting.network(job.config)
        modules, rank = list(network), world.rank
        self._batch = setting.batch()
        given = _inputs(network, self._batch, setting.precision)[rank]
        self._first, self._last = rank == 0, rank == len(modules) - 1
        self._stage = _Stage(modules[rank], self._first, self._last, setting.precision)
        if not self._first and given.dim() == 4:
            given = given.permute(0, 2, 3, 1).contiguous()
        self._given = list(given.chunk(self._count))
        stage = PipelineStage(self._stage, rank, len(modules), setting.device)
        schedule = Schedule1F1B if job.way == "1f1b" else ScheduleGPipe
        self._schedule = schedule(stage, self._count, loss_fn=_loss)
        self.parameters = list(self._stage.parameters())
        self._optimizer = build_optimizer(job.config.optimizer, self.parameters)

    def step(self) -> None:
        """Train on the batch once, with the other processes."""
        self._optimizer.zero_grad(set_to_none=True)
        images = (self._batch.images,) if self._first else ()
        self._schedule.step(*images, target=self._batch.labels if self._last else None, return_outputs=False)
        self._optimizer.step()

    def alone(self) -> None:
        """The forward and backward passes of this stage on every microbatch, and the update."""
        self._optimizer.zero_grad(set_to_none=True)
        for given, labels in zip(self._given, self._batch.labels.chunk(self._count), strict=True):
            out = self._stage(given.detach().requires_grad_(not self._first))
            if self._last:
                (_loss(out, labels) / self._count).backward()
            else:
                out.backward(torch.full_like(out, 1e-3))
        self._optimizer.step()


class _Stage(nn.Module):
    """The blocks of a module; the last one with the classifier.

    Between stages features travel as [B, H, W, C], as they lie in memory, for only contiguous tensors can be sent.
    """

    def __init__(self, module: LocalModule, first: bool, last: bool, precision: str) -> None:
        super().__init__()
        self.module = module if last else module.blocks
        self.first, self.last, self.precision = first, last, precision

    def forward(self, x: Tensor) -> Tensor:
        with autocast(x.device, self.precision):
            out = self.module(x if self.first or x.dim() != 4 else x.permute(0, 3, 1, 2))
            if self.last:
                return self.module.logits(out)[0]  # type: ignore[operator]
        return (out.permute(0, 2, 3, 1) if out.dim() == 4 else out).contiguous()


def _loss(scores: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(scores.float(), labels)


class DataParallel(TimedTrainer):
    """torch's ``DistributedDataParallel``: every process has the whole network and a part of the batch."""

    def __init__(self, job: TimedJob, world: ProcessWorld) -> None:
        setting = job.setting
        module = next(iter(setting.network(job.config)))
        whole, own = setting.batch(), split(setting.batch_size, world.mesh.size)[world.rank]
        self._images, self._labels = whole.images[own.start : own.stop], whole.labels[own.start : own.stop]
        stage = _Stage(module, True, True, setting.precision)
        # statistics of batch norm are not sent at every step, and gradients are not copied: it is faster so
        self._replica = DistributedDataParallel(stage, broadcast_buffers=False, gradient_as_bucket_view=True)
        self.parameters = list(stage.parameters())
        self._optimizer = build_optimizer(job.config.optimizer, self.parameters)

    def step(self) -> None:
        """Train on the batch once, with the other processes."""
        self._optimizer.zero_grad(set_to_none=True)
        _loss(self._replica(self._images), self._labels).backward()
        self._optimizer.step()

    def alone(self) -> None:
        """The same without an exchange of gradients."""
        with self._replica.no_sync():
            self.step()


@torch.no_grad()
def _inputs(network: LocalNetwork, batch: Batch, precision: str) -> list[Tensor]:
    """What every module is given for the batch, by the weights as they are now."""
    found, features = [], batch.images
    network.eval()
    with autocast(features.device, precision):
        for module in network:
            found.append(features)
            features = module(features)
    network.train()
    return found
