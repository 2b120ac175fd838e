"""Cuts of a user's own model that balance what its stages take, heads included; as ``locallearn.costs.balance``."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from locallearn.core.batches import CalledBatch, model_call
from locallearn.core.local_step import LocalStep
from locallearn.core.model_stage import ModelStage
from locallearn.core.split_network import SplitNetwork
from locallearn.costs.balance import BlockCost, By, balanced_cuts
from locallearn.costs.memory import ActivationMeter
from locallearn.costs.own_planner import ModelToPlan
from locallearn.costs.split_costs import of_a_copy
from locallearn.data.store import Batch
from locallearn.errors import ConfigError
from locallearn.losses.objectives import LocalLoss
from locallearn.nn.copies import copied
from locallearn.nn.cut_places import chain
from locallearn.nn.features import features_of, with_features
from locallearn.nn.recording import trace


class BalancedCuts:
    """Where a user's own model is cut so that its largest stage, with its head, is as small as it can be.

    Each part between two places where the model can be cut is counted or measured once, as if every part were a
    stage; places after sums, and places that other tensors than features cross, are looked at where there are too
    few others.

    Args:
        own: the model and the batch.
        by: ``"memory"``, what a step keeps for its backward pass, counted [bytes], or ``"time"`` of its forward and
            backward pass, measured [s].
        device: where time is measured; by default the CPU.
        repeats: measurements of each; the median counts.
    """

    def __init__(self, own: ModelToPlan, by: By, device: torch.device | None = None, repeats: int = 3) -> None:
        self.own, self.by, self.device, self.repeats = own, by, device or torch.device("cpu"), repeats
        call = model_call(own.model, own.batch)
        found = trace(own.model, call.args, call.kwargs)
        tiers = (False, False), (True, False), (True, True)
        self._places = [[each.path for each in chain(found, sums=s, jumped=j, whole=j)] for s, j in tiers]
        self._known: dict[tuple[int, str], tuple[list[str], list[BlockCost]]] = {}

    def __call__(self, depth: int, head: str) -> tuple[str, ...]:
        """The K - 1 submodules that cuts follow.

        Raises:
            ConfigError: there are not so many places, or the head does not fit all of them.
        """
        most = 0
        for tier in range(len(self._places)):
            if depth > len(self._places[tier]) + 1:
                continue
            places, costs = self._counted(tier, head)
            most = max(most, len(costs))
            if depth <= len(costs):
                return balanced_cuts(costs, [*places, ""], depth)
        most = most or 1 + max(map(len, self._places))
        raise ConfigError("depth", depth, f"at most {most}, the parts between places where this model can be cut")

    def _counted(self, tier: int, head: str) -> tuple[list[str], list[BlockCost]]:
        """The places of a tier where heads can learn, and what is between them."""
        if (tier, head) not in self._known:
            places = self._places[tier]
            try:
                self._known[tier, head] = places, self.costs(places, head)
            except ConfigError:
                places = [place for place in places if self._serves(place, head)]
                if len(places) in (0, len(self._places[tier])):
                    raise
                self._known[tier, head] = places, self.costs(places, head)
        return self._known[tier, head]

    def _serves(self, place: str, head: str) -> bool:
        try:
            self.own.split(2, head, [place])
        except ConfigError:
            return False
        return True

    def costs(self, places: Sequence[str], head: str) -> list[BlockCost]:
        """What the model takes up to each of these places, and from the last one on; and a head there."""
        network = self.own.split(len(places) + 1, head, places)
        if self.by == "memory":
            return of_a_copy(network, self.own.batch, partial(_kept_bytes, precision=self.own.precision))
        return self._seconds(network)

    def _seconds(self, network: SplitNetwork) -> list[BlockCost]:
        twin = copied(network)
        assert isinstance(twin, SplitNetwork)
        twin.to(self.device).train()
        batch = tree_map_only(Tensor, lambda x: x.to(self.device), self.own.batch)
        runs: list[list[BlockCost]] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(self.repeats + 1):  # the first one warms up
                watch = _Stopwatch(self.device)
                runs.append(_gauged(twin, twin.given_batch(batch), self.own.precision, watch.gauge))
        return [
            BlockCost(statistics.median(each.block for each in same), statistics.median(each.head for each in same))
            for same in zip(*runs[1:], strict=True)
        ]


Gauge = Callable[["_GaugedStep", Any, Batch], tuple[BlockCost, LocalLoss]]


class _GaugedStep(LocalStep):
    """A local step that notes what its stage takes, and trains nothing where the gauge does not."""

    def __init__(self, stage: ModelStage, precision: str | None, gauge: Gauge, found: list[BlockCost]) -> None:
        super().__init__(stage, torch.optim.SGD(stage.own_parameters().values(), lr=0.0), precision)
        self.stage, self._gauge, self._found = stage, gauge, found

    def learn(
        self, out: Any, batch: Batch, rate: float | None = None, reaches: Sequence[Tensor] = (), waits: bool = False
    ) -> LocalLoss:
        cost, loss = self._gauge(self, out, batch)
        self._found.append(cost)
        return loss

    def trained(self, out: Any, batch: Batch) -> LocalLoss:
        """As a step that is not watched."""
        return super().learn(out, batch)


def _gauged(network: SplitNetwork, batch: CalledBatch, precision: str | None, gauge: Gauge) -> list[BlockCost]:
    found: list[BlockCost] = []
    network.walk([_GaugedStep(stage, precision, gauge, found) for stage in network.model_stages], batch)
    return found


def _kept_bytes(network: SplitNetwork, batch: CalledBatch, precision: str | None) -> list[BlockCost]:
    meter, kept = ActivationMeter(network.parameters()), list[Tensor]()

    def gauge(step: _GaugedStep, out: Any, batch: Batch) -> tuple[BlockCost, LocalLoss]:
        block, shared = meter.live_bytes, sum(x.untyped_storage().nbytes() for x in kept if meter.holds(x))
        made = features_of(out)
        kept[:] = [made.detach()] if made is not None and meter.holds(made) else []
        loss = step.trained(out, batch)
        cost, meter.peak_bytes = BlockCost(block, meter.peak_bytes - block, shared), 0
        return cost, loss

    with meter:
        return _gauged(network, batch, precision, gauge)


class _Stopwatch:
    """Times the parts of one forward pass in which stages learn."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._last = device, 0.0
        self._last = self.now()

    def now(self) -> float:
        """Seconds, once the device has done what it was asked."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def gauge(self, step: _GaugedStep, out: Any, batch: Batch) -> tuple[BlockCost, LocalLoss]:
        """A stage's forward and backward pass, and its head's; the last stage's loss counts as its own."""
        begin, stage = self._last, step.stage
        with torch.autocast(self._device.type, enabled=False):
            if stage.last:
                loss = stage.loss(out, batch)
                _walk_back(loss.total.sum(), stage)
                block, head = self.now() - begin, 0.0
            else:
                made = features_of(out)
                assert made is not None
                _walk_back(made, stage, torch.ones_like(made))
                middle = self.now()
                loss = stage.loss(with_features(out, made.detach().requires_grad_()), batch)
                _walk_back(loss.total.sum(), stage.objective)
                block, head = middle - begin, self.now() - middle
        self._last = self.now()
        return BlockCost(block, head), loss.detached()


def _walk_back(of: Tensor, module: ModelStage | nn.Module, gradient: Tensor | None = None) -> None:
    owned = module.own_parameters().values() if isinstance(module, ModelStage) else module.parameters()
    parameters = [p for p in owned if p.requires_grad]
    if of.requires_grad and parameters:
        of.backward(gradient, retain_graph=True, inputs=parameters)
        for parameter in parameters:
            parameter.grad = None
