"""Checkpoints: one safetensors file each, written atomically, with a checksum over everything in it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from locallearn.errors import CheckpointError

BEST = "best.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: named tensors, and everything else as JSON values."""

    tensors: dict[str, Tensor]
    progress: dict[str, Any]


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint under a temporary name, flush it to disk and rename it."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    progress = json.dumps(checkpoint.progress, sort_keys=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, temporary, {"progress": progress, "sha256": _checksum(tensors, progress)})
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint and verify its checksum.

    Raises:
        CheckpointError: it is not there, or damaged; the message names the file.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from None
    progress = metadata.get("progress", "")
    if metadata.get("sha256") != _checksum(tensors, progress):
        raise CheckpointError(f"checkpoint {path} is damaged: its checksum does not match its content")
    return Checkpoint(tensors, json.loads(progress))


def _checksum(tensors: Mapping[str, Tensor], progress: str) -> str:
    digest = hashlib.sha256(progress.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class CheckpointFolder:
    """The checkpoints of one run: the newest ``keep_last``, and the best.

    Args:
        folder: where they are.
        keep_last: how many of the newest to keep.
    """

    def __init__(self, folder: Path, keep_last: int) -> None:
        self.folder = folder
        self.keep_last = keep_last

    def paths(self) -> list[Path]:
        """The checkpoints by step, oldest first, without the best one's copy."""
        return sorted(self.folder.glob("step-*.safetensors"))

    def write(self, checkpoint: Checkpoint, step: int) -> Path:
        """Write the checkpoint of a step; only then remove those that are too old, and left-overs of a kill."""
        path = self.folder / f"step-{step:09d}.safetensors"
        save(path, checkpoint)
        for old in self.paths()[: -self.keep_last]:
            old.unlink()
        for leftover in self.folder.glob(".*.tmp"):
            leftover.unlink()
        return path

    def mark_best(self, path: Path) -> None:
        """Keep a copy of ``path`` as the best checkpoint."""
        temporary = self.folder / f".{BEST}.{os.getpid()}.tmp"
        shutil.copyfile(path, temporary)
        os.replace(temporary, self.folder / BEST)

    def newest(self) -> tuple[Path | None, Checkpoint | None, list[str]]:
        """The newest checkpoint that is whole: its path and content (or None), and a line for each damaged one.

        Raises:
            CheckpointError: there are checkpoints, and all are damaged.
        """
        problems: list[str] = []
        for path in reversed(self.paths()):
            try:
                return path, load(path), problems
            except CheckpointError as error:
                problems.append(str(error))
        if problems:
            raise CheckpointError(f"no checkpoint in {self.folder} is usable; {problems[0]}")
        return None, None, problems


def optimizer_tensors(name: str, module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of a module's optimizer as tensors named after its parameters."""
    return {
        f"optimizer/{name}/{parameter_name}/{key}": value
        for parameter_name, parameter in module.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimizer(
    name: str, module: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Put back what :func:`optimizer_tensors` took."""
    for parameter_name, parameter in module.named_parameters():
        prefix = f"optimizer/{name}/{parameter_name}/"
        state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        for key, value in state.items():
            if value.shape == parameter.shape:  # in the parameter's own memory layout; counters stay on the CPU
                state[key] = torch.empty_like(parameter).copy_(value)
        if state:
            optimizer.state[parameter] = state


def load_network(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Put a checkpoint's weights into a network.

    Raises:
        CheckpointError: they are another network's; the message names the first difference.
    """
    weights = {key.removeprefix("network/"): value for key, value in tensors.items() if key.startswith("network/")}
    own = network.state_dict()
    different = sorted(set(own) ^ set(weights)) + [
        key for key in own if key in weights and own[key].shape != weights[key].shape
    ]
    if different:
        raise CheckpointError(f"checkpoint {path} belongs to another network: {different[0]} does not fit")
    network.load_state_dict(weights)
