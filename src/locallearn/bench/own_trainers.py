"""Ways to train a user's own model on several processes: the distributed runtime, torch's pipelines and replicas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.nn.parallel import DistributedDataParallel

from locallearn.bench.own_jobs import OwnModel
from locallearn.bench.trainers import TimedJob, TimedTrainer
from locallearn.bench.user_model import load, rows_of
from locallearn.bench.ways import Way, loss_of_output, model_loss
from locallearn.core.batches import CalledBatch
from locallearn.core.local_step import autocast
from locallearn.core.model_stage import ModelStage
from locallearn.core.module import Features, each_of
from locallearn.core.split import adamw
from locallearn.core.split_network import SplitNetwork
from locallearn.runtime.distributed import DistributedRuntime
from locallearn.runtime.world import Alone, ProcessWorld
from locallearn.training.own_nodes import Nodes


def build_own_trainer(job: TimedJob, own: OwnModel, world: Alone | ProcessWorld) -> TimedTrainer:
    """The trainer of this process."""
    if isinstance(world, Alone):
        return _OneProcess(job, own)
    kinds = {"distributed": _Stages, "1f1b": _Pipeline, "gpipe": _Pipeline, "ddp": _Replica}
    return kinds[job.way](job, own, world)


class _OneProcess(TimedTrainer):
    """Backpropagation as it is or compiled, or the stages in turn."""

    _train: Callable[[], Any]

    def __init__(self, job: TimedJob, own: OwnModel) -> None:
        kind: Any = job.way
        precision = job.setting.precision
        self._index = 0
        if kind == "inline":
            self._network, batch = own.network()
            self._batch = self._network.given_batch(batch)
            for each in self._network.steps:
                each.precision = precision
            self.parameters, self._train = list(self._network.parameters()), self._walk
        else:
            contender = Way(kind, precision=precision).build(*load(own.name, own.inputs))
            self.parameters, self._train = contender.parameters, contender.step
            if kind == "compiled":
                self._train()  # before any turn

    def _walk(self) -> list[Tensor]:
        losses = self._network.walk(self._network.steps, self._batch, self._index)
        self._index += 1
        return [loss.total for loss in losses]

    def step(self) -> None:
        """Train on the batch once."""
        found = self._train()
        self.losses = [found] if isinstance(found, Tensor) else found


class _Stages(TimedTrainer):
    """The distributed runtime, on the stages of this process: what ``ll.Trainer(runtime="distributed")`` calls."""

    def __init__(self, job: TimedJob, own: OwnModel, world: ProcessWorld) -> None:
        network, batch = own.network()
        self._batch = network.given_batch(batch)
        network.run_apart()
        inputs = _inputs(network, self._batch, job.setting.precision)
        self._nodes = Nodes(job.config, network, None, world, optimizer=adamw)
        assert isinstance(self._nodes.runtime, DistributedRuntime)
        self._runtime = self._nodes.runtime
        self._inputs = {i: inputs[i] for i in self._nodes.steps}
        self._index = 0
        self._runtime.open(0, 2**40)
        self.parameters = [p for step in self._nodes.steps.values() for p in step.module.own_parameters().values()]

    @property
    def waited(self) -> float:  # type: ignore[override]
        """Seconds that this process has waited for features or weights, and for room to send them."""
        return self._runtime.waited

    def step(self) -> None:
        """Train on the batch once, with the other processes."""
        trained = self._runtime.step(self._batch, self._index)
        self.losses = [loss.total for each in trained for loss in each.losses]
        self._index += 1

    def alone(self) -> None:
        """Train the stages of this process on what reaches them, without any message."""
        for i, step in self._nodes.steps.items():
            step(self._inputs[i], self._batch)


class _Pipeline(TimedTrainer):
    """torch's own pipelining (``torch.distributed.pipelining``) of the stages without heads; gradients flow back.

    A weight that two stages use is in both processes; its gradients are added up before each update, as pipelines of
    language models with tied embeddings do.
    """

    def __init__(self, job: TimedJob, own: OwnModel, world: ProcessWorld) -> None:
        network, batch = own.network(heads=False)
        network.run_apart()
        self._count, precision = job.microbatches, job.setting.precision
        parts = [network.given_batch(rows_of(batch, i, self._count)) for i in range(self._count)]
        rank, stages = world.rank, network.model_stages
        self._last = rank == len(stages) - 1
        self._tied = _Tied(stages, rank)
        self._part = _PipelinePart(stages[rank], self._tied.copies, parts, precision, self._last)
        given = _inputs(network, parts[0], precision)
        self._given = each_of(given[rank])
        sent = each_of(given[rank + 1]) if not self._last else (torch.zeros(()),)
        self._first = rank == 0
        for x in (*(() if self._first else self._given), *sent):
            x.requires_grad_()
        stage = PipelineStage(self._part, rank, len(stages), job.setting.device, self._given, sent)
        schedule = Schedule1F1B if job.way == "1f1b" else ScheduleGPipe
        self._schedule = schedule(stage, self._count, loss_fn=_itself)
        self.parameters = list(self._part.trained)
        self._optimizer = adamw(self.parameters)
        self._images = network.given_batch(batch).images

    def step(self) -> None:
        """Train on the batch once, with the other processes."""
        self._optimizer.zero_grad(set_to_none=True)
        self._part.begin()
        found: list[Tensor] = []
        images = (self._images,) if self._first else ()
        target = torch.zeros(self._count) if self._last else None
        self._schedule.step(*images, target=target, losses=found if self._last else None, return_outputs=False)
        self.losses = [torch.stack(found).mean().detach()] if found else []
        self._tied.add_up()
        self._optimizer.step()

    def alone(self) -> None:
        """The forward and backward passes of this stage on every microbatch, and the update."""
        self._optimizer.zero_grad(set_to_none=True)
        self._part.begin()
        for _ in range(self._count):
            given = () if self._first else tuple(x.detach().requires_grad_() for x in self._given)
            out = each_of(self._part(*given))
            torch.autograd.backward(out, [torch.full_like(x, 1.0 if self._last else 1e-3) / self._count for x in out])
        self._optimizer.step()


class _PipelinePart(nn.Module):
    """A stage without its head: what it is given for one microbatch after the other, to what it hands on.

    Args:
        stage: the stage.
        copies: of weights that it uses and another one trains.
        parts: the microbatches, in order.
        precision: ``"fp32"`` or ``"bf16"``.
        last: whether it ends with the model's own loss.

    Attributes:
        trained: what gets a gradient here.
    """

    def __init__(
        self,
        stage: ModelStage,
        copies: Sequence[nn.Parameter],
        parts: Sequence[CalledBatch],
        precision: str,
        last: bool,
    ) -> None:
        super().__init__()
        self._stage, self._parts, self._precision, self._last = [stage], parts, precision, last
        own = map(stage.model.get_parameter, stage.piece.parameters)
        self.trained = nn.ParameterList([*own, *copies])
        self.begin()

    def begin(self) -> None:
        """The next call is of the first microbatch."""
        self._next = 0

    def forward(self, *given: Tensor) -> Tensor | tuple[Tensor, ...]:
        """What is handed on for the next microbatch; of the last stage the model's loss."""
        stage, part = self._stage[0], self._parts[self._next % len(self._parts)]
        self._next += 1
        features: Features = given if len(given) > 1 else given[0] if given else part.images
        with autocast(part.images.device, self._precision):
            output = stage(features, part)
            if self._last:
                assert part.call is not None
                return loss_of_output(output, part.call)
        return tuple(x.contiguous() for x in each_of(stage.outputs(output)))


