"""Checkpoints: one safetensors file each, written atomically, with a checksum over everything in it.

Where several processes train, a checkpoint is a folder of such files, each with the rows of one process, and a
manifest that names them; it is written last, and without it the folder is no checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from locallearn.core.module import Stage
from locallearn.core.network import LocalNetwork
from locallearn.core.shard import join
from locallearn.errors import CheckpointError, UsageError
from locallearn.files import make_folder, replacing, sweep, write_atomically

BEST = "best.safetensors"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: named tensors, and everything else as JSON values."""

    tensors: dict[str, Tensor]
    progress: dict[str, Any]


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint under a temporary name, flush it to disk and rename it."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    progress = json.dumps(checkpoint.progress, sort_keys=True)
    make_folder(path.parent)
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"progress": progress, "sha256": checksum(tensors, progress)})


def load(path: Path) -> Checkpoint:
    """Read a checkpoint, a file or a folder of parts, and verify its checksums.

    Raises:
        CheckpointError: it is not there, or damaged; the message names the file.
    """
    if path.is_dir():
        return _load_parts(path)
    with _opened(path) as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    progress = metadata.get("progress", "")
    if metadata.get("sha256") != checksum(tensors, progress):
        raise CheckpointError(f"checkpoint {path} is damaged: its checksum does not match its content")
    return Checkpoint(tensors, _dictionary(progress, path))


def _dictionary(text: str, path: Path) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"checkpoint {path} is damaged: its JSON is no dictionary")
    return values


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """One file, opened; a pipe or a device would keep whoever opens it waiting."""
    if path.exists() and not path.is_file():
        raise CheckpointError(f"checkpoint {path} is not a file")
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from None


def _load_parts(folder: Path) -> Checkpoint:
    parts = []
    for name, checksum in _named_parts(folder).items():
        if _noted_checksum(folder / name) != checksum:
            raise CheckpointError(f"checkpoint {folder} is damaged: {name} is of another checkpoint")
        parts.append(load(folder / name))
    try:
        return Checkpoint(join([part.tensors for part in parts]), parts[0].progress)
    except RuntimeError as error:  # of tensors whose shapes do not go together
        raise CheckpointError(f"checkpoint {folder} is damaged: {str(error).splitlines()[0]}") from None


def _named_parts(folder: Path) -> dict[str, Any]:
    """What the manifest says: checksums of files that lie beside it."""
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"checkpoint {folder} has no {MANIFEST}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {folder} cannot be read: {error}") from None
    parts = _dictionary(text, path).get("parts")
    if not isinstance(parts, dict) or not parts:
        raise CheckpointError(f"checkpoint {folder} is damaged: {MANIFEST} names no parts")
    for name in parts:
        # a link is as good a way out of the run as ".."
        if not re.fullmatch(r"part-\d+\.safetensors", name) or (folder / name).is_symlink():
            raise CheckpointError(f"checkpoint {folder} is damaged: {name!r} is no part of it")
    return parts


