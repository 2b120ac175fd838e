"""A user's own model as what several processes train: the network, its parts in a pipeline, and what they cost."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_map_only

from locallearn.bench.trainers import TimedJob, Way
from locallearn.bench.user_model import examples_of, load
from locallearn.bench.ways import Heads
from locallearn.cli.named_models import Inputs
from locallearn.config import MeshConfig, RunConfig, TrainConfig
from locallearn.core.split import split
from locallearn.core.split_network import SplitNetwork
from locallearn.costs.nodes import Cost, cost
from locallearn.errors import ConfigError
from locallearn.training.record import SPLIT

if TYPE_CHECKING:
    from locallearn.bench.processes import CrewPlan


_SEEN = 2
"""Examples on which cuts are found: splitting makes a dozen forward passes."""


@dataclass(frozen=True, eq=False)
class OwnModel:
    """A user's own model, the same in every process.

    Attributes:
        name: as ``load`` takes it.
        inputs: what its batch is made of.
        depth: K.
        cuts: the submodules that the stages end after; ``("auto",)`` for stages of like cost.
        heads: of the local stages.
    """

    name: str
    inputs: Inputs
    depth: int
    cuts: tuple[str, ...]
    heads: Heads

    def network(self, heads: bool = True) -> tuple[SplitNetwork, Any]:
        """The network of K stages in training mode, and the batch.

        Args:
            heads: as the local stages have them; else the last one computes its scores, for pipelines.

        Raises:
            LocalLearnError: the model cannot be made or cut so.
        """
        model, batch = load(self.name, self.inputs)
        given = {**self.heads.options}
        if not heads:
            given.pop("chunk", None)
        chosen = dataclasses.replace(self.heads, options=given)
        cuts = None if self.cuts == ("auto",) else self.cuts
        example = tree_map_only(torch.Tensor, lambda x: x[:_SEEN] if x.dim() else x, batch)
        depth = self.depth if cuts is None else None
        return split(model, example=example, cuts=cuts, depth=depth, **chosen.given()), batch


@functools.lru_cache(maxsize=1)
def own_cost(own: OwnModel, precision: str) -> Cost:
    """What the stages of the network cost, and what the model costs undivided."""
    network, batch = own.network()
    return cost(network, batch, precision="bf16" if precision == "bf16" else "fp32")


def own_jobs(plan: CrewPlan, own: OwnModel) -> dict[str, TimedJob]:
    """The jobs of all contenders by their names; the model is built and cut once, before any process is started.

    Raises:
        ConfigError: cells or microbatches do not fit the model or its batch.
        LocalLearnError: it cannot be built or cut.
    """
    n = plan.processes
    if plan.cells != ((n, 1),):
        raise ConfigError("--depth", plan.cells, f"{n} with --width 1, for a model of your own")
    _, batch = own.network()
    examples = examples_of(batch)
    for name, parts in (("--microbatches", plan.microbatches), ("--processes", n)):
        if examples % parts:
            raise ConfigError(name, parts, f"a divisor of the {examples} examples of the batch")
    one = dataclasses.replace(plan.setting, batch_size=examples)
    many = dataclasses.replace(one, threads=n * (one.threads or 1))
    cell = plan.cell_names[0]
    jobs: dict[str, TimedJob] = {}

    def add(name: str, way: Way, setting: Any = one, depth: int = 1, data: int = 1) -> None:
        jobs[name] = TimedJob(way, _config(plan, depth, data), setting, plan.microbatches, own)

    if "e2e" in plan.peers:
        add("e2e", "backprop")
        add("e2e, threads", "backprop", many)
    if "compiled" in plan.peers:
        add("compiled", "compiled")
    if "e2e" in plan.peers:  # all crews are there at the same time, and a model may be large
        add(f"{cell} inline", "inline")
        add(f"{cell} inline, threads", "inline", many)
    add(cell, "distributed", depth=n)
    if "1f1b" in plan.peers:
        add("1f1b", "1f1b", depth=n)
    if "gpipe" in plan.peers:
        add("gpipe", "gpipe", depth=n)
    if "ddp" in plan.peers:
        add("ddp", "ddp", data=n)
    return jobs


def _config(plan: CrewPlan, depth: int, data: int) -> RunConfig:
    """The mesh, and what else the distributed runtime looks at."""
    setting = plan.setting
    return RunConfig(
        method=SPLIT,
        model="own",
        depth=plan.processes,
        width=(1,),
        runtime="distributed" if depth * data > 1 else "inline",
        mesh=plan.mesh(depth, 1, data) if depth * data > 1 else MeshConfig(),
        train=TrainConfig(precision=setting.precision, device=str(setting.device), channels_last=False),  # type: ignore[arg-type]
    )
