"""Initial weights from a trained network, for fine-tuning: those of its blocks, and of what heads fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from locallearn.config import RunConfig
from locallearn.core.assembly import follow_next
from locallearn.core.network import LocalNetwork
from locallearn.errors import CheckpointError, UsageError
from locallearn.training.checkpoint import CheckpointFolder, checksum, read_weights

_BLOCK = re.compile(r"(?:stages\.\d+\.blocks|blocks\.\d+)\.(.+)")
"""Weights of the backbone in a checkpoint, and in an export; blocks keep their names wherever the cuts are."""
_HEAD = re.compile(r"stages\.(\d+)\.objective\.(.+)")
_CLASSIFIER = re.compile(r"classifier\.(.+)")


@dataclass
class TrainedWeights:
    """Weights of a trained network.

    Attributes:
        blocks: of the backbone, by names of the block's own.
        heads: of the objective of every stage, counted from 0.
    """

    blocks: dict[str, Tensor] = field(default_factory=dict)
    heads: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    @property
    def stages(self) -> int:
        """How many stages there are, the last of which has a head."""
        return max(self.heads, default=-1) + 1

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that name the weights."""
        named = {f"{stage}/{name}": value for stage, head in self.heads.items() for name, value in head.items()}
        return checksum(self.blocks | named, "")[:16]


def trained_weights(source: str) -> TrainedWeights:
    """Read the weights of a run's newest checkpoint, of one checkpoint, or of a network that was exported.

    Args:
        source: folder of a run or of an export, or a safetensors file.

    Raises:
        UsageError: it is not there, or holds no network.
        CheckpointError: it is damaged.
    """
    path = Path(source)
    if not path.exists():
        raise UsageError(f"--init-from: {source} is not there; expected the folder of a run, or a safetensors file")
    if (path / "config.toml").is_file():
        newest, _, _ = CheckpointFolder(path / "checkpoints", 1).newest()
        if newest is None:
            raise UsageError(f"--init-from: the run {source} has no checkpoint yet")
        path = newest
    elif (path / "network.safetensors").is_file():
        path = path / "network.safetensors"
    found = TrainedWeights()
    for name, value in read_weights(path).items():
        name = name.removeprefix("network.")  # an exported ensemble holds the whole network under this name
        if block := _BLOCK.fullmatch(name):
            found.blocks[block[1]] = value
        elif head := _HEAD.fullmatch(name):
            found.heads.setdefault(int(head[1]), {})[head[2]] = value
        elif classifier := _CLASSIFIER.fullmatch(name):
            found.heads.setdefault(0, {})[f"head.{classifier[1]}"] = value
    if not found.blocks:
        raise UsageError(f"--init-from: {source} holds no blocks of a network of this package")
    return found


def start_from(network: LocalNetwork, config: RunConfig) -> list[str]:
    """Give a fresh network the weights that ``config.init_from`` names.

    Returns:
        The names of the modules whose heads do not fit, and start from random weights.

    Raises:
        UsageError: the blocks are not those of this network; the message names the first that is not.
        CheckpointError: they are other weights than those that the run began with.
    """
    assert config.init_from is not None
    found = trained_weights(config.init_from)
    if config.init_weights not in (None, found.digest):
        raise CheckpointError(f"init_from: {config.init_from} has other weights now than when the run began")
    fresh, last = [], len(network.stages) - 1
    for i, stage in enumerate(network):
        blocks = {name: value for name, value in stage.weights().items() if name.startswith("blocks.")}
        _check(blocks, found.blocks, config.init_from)
        taken = {name: found.blocks[name.removeprefix("blocks.")] for name in blocks}
        index = found.stages - 1 if i == last else i  # the last one's head ends the network wherever the cuts are
        same = i == last or found.stages == len(network.stages)
        head = {f"objective.{name}": value for name, value in found.heads.get(index, {}).items() if same}
        own = {name: value for name, value in stage.weights().items() if name not in blocks}
        fits = {name: value.shape for name, value in own.items()} == {name: v.shape for name, v in head.items()}
        stage.load_weights(own | taken | (head if fits else {}))
        if own and not fits:
            fresh.append(stage.name)
    follow_next(network, config)
    return fresh


def _check(own: Mapping[str, Tensor], found: Mapping[str, Tensor], source: str) -> None:
    for name, value in own.items():
        block = name.removeprefix("blocks.")
        other = found.get(block)
        if other is None or other.shape != value.shape:
            there = "not there" if other is None else f"of shape {tuple(other.shape)} there"
            raise UsageError(
                f"--init-from: {source} is of another network: {block} is {there}, expected {tuple(value.shape)}; "
                "model, width and channels of the images must be the same; depth and heads need not"
            )
