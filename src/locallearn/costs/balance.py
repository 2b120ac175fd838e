"""Cuts that balance what modules really take, heads included: time measured on this machine, or memory.

Balanced multiply-accumulates (``cuts.balanced``) know nothing of heads, which differ from place to place, nor of
early blocks whose few multiply-accumulates keep large maps. InfoPro (Wang et al., 2021) cuts where memory is
balanced; SEDONA (Pyeon et al., 2021) asks which cuts and heads serve best. Here the largest module is as small as it
can be.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from locallearn.config import RunConfig
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.core.local_step import autocast
from locallearn.core.module import LocalModule, each_of
from locallearn.core.network import LocalNetwork
from locallearn.costs.memory import ActivationMeter
from locallearn.costs.steps import batch_like, without_data
from locallearn.data.store import Batch
from locallearn.nn.backbones import build_backbone
from locallearn.plan import cuts

By = Literal["memory", "time"]


@dataclass(frozen=True)
class BlockCost:
    """What a block takes, and what a head on its features takes beside it: bytes, or seconds.

    Attributes:
        block: the block.
        head: the head.
        shared: of the block what the block before it keeps as well, and a module of both once.
    """

    block: float
    head: float
    shared: float = 0.0


def balanced_cuts(costs: Sequence[BlockCost], names: Sequence[str], depth: int) -> tuple[str, ...]:
    """The K - 1 blocks that cuts follow so that the largest module, with its head, is as small as it can be.

    Args:
        costs: of every block, from ``block_costs_of``.
        names: of the blocks.
        depth: K, at most as many as there are blocks.
    """
    sums = [0.0]
    for cost in costs:
        sums.append(sums[-1] + cost.block - cost.shared)

    def module(i: int, j: int) -> float:
        return sums[j] - sums[i] + costs[i].shared + costs[j - 1].head

    found = cuts.balanced_by(module, len(costs), depth)
    return tuple(names[cut] for cut in found)


def block_costs_of(
    config: RunConfig, image: ImageShape, by: By, device: torch.device | None = None, repeats: int = 3
) -> tuple[list[BlockCost], list[str]]:
    """What every block of a configuration's backbone takes in a training step, and its name.

    Heads are those that the blocks have where every block is a module. Memory is counted on tensors without data;
    time is the median of some repetitions of forward and backward pass here.

    Args:
        config: model, method, width, objective, batch size and precision; depth and cuts are not used.
        image: what the network is built for.
        by: what is counted or measured.
        device: where time is measured; by default the CPU.
        repeats: measurements of each.

    Raises:
        ConfigError: the configuration cannot be built with every block a module.
    """
    backbone = build_backbone(config.model, image.channels, image.size, config.dropout, config.patch_size)
    names = [block.name for block in backbone.blocks]
    whole = dataclasses.replace(config, depth=len(names), cuts=("layerwise",), width=config.width[:1])
    precision = config.train.precision or "fp32"
    if by == "memory":
        with torch.device("meta"):
            network = build_network(whole, image)
        with without_data(network, image, config.train) as (twin, batch):
            return _of_all(twin, batch, precision, _KeptBytes()), names
    device = device or torch.device("cpu")
    network = build_network(whole, image).to(device).train()
    batch = batch_like(network, image, config.train.batch_size * network.views, device)
    return _of_all(network, batch, precision, partial(_seconds, repeats=repeats)), names


Gauge = Callable[[LocalModule, Tensor, Batch], BlockCost]


def _of_all(network: LocalNetwork, batch: Batch, precision: str, gauge: Gauge) -> list[BlockCost]:
    """Of every block; the decoupled classifier is a head of the last one."""
    found: list[BlockCost] = []
    features = batch.images
    with autocast(features.device, precision):
        for module in network:
            cost = gauge(module, features, batch)
            if len(module.blocks):
                found.append(cost)
            else:
                found[-1] = dataclasses.replace(found[-1], head=found[-1].head + cost.head)
            with torch.no_grad():
                features = module.features(module(features, batch)).detach()
    return found


class _KeptBytes:
    """What modules keep, each in its own step; of what is handed on it notes whether both keep it."""

    def __init__(self) -> None:
        self._keeps_features = False

    def __call__(self, module: LocalModule, features: Any, batch: Batch) -> BlockCost:
        """Of one module, in order."""
        with ActivationMeter(module.parameters()) as meter:
            out = module(features, batch)
            block, given = meter.live_bytes, each_of(features)[0]
            shared = given.untyped_storage().nbytes() if self._keeps_features and meter.holds(given) else 0
            self._keeps_features = meter.holds(module.features(out))
            module.loss(out, batch)
            return BlockCost(block, meter.peak_bytes - block, shared)


def _seconds(module: LocalModule, features: Tensor, batch: Batch, repeats: int) -> BlockCost:
    blocks, heads = [], []
    for _ in range(repeats + 1):
        start = _now(features.device)
        out = module(features, batch)
        made = module.features(out)
        if made.requires_grad:
            made.backward(torch.ones_like(made), retain_graph=True)
        middle = _now(features.device)
        loss = module.objective(made.detach().requires_grad_(), batch).total.sum()
        loss.backward()
        blocks.append(middle - start)
        heads.append(_now(features.device) - middle)
        module.zero_grad(set_to_none=True)
    return BlockCost(statistics.median(blocks[1:]), statistics.median(heads[1:]))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
