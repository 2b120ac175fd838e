"""Features of trained modules, kept in few bytes, in memory or on disk, up to a bound."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from locallearn.errors import UsageError
from locallearn.files import as_os_error, cannot_write

Kept = dict[str, Tensor]
"""Packed features: ``values``, for uint8 ``low`` and ``scale`` [C] too, and an empty tensor of the original type."""
Key = tuple[int, int]
"""(epoch, step) of a batch."""

_TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def pack(features: Tensor, dtype: str) -> Kept:
    """Features [B, C, ...] in a smaller number format, on the CPU.

    ``uint8`` counts steps of 1/255 of the range of a channel in this batch, so the error is at most half a step.
    """
    like = features.new_empty(0, device="cpu")
    if dtype != "uint8":
        return {
            "values": features.to("cpu", getattr(torch, {"bf16": "bfloat16", "fp32": "float32"}[dtype])),
            "like": like,
        }
    x_BCN = features.float().flatten(2) if features.dim() > 2 else features.float()[..., None]
    low_C, high_C = x_BCN.amin((0, 2)), x_BCN.amax((0, 2))
    scale_C = (high_C - low_C).div_(255).clamp_(min=torch.finfo(torch.float32).tiny)
    steps = (features.float() - _by_channel(low_C, features)) / _by_channel(scale_C, features)
    return {"values": steps.round_().to("cpu", torch.uint8), "low": low_C.cpu(), "scale": scale_C.cpu(), "like": like}


def unpack(kept: Kept, device: torch.device, memory_format: torch.memory_format) -> Tensor:
    """Features as they were, but for rounding; those of images [B, C, H, W] in the given memory format."""
    values = kept["values"].to(device)
    if "scale" in kept:
        low, scale = (_by_channel(kept[name].to(device), values) for name in ("low", "scale"))
        values = values.float().mul_(scale).add_(low)
    values = values.to(kept["like"].dtype)
    return values.contiguous(memory_format=memory_format) if values.dim() == 4 else values.contiguous()


def _by_channel(value_C: Tensor, features: Tensor) -> Tensor:
    return value_C.view(1, -1, *[1] * (features.dim() - 2))


class FeatureCache:
    """The features of one level for each batch; a deeper level takes the place of the one before it.

    Level k means the features of module k; there is one entry a batch at most.

    Args:
        limit_bytes: largest size of all entries; what does not fit is not kept [bytes].
        folder: where entries are files; ``None`` keeps them in memory. It is made when the first one is written.
    """

    def __init__(self, limit_bytes: int, folder: Path | None = None) -> None:
        self.limit_bytes = limit_bytes
        self.bytes = 0
        self._folder = folder
        self._entries: dict[Key, tuple[int, int, Kept | None]] = {}

    def get(self, key: Key) -> tuple[int, Kept] | None:
        """Level and features of a batch, or None where nothing is kept."""
        if key not in self._entries:
            return None
        level, _, kept = self._entries[key]
        return level, self._read(key) if kept is None else kept

    def put(self, key: Key, level: int, kept: Kept) -> None:
        """Keep the features of a level in the place of what was kept of this batch, where the bound allows it."""
        size = sum(tensor.nbytes for tensor in kept.values())
        old = self._entries[key][1] if key in self._entries else 0
        if self.bytes - old + size > self.limit_bytes:
            return
        if self._folder is not None:
            self._write(key, kept)
        self._entries[key] = (level, size, kept if self._folder is None else None)
        self.bytes += size - old

    def clear(self) -> None:
        """Forget everything, and remove the folder."""
        self._entries, self.bytes = {}, 0
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, key: Key) -> Path:
        assert self._folder is not None
        return self._folder / f"{key[0]}-{key[1]}.safetensors"

    def _write(self, key: Key, kept: Kept) -> None:
        path = self._path(key)
        try:
            path.parent.mkdir(exist_ok=True)
            save_file({name: tensor.contiguous() for name, tensor in kept.items()}, path)
        except (OSError, SafetensorError) as error:
            raise cannot_write(path, as_os_error(error) or OSError(str(error))) from None

    def _read(self, key: Key) -> Kept:
        try:
            return load_file(self._path(key))
        except (OSError, SafetensorError) as error:
            raise UsageError(f"sequential.cache: {self._path(key)} cannot be read: {error}") from None