class _Tied:
    """Weights that one stage trains and others use: each of these has a copy, and gradients are added up.

    Attributes:
        copies: those of this process.
    """

    def __init__(self, stages: Sequence[ModelStage], rank: int) -> None:
        self.copies: list[nn.Parameter] = []
        self._here: list[tuple[nn.Parameter, dist.ProcessGroup]] = []
        users: dict[int, tuple[nn.Parameter, dict[int, nn.Parameter]]] = {}
        for reader, stage in enumerate(stages):
            for owner, pairs in stage.reads.items():
                for source, copy in pairs if owner < reader else ():
                    users.setdefault(id(source), (source, {owner: source}))[1][reader] = copy  # type: ignore[index]
        for source, of in users.values():
            group = dist.new_group(sorted(of))  # on every process, in the same order
            if rank in of and isinstance(group, dist.ProcessGroup):
                self._here.append((of[rank], group))
                self.copies += [of[rank]] if of[rank] is not source else []

    def add_up(self) -> None:
        """Add the gradients of all who use a weight."""
        for parameter, group in self._here:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad, group=group)


class _Replica(TimedTrainer):
    """torch's ``DistributedDataParallel``: every process has the whole model and a part of the batch."""

    def __init__(self, job: TimedJob, own: OwnModel, world: ProcessWorld) -> None:
        model, batch = load(own.name, own.inputs)
        self._batch = rows_of(batch, world.rank, world.mesh.size)
        self._precision, self._device = job.setting.precision, job.setting.device
        self._loss = model_loss(model)
        self._replica = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
        self.parameters = list(model.parameters())
        self._optimizer = adamw(self.parameters)

    def step(self) -> None:
        """Train on the batch once, with the other processes."""
        self._optimizer.zero_grad(set_to_none=True)
        with autocast(self._device, self._precision):
            value = self._loss(self._replica, self._batch)
        value.backward()
        self._optimizer.step()
        self.losses = [value.detach()]

    def alone(self) -> None:
        """The same without an exchange of gradients."""
        with self._replica.no_sync():
            self.step()


@torch.no_grad()
def _inputs(network: SplitNetwork, batch: CalledBatch, precision: str) -> list[Features]:
    """What every stage is given for the batch, by the weights as they are now."""
    found: list[Features] = []
    features: Features = batch.images
    with autocast(batch.images.device, precision):
        for stage in network.model_stages[:-1]:
            found.append(features)
            features = stage.handed_on(stage(features, batch))
    return [*found, features]


def _itself(loss: Tensor, _target: Any) -> Tensor:
    return loss
