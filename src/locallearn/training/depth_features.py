"""Pooled features of a frozen network, read at some of its depths in one forward pass."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from locallearn.core.local_step import autocast
from locallearn.core.network import LocalNetwork
from locallearn.nn.hooks import removed_after


@dataclass(frozen=True)
class DepthPlace:
    """A place in a network: the end of one of its blocks.

    Attributes:
        module: the module, 1..K.
        block: name of the block.
        depth: the block's number in the network, from 1.
        ends_module: whether it is the module's last block.
    """

    module: int
    block: str
    depth: int
    ends_module: bool


def places(network: LocalNetwork, depth: str = "all") -> list[DepthPlace]:
    """Where features are read.

    Args:
        network: the network; a decoupled classifier has no blocks, so no place.
        depth: ``"all"`` blocks, the ends of ``"modules"``, or the ``"last"`` one.
    """
    found: list[DepthPlace] = []
    for module in network:
        names = [re.sub(r"(?<=\d)_(?=\d)", ".", name) for name, _ in module.blocks.named_children()]
        for i, name in enumerate(names, start=1):
            found.append(DepthPlace(int(module.name), name, len(found) + 1, i == len(names)))
    chosen = {"all": found, "modules": [place for place in found if place.ends_module], "last": found[-1:]}
    return chosen[depth]


@contextlib.contextmanager
def frozen(network: LocalNetwork) -> Iterator[None]:
    """Eval mode (running statistics of batch norm) and no gradient; the network's mode comes back as it was."""
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(was_training)


class FeatureReader:
    """Reads features of a frozen network: one forward pass a batch, however many places there are.

    Args:
        network: the network; its weights and statistics are never changed.
        where: places in the order of the network.
        precision: ``"fp32"`` or ``"bf16"`` (autocast).
        pool: side that feature maps are averaged to [positions]; smaller maps stay as they are.

    Attributes:
        passes: forward passes so far.
    """

    def __init__(self, network: LocalNetwork, where: Sequence[DepthPlace], precision: str, pool: int = 1) -> None:
        self.network, self.precision, self.pool = network, precision, pool
        self.passes = 0
        self._depths = {place.depth for place in where}

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Features [B, D] of every place, fp32, for normalised images [B, C, H, W].

        The features of group g of G are the g-th of G equal parts of the D.
        """
        self.passes += 1
        found: list[Tensor] = []
        blocks = [block for module in self.network for block in module.blocks]

        def keep(_block: nn.Module, _given: Any, features: Tensor) -> None:
            found.append(pooled(features, self.pool))

        hooks = [blocks[depth - 1].register_forward_hook(keep) for depth in self._depths]
        with removed_after(hooks), frozen(self.network), autocast(images.device, self.precision):
            for _ in self.network.passed(images):
                if len(found) == len(self._depths):
                    break
        return found


def pooled(features: Tensor, size: int = 1) -> Tensor:
    """Feature maps [B, C, H, W] averaged to ``size`` x ``size`` and flattened; vectors [B, D] as they are; fp32."""
    if features.dim() == 4:
        height, width = features.shape[2:]
        features = adaptive_avg_pool2d(features.float(), (min(size, height), min(size, width))).flatten(1)
    return features.float()
