"""Proposes where to cut a user's own model for some devices: the candidates of ``locallearn.costs.planner``.

Each candidate is the model split in K stages and one step of it counted (``locallearn.costs.split_costs``).
"""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from locallearn.config import ObjectiveConfig, OptimizerConfig, RunConfig, TrainConfig
from locallearn.core.split import split
from locallearn.core.split_network import SplitNetwork
from locallearn.costs.alternatives import Alternative, usual_ways
from locallearn.costs.footprint import with_spare
from locallearn.costs.nodes import Cost, cost
from locallearn.costs.planner import Candidate, Refusal, placements
from locallearn.costs.timeline import Machine
from locallearn.errors import ConfigError
from locallearn.plan import cuts as cutting

DEFAULT_HEAD = "default"
"""Stands for the head that ``ll.split`` chooses where none is named."""


@dataclass(frozen=True)
class ModelToPlan:
    """A user's own model, as a plan looks at it.

    Attributes:
        model: any that ``ll.split`` takes; it is not changed.
        batch: of the size that is to be trained on.
        settings: everything else that the objectives are told, its ``loss`` included.
        optimizer: of every stage.
        precision: ``"bf16"`` for autocast; None as the model computes.
    """

    model: nn.Module
    batch: Any
    settings: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=partial(OptimizerConfig, name="adam"))
    precision: str | None = None

    def candidates(
        self,
        *,
        machine: Machine,
        depths: Sequence[int] = cutting.DEPTHS,
        heads: Sequence[str] = (DEFAULT_HEAD,),
        batches: int = 8,
        in_flight: int = 2,
        on_step: Callable[[str], None] | None = None,
        cuts_of: Callable[[int, str], Sequence[str]] | None = None,
    ) -> tuple[list[Candidate], list[Refusal]]:
        """Predict every candidate, each on one device and on a device a node, for ``choose`` and ``sift``.

        Args:
            machine: the devices.
            depths: K to try.
            heads: auxiliary heads to try; by default the one that ``ll.split`` chooses.
            batches: of the predicted run, from an empty pipeline to the last update.
            in_flight: batches that a stage may have begun and the next one not yet taken forward.
            on_step: is told what is looked at next.
            cuts_of: the submodules that cuts follow, for K > 1 and a head (``locallearn.costs.own_balance``); by
                default those of ``ll.split``.

        Returns:
            The candidates, and those that the model cannot be split into.

        Raises:
            ConfigError: a number is too small.
            UsageError: the model does not run on the batch.
        """
        if not depths or min(depths) < 1:
            raise ConfigError("depths", tuple(depths), "whole numbers of at least 1")
        found, refused = [], []
        for head, depth in itertools.product(heads, sorted(depths)):
            if on_step:
                on_step(f"K = {depth}, head {head}")
            try:
                network = self.split(depth, head, cuts_of(depth, head) if cuts_of and depth > 1 else None)
            except ConfigError as error:
                refused.append(Refusal(depth, 1, head, depth, str(error)))
                continue
            found += self._placements(network, head, machine, batches, in_flight)
        return found, refused

    def usual_ways(
        self, *, machine: Machine, devices: int, depths: Sequence[int], batches: int = 8
    ) -> list[Alternative]:
        """Predict backpropagation of the whole model on the same devices.

        Args:
            machine: the devices.
            devices: how many there are.
            depths: numbers of segments and stages to try.
            batches: of the predicted run.
        """
        found = usual_ways(
            lambda depth: self._counted(self.split(depth, DEFAULT_HEAD)),
            self.optimizer,
            machine=machine,
            devices=devices,
            depths=depths,
            batches=batches,
        )
        rest = with_spare(_untrained_bytes(self.split(1, DEFAULT_HEAD)))
        return [dataclasses.replace(one, memory=one.memory + rest) for one in found]

    def split(self, depth: int, head: str, cuts: Sequence[str] | None = None) -> SplitNetwork:
        """The model in K stages, cut after these submodules or where ``ll.split`` chooses.

        Raises:
            ConfigError: it cannot be cut so.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a candidate that may not be proposed
            return split(
                self.model,
                example=self.batch,
                depth=None if cuts is not None else depth,
                cuts=cuts,
                head=None if head == DEFAULT_HEAD else head,
                objective=self.settings.loss,
                settings=self.settings,
            )

    def _counted(self, network: SplitNetwork) -> Cost:
        return cost(network, self.batch, precision=self.precision)  # type: ignore[arg-type]

    def _placements(
        self, network: SplitNetwork, head: str, machine: Machine, batches: int, in_flight: int
    ) -> list[Candidate]:
        counted, call = self._counted(network), network.given_batch(self.batch, labelled=False).call
        assert call is not None
        batch_bytes = _bytes(x for x in tree_leaves((call.args, call.kwargs, call.labels)) if isinstance(x, Tensor))
        ends = tuple(piece.path for piece in network.pieces[:-1])
        config = RunConfig(
            method="dgl",
            model=type(self.model).__name__,
            depth=network.depth,
            cuts=ends or ("auto",),
            objective=dataclasses.replace(self.settings, head=head),
            optimizer=self.optimizer,
            train=TrainConfig(batch_size=counted.batch_size, precision="fp32"),
        )
        found = placements(config, ends, counted, batch_bytes, machine, batches, in_flight)
        return [_with_copies(one, network, counted, batch_bytes) for one in found]


def _with_copies(one: Candidate, network: SplitNetwork, counted: Cost, batch_bytes: int) -> Candidate:
    """With what every device has beside its stages: frozen weights and buffers, others' weights that it reads."""
    rest, spread = _untrained_bytes(network), one.devices > 1
    footprints = []
    for k, footprint in enumerate(one.footprints):
        copies = sum(read.n_bytes for read in counted.reads if read.reader == k + 1) if spread else 0
        waiting = footprint.waiting + (batch_bytes if spread and k else 0)  # every process makes the batch
        footprints.append(dataclasses.replace(footprint, state=footprint.state + rest + copies, waiting=waiting))
    return dataclasses.replace(one, footprints=tuple(footprints))


def _untrained_bytes(network: SplitNetwork) -> int:
    """Frozen weights, and buffers."""
    trained = {id(p) for stage in network.model_stages for p in stage.own_parameters().values() if p.requires_grad}
    return _bytes(p for p in network.parameters() if id(p) not in trained) + _bytes(network.buffers())


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(x.nbytes for x in tensors)
