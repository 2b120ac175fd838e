"""Stages of a user's model on several devices of one process: each has its own weights, and nothing of the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from locallearn.core.batches import CalledBatch
from locallearn.core.module import Features
from locallearn.data.store import Batch
from locallearn.errors import ConfigError
from locallearn.losses.objectives import LocalLoss
from locallearn.nn.copies import converted
from locallearn.nn.pieces import Piece
from locallearn.plan.mesh import Mesh, place_nodes

T = TypeVar("T")


def devices_of(pieces: Sequence[Piece], devices: Sequence[str | torch.device]) -> list[torch.device]:
    """The device of every stage: as many stages in a row on each as makes the one with the most work have least.

    Args:
        pieces: the stages.
        devices: at most as many as stages; one may be named several times.

    Raises:
        ConfigError: they are no devices, none, or more than stages.
    """
    expected = f"a list of 1 to {len(pieces)} devices, the number of stages, such as ['cuda:0', 'cuda:1']"
    if isinstance(devices, str) or not isinstance(devices, Sequence) or not 1 <= len(devices) <= len(pieces):
        raise ConfigError("devices", devices, expected)
    found = [_device(device, expected) for device in devices]
    placement = place_nodes(Mesh(len(found), 1, 1), [1] * len(pieces), [float(p.macs) for p in pieces], False)
    return [device for device, span in zip(found, placement.spans, strict=True) for _ in span]


def _device(device: object, expected: str) -> torch.device:
    try:
        found = torch.device(device)  # type: ignore[arg-type]
    except (RuntimeError, TypeError):
        raise ConfigError("devices", device, expected) from None
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ConfigError("devices", device, f"cpu, or one of the {torch.cuda.device_count()} GPUs here")
    return found


@torch.no_grad()
def move(tensors: Iterable[Tensor], device: torch.device) -> None:
    """Put tensors on a device; they stay the same objects, so who holds one, as an optimizer does, has it there."""
    for tensor in tensors:
        if tensor.device != device:
            there = tensor.detach().to(device)
            made = nn.Parameter(there, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else there
            tensor.grad = None
            torch.utils.swap_tensors(tensor, made)


def view_on(model: nn.Module, device: torch.device, own: Iterable[Tensor], foreign: Iterable[Tensor]) -> nn.Module:
    """A copy of a model on a device, for a stage that computes alone there.

    Args:
        model: the model.
        device: where the stage computes.
        own: tensors that are the same in the copy; they are on the device.
        foreign: weights of other stages; the copy has their shapes, which take the memory of one number.
    """
    absent = {id(tensor) for tensor in foreign}

    def convert(tensor: Tensor) -> Tensor:
        if id(tensor) in absent:
            return torch.zeros((), dtype=tensor.dtype, device=device).expand(tensor.shape)
        return tensor.detach().clone().to(device)

    return converted(model, convert, own)


def brought(features: Features, batch: Batch, device: torch.device) -> tuple[Features, Batch]:
    """Features and the batch on a device, where they are not there yet; a GPU's queue makes the copies."""
    assert isinstance(batch, CalledBatch)
    assert batch.call is not None
    call = batch.call
    if call.first.device != device:
        call = dataclasses.replace(
            call,
            args=_there(call.args, device),
            kwargs=_there(call.kwargs, device),
            labels=_there(call.labels, device),
            given=_there(call.given, device),
        )
    return _there(features, device), call.batch()


def loss_on(loss: LocalLoss, device: torch.device) -> LocalLoss:
    """The losses of a stage on a device."""
    if loss.total.device == device:
        return loss
    terms = {name: term.to(device) for name, term in loss.terms.items()}
    logits = None if loss.logits is None else loss.logits.to(device)
    return LocalLoss(loss.total.to(device), terms, logits)


def _there(values: T, device: torch.device) -> T:
    return tree_map_only(Tensor, lambda x: x.to(device, non_blocking=True), values)
