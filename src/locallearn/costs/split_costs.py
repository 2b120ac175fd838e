"""One step of a copy of a split network, to see what every stage of a user's own model counts, keeps and hands on.

It runs on tensors that have a shape, a type and a device but no data; on real ones where the model looks at values.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from locallearn.core.batches import CalledBatch, weight_of
from locallearn.core.local_step import LocalStep
from locallearn.core.model_stage import ModelStage
from locallearn.core.split_network import SplitNetwork
from locallearn.costs.forward import CountedStage
from locallearn.costs.memory import ActivationMeter
from locallearn.costs.steps import ModuleCost, score_bytes, share, shared_bytes
from locallearn.data.store import Batch
from locallearn.errors import UsageError
from locallearn.losses.objectives import LocalLoss
from locallearn.nn.copies import copied, untouched, without_data
from locallearn.nn.features import features_of, prediction, tensors_of
from locallearn.nn.pieces import Crossing
from locallearn.nn.products import ProductCounter
from locallearn.nn.token_heads import ReadsScorer


@dataclass(frozen=True)
class SplitCosts:
    """What one step of a split network costs.

    Attributes:
        modules: per node of every stage, in order.
        stages: the model's own part of every stage in a forward pass, without heads.
        dense: the same of the model without width groups.
        examples: of the batch.
        reads: weights that stages read of others.
    """

    modules: tuple[ModuleCost, ...]
    stages: tuple[CountedStage, ...]
    dense: tuple[CountedStage, ...]
    examples: int
    reads: tuple[WeightRead, ...]


class WeightRead(NamedTuple):
    """Weights that one stage trains and another one reads, which it is sent after every update.

    Attributes:
        reader: the stage that reads, counted from 1.
        owner: the stage that trains them. An earlier one's are those after its update on the same batch, a later
            one's those after the batch before.
        n_bytes: their size.
        tied: whether the model itself reads them, and not only the stage's head.
    """

    reader: int
    owner: int
    n_bytes: int
    tied: bool


def weight_reads(network: SplitNetwork) -> tuple[WeightRead, ...]:
    """The weights that every stage reads of others: tied ones, and the unembedding that a head scores with."""
    model, found = network.model, []
    owners = {name: k for k, piece in enumerate(network.pieces, 1) for name in piece.parameters}
    names = {id(model.get_parameter(name)): name for name in owners}
    for k, stage in enumerate(network.model_stages, 1):
        heads = [part for part in stage.objective.modules() if isinstance(part, ReadsScorer)]
        scoring = {names[id(p)] for head in heads for p in head.scorer.parameters() if id(p) in names}
        wanted = [(True, name) for name in stage.piece.reads]
        wanted += [(False, name) for name in sorted(scoring) if owners[name] != k]
        wanted += [(False, names[id(p)]) for _, block in stage.copies.followed() for p in block.parameters()]
        found += [WeightRead(k, owners[name], model.get_parameter(name).nbytes, tied) for tied, name in wanted]
    return tuple(found)


def split_costs(network: SplitNetwork, batch: Any, precision: str | None) -> SplitCosts:
    """Count one step of a copy of a network; the network itself is never run.

    Args:
        network: of ``ll.split``.
        batch: as ``SplitNetwork.step`` takes it.
        precision: ``"fp32"`` or ``"bf16"`` (autocast); None is as the model computes without autocast.

    Raises:
        UsageError: a step on the batch fails.
    """
    return of_a_copy(network, batch, partial(_count, precision=precision))


T = TypeVar("T")


def of_a_copy(network: SplitNetwork, batch: Any, count: Callable[[SplitNetwork, CalledBatch], T]) -> T:
    """What is counted of a copy of a network and a batch without data, or with it where the model looks at values.

    Args:
        network: of ``ll.split``; it is never run.
        batch: as ``SplitNetwork.step`` takes it.
        count: counts.

    Raises:
        UsageError: a step on the batch fails.
    """
    given = network.given_batch(batch)
    parts = nn.ModuleList([network.model, *(stage.objective for stage in network.model_stages)])
    where = next(network.model.parameters()).device
    for pretend in (True, False):
        try:
            with _pretending() if pretend else contextlib.nullcontext(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                device = torch.device("cpu") if pretend and where.type == "meta" else where
                twin = _twin(network, without_data(parts, device) if pretend else copied(parts))
                with untouched(parts):
                    return count(twin, _moved(given, device, pretend))
        except UsageError:
            if not pretend:
                raise
        except Exception as error:
            if not pretend:
                said = str(error).strip().split("\n")[0]
                raise UsageError(f"batch: a step on it fails: {type(error).__name__}: {said}") from error
    raise AssertionError


def _pretending() -> FakeTensorMode:
    return FakeTensorMode(allow_non_fake_inputs=True)


def _twin(network: SplitNetwork, parts: nn.Module) -> SplitNetwork:
    """The same network of copies of its model and objectives, in training mode."""
    model, *objectives = parts.children()
    stages = network.model_stages
    twin = SplitNetwork(
        model,
        network.pieces,
        objectives,  # type: ignore[arg-type]
        [stage.tokens for stage in stages],
        network.task,
        partial(torch.optim.SGD, lr=0.0),
        groups=stages[0].groups,
        grouped=network.grouped,
        overlap=network.overlap,
    )
    return twin.train()


def _moved(batch: CalledBatch, device: torch.device, pretend: bool) -> CalledBatch:
    """The batch for a copy, with or without data."""
    assert batch.call is not None

    def convert(x: Tensor) -> Tensor:
        return torch.empty_like(x, device=device) if pretend else x.detach().clone().to(device)

    values = {field.name: getattr(batch.call, field.name) for field in dataclasses.fields(batch.call)}
    return dataclasses.replace(batch.call, **tree_map_only(Tensor, convert, values)).batch()


class _Tally:
    """What the stages of a network count in one step, as its forward pass comes by them."""

    def __init__(self, network: SplitNetwork, examples: int) -> None:
        self.counter = ProductCounter()
        self.meter = ActivationMeter(network.parameters())
        self.examples = examples
        self.modules: list[ModuleCost] = []
        self.stages: list[CountedStage] = []
        self._crossed: dict[tuple[str, int], Tensor] = {}
        self._given_bytes = 0
        self._overlap = network.overlap
        self._done = 0
        for crossing in (each for piece in network.pieces for each in piece.crossing):
            if crossing.path is not None:
                network.model.get_submodule(crossing.path).register_forward_hook(partial(self._note, crossing))

    def _note(self, crossing: Crossing, _module: nn.Module, _args: Any, output: Any) -> None:
        self._crossed[crossing.path or "", crossing.index] = tensors_of(output)[crossing.index].detach()

    def add(self, stage: ModelStage, output: Any, loss: LocalLoss, forward: int, head: int) -> None:
        """Note a stage that has trained; ``forward`` and ``head`` are what was counted when these had ended."""
        groups, now = stage.groups, self.counter.macs
        features = prediction(output) if stage.last else features_of(output)
        assert features is not None
        numbers, sent_bytes = self._sent(stage, features)
        trained = [p for p in stage.own_parameters().values() if p.requires_grad]
        in_model = [p for p in map(stage.model.get_parameter, stage.piece.parameters) if p.requires_grad]
        macs = share(forward - self._done, self.examples)
        self.stages.append(CountedStage(macs, share(numbers, self.examples), sum(p.numel() for p in in_model)))
        self.modules.append(
            ModuleCost(
                groups=groups,
                block_macs=share(forward - self._done, groups * self.examples),
                head_macs=share(head - forward, groups * self.examples),
                step_macs=share(now - self._done, self.examples),
                parameters=share(sum(p.numel() for p in trained), groups),
                activation_bytes=share(self.meter.peak_bytes, groups),
                output_bytes=share(sent_bytes, groups),
                shared_bytes=shared_bytes(stage.objective, features, groups),
                score_bytes=score_bytes(loss, groups),
                largest_bytes=self.meter.largest_bytes,
                weight_bytes=max((p.nbytes for p in trained), default=0),
                returned_bytes=self._given_bytes if self._overlap else 0,
            )
        )
        self._given_bytes = features.nbytes
        self._done, self.meter.peak_bytes, self.meter.largest_bytes = now, 0, 0

    def walked_again(self, stage: ModelStage, macs: int) -> None:
        """Count what the gradient that the next stage returns makes a stage compute."""
        k = int(stage.name) - 1
        step_macs = self.modules[k].step_macs + share(macs, self.examples)
        self.modules[k] = dataclasses.replace(self.modules[k], step_macs=step_macs)
        self._done += macs

    def _sent(self, stage: ModelStage, features: Tensor) -> tuple[int, int]:
        """Numbers and bytes of the features and of what else crosses the stage's end."""
        numbers, sent_bytes = features.numel(), features.nbytes
        for crossing in stage.piece.crossing:
            tensor = self._crossed.get((crossing.path or "", crossing.index))
            size = (
                math.prod(crossing.shape) if tensor is None else tensor.numel()
            )  # no submodule gives it: as at first
            numbers += size
            sent_bytes += size * (features if tensor is None else tensor).element_size()
        return numbers, sent_bytes