def _noted_checksum(path: Path) -> str | None:
    with _opened(path) as file:
        return (file.metadata() or {}).get("sha256")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint, or all tensors of another safetensors file, by name.

    Raises:
        CheckpointError: it is not there, or damaged.
    """
    if not path.is_dir():
        with _opened(path) as file:
            if "progress" not in (file.metadata() or {}):
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    weights = {name: value for name, value in load(path).tensors.items() if name.startswith("network/")}
    return {name.removeprefix("network/"): value for name, value in weights.items()}


def checksum(tensors: Mapping[str, Tensor], progress: str) -> str:
    """SHA-256 of named tensors on the CPU and a text."""
    digest = hashlib.sha256(progress.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class CheckpointFolder:
    """The checkpoints of one run: the newest ``keep_last``, the best, and those of every Nth step.

    Args:
        folder: where they are.
        keep_last: how many of the newest to keep.
        keep_steps: N, whose multiples are kept for good [steps]; 0 means none.
    """

    def __init__(self, folder: Path, keep_last: int, keep_steps: int = 0) -> None:
        self.folder = folder
        self.keep_last = keep_last
        self.keep_steps = keep_steps

    def paths(self) -> list[Path]:
        """The checkpoints by step, oldest first, without the best one's copy."""
        sets = [manifest.parent for manifest in self.folder.glob(f"step-*/{MANIFEST}")]
        found = [*self.folder.glob("step-*.safetensors"), *sets]
        return sorted(path for path in found if re.fullmatch(r"step-\d+", path.name.partition(".")[0]))

    def write(self, checkpoint: Checkpoint, step: int) -> Path:
        """Write the checkpoint of a step; only then remove those that are too old, and left-overs of a kill."""
        path = self.folder / f"step-{step:09d}.safetensors"
        save(path, checkpoint)
        self._tidy(path)
        return path

    def write_part(self, checkpoint: Checkpoint, step: int, part: int) -> None:
        """Write one process's part of the checkpoint of a step."""
        save(self.folder / f"step-{step:09d}" / f"part-{part:04d}.safetensors", checkpoint)

    def complete(self, step: int, parts: int) -> Path:
        """Make a checkpoint of the parts of a step, once all are written; only then remove what is too old."""
        path = self.folder / f"step-{step:09d}"
        names = [f"part-{part:04d}.safetensors" for part in range(parts)]
        manifest = {"parts": {name: _noted_checksum(path / name) for name in names}}
        write_atomically(path / MANIFEST, json.dumps(manifest, indent=2) + "\n")
        self._tidy(path)
        return path

    def _tidy(self, newest: Path) -> None:
        """Remove checkpoints that are too old, sets that were never completed, and left-overs of a kill."""
        paths = self.paths()
        unfinished = [p for p in self.folder.glob("step-*/") if p not in paths and p != newest]
        for old in [*filter(self._goes, paths[: -self.keep_last]), *unfinished]:
            _remove(old)
        for folder in (self.folder, newest) if newest.is_dir() else (self.folder,):
            sweep(folder, all_of_them=True)

    def _goes(self, path: Path) -> bool:
        return not self.keep_steps or step_of(path) % self.keep_steps != 0

    def mark_best(self, path: Path) -> None:
        """Keep a copy of ``path`` as the best checkpoint, in one file."""
        if path.is_dir():
            save(self.folder / BEST, load(path))
            return
        with replacing(self.folder / BEST) as temporary:
            shutil.copyfile(path, temporary)

    def at(self, step: str) -> Path:
        """The checkpoint of a step.

        Raises:
            UsageError: it is not kept; the message names those that are.
        """
        found = {str(step_of(path)): path for path in self.paths()}
        if step not in found:
            raise UsageError(
                f"--checkpoint: {step!r} is not kept; expected last, best or a step: {', '.join(found) or 'none yet'}"
            )
        return found[step]

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


def step_of(path: Path) -> int:
    """The step that a checkpoint's name tells."""
    return int(path.name.partition(".")[0].removeprefix("step-"))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        (path / MANIFEST).unlink(missing_ok=True)  # first, so that what a kill leaves is no checkpoint
        shutil.rmtree(path)
    else:
        path.unlink()


def optimizer_tensors(name: str, module: Stage, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of a stage's optimizer as tensors named after its parameters."""
    return {
        f"optimizer/{name}/{parameter_name}/{key}": value
        for parameter_name, parameter in module.own_parameters().items()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimizer(name: str, module: Stage, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what ``optimizer_tensors`` took."""
    for parameter_name, parameter in module.own_parameters().items():
        prefix = f"optimizer/{name}/{parameter_name}/"
        state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        for key, value in state.items():
            if value.shape == parameter.shape:  # in the parameter's own memory layout; counters stay on the CPU
                state[key] = torch.empty_like(parameter).copy_(value)
        if state:
            optimizer.state[parameter] = state


def load_network(network: LocalNetwork | Stage, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Put a checkpoint's weights into a network, or those of one stage into it.

    Raises:
        CheckpointError: they are another network's; the message names the first difference.
    """
    weights = {key.removeprefix("network/"): value for key, value in tensors.items() if key.startswith("network/")}
    own = network.weights()
    different = sorted(set(own) ^ set(weights)) + [
        key for key in own if key in weights and own[key].shape != weights[key].shape
    ]
    if different:
        raise CheckpointError(f"checkpoint {path} belongs to another network: {different[0]} does not fit")
    network.load_weights(weights)