class _CountedStep(LocalStep):
    """A local step that tells what it counted."""

    def __init__(self, stage: ModelStage, optimizer: torch.optim.Optimizer, precision: str | None, tally: _Tally):
        super().__init__(stage, optimizer, precision)
        self._stage, self._tally, self._head = stage, tally, 0

    def learn(
        self, out: Any, batch: Batch, rate: float | None = None, reaches: Sequence[Tensor] = (), waits: bool = False
    ) -> LocalLoss:
        forward = self._tally.counter.macs
        loss = super().learn(out, batch, rate, reaches, waits)
        self._tally.add(self._stage, out, loss, forward, self._head)
        return loss

    def backward_from(self, output: Tensor, gradient: Tensor) -> None:
        before = self._tally.counter.macs
        super().backward_from(output, gradient)
        self._tally.walked_again(self._stage, self._tally.counter.macs - before)

    def backward(self, loss: LocalLoss, reaches: Sequence[Tensor] = (), keep: bool = False) -> None:
        self._head = self._tally.counter.macs
        super().backward(loss, reaches, keep)


def _count(network: SplitNetwork, batch: CalledBatch, precision: str | None) -> SplitCosts:
    examples = min(batch.examples, weight_of(batch.labels, batch.examples))  # of graphs, not of their nodes
    tally = _Tally(network, examples)
    optimizers = zip(network.model_stages, network.optimizers, strict=True)
    steps = [_CountedStep(stage, optimizer, precision, tally) for stage, optimizer in optimizers]
    with tally.meter, tally.counter:
        network.walk(steps, batch)
    stages = tuple(tally.stages)
    dense = _dense(network, batch, stages) if network.grouped else stages
    return SplitCosts(tuple(tally.modules), stages, dense, examples, weight_reads(network))


def _dense(network: SplitNetwork, batch: CalledBatch, stages: Sequence[CountedStage]) -> tuple[CountedStage, ...]:
    """What the stages would be without width groups: convolutions of the user's own model."""
    assert batch.call is not None
    model, counter, readings = network.merge(), ProductCounter(), list[int]()
    for piece in network.pieces[:-1]:
        model.get_submodule(piece.path).register_forward_hook(lambda *_: readings.append(counter.macs))
    with counter, torch.no_grad():
        model(*batch.call.args, **batch.call.kwargs)
    ends = [0, *readings, counter.macs]
    found = []
    for piece, stage, (start, end) in zip(network.pieces, stages, itertools.pairwise(ends), strict=True):
        parameters = sum(model.get_parameter(name).numel() for name in piece.parameters)
        found.append(CountedStage(share(end - start, batch.examples), stage.features, parameters))
    return tuple(found)
