"""The processes of a run: who they are, and what they say to each other besides features."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.rendezvous import rendezvous

from locallearn.config import RunConfig
from locallearn.core.shard import join
from locallearn.errors import ConfigError, LocalLearnError
from locallearn.plan.mesh import Mesh
from locallearn.runtime.restarts import attempt_number, within

T = TypeVar("T")


class PeerLostError(LocalLearnError):
    """A process that this one works with died, or said nothing for ``mesh.timeout``."""

    passing = True


class Alone:
    """The world of one process.

    Attributes:
        leader: whether this process writes the record and evaluates.
    """

    leader = True

    def sync(self) -> None:
        """Nobody to wait for."""

    def share(self, text: str) -> str:
        """The text."""
        return text

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors."""
        return dict(tensors)

    def largest(self, value: int) -> int:
        """The value."""
        return value


class ProcessWorld:
    """The processes of a mesh.

    Args:
        mesh: their arrangement.
        device: where this one computes.
        timeout: how long to wait for a silent process [s].

    Attributes:
        rank: this process.
        leader: whether this process writes the record and evaluates.
        parts: how many processes write a checkpoint together.
        part: which of them this is; None for the other replicas, which have the same.
        names: how messages name the other processes; their nodes, once these are placed.
        features: the group that features travel in.
        entrance: the group of the ranks of the first modules that this one belongs to; None where it does not, or
            is alone there.
    """

    def __init__(self, mesh: Mesh, device: torch.device, timeout: float) -> None:
        self.mesh, self.device = mesh, device
        self.rank = dist.get_rank()
        self.place = mesh.place(self.rank)
        self.leader = self.rank == 0
        self.names = [f"rank {rank}" for rank in range(mesh.size)]
        self.parts = mesh.depth * mesh.width
        self.part = self.rank // mesh.data if self.place.data == 0 else None
        with naming("a process of the mesh"):
            self._connect(device, datetime.timedelta(seconds=timeout))

    def _connect(self, device: torch.device, limit: datetime.timedelta) -> None:
        mesh = self.mesh
        sizes, names = (mesh.depth, mesh.width, mesh.data), ("depth", "width", "data")
        self._axes = init_device_mesh(device.type, sizes, mesh_dim_names=names)
        self.features = _group(None, None, limit)
        self._control = _group(None, "gloo", limit)
        first = list(range(mesh.width * mesh.data))
        entrance = _group(first, "gloo", limit) if len(first) > 1 else None
        self.entrance = entrance if self.place.depth == 0 else None

    def leave(self) -> None:
        """End the groups that were made for it, with their threads; the process's own stays."""
        axes = [self.axis(name) for name in ("depth", "width", "data")]
        for group in dict.fromkeys((*axes, self.features, self._control, self.entrance)):
            if group is not None and group is not dist.group.WORLD:
                dist.destroy_process_group(group)

    def axis(self, name: str) -> dist.ProcessGroup:
        """The group of the ranks that differ from this one on one axis only: ``width`` or ``data``."""
        return self._axes.get_group(name)

    def sync(self) -> None:
        """Wait until every process is here."""
        others = range(1, self.mesh.size)
        for turn in ("arrive", "leave"):  # by hand, for a barrier does not say who is missing
            for rank in others if self.leader else (self.rank,):
                source, target = (rank, 0) if turn == "arrive" else (0, rank)
                self._move(torch.zeros(1), source, target)

    def share(self, text: str) -> str:
        """The leader's text."""
        data = text.encode()
        for rank in range(1, self.mesh.size) if self.leader else (self.rank,):
            data = self._exchange(0, rank, data)
        return data.decode()

    def agree(self, wanted: bool) -> bool:
        """Whether any of the ranks of the first modules wants it; only they may ask."""
        if self.entrance is None:
            return wanted
        flag = torch.tensor([int(wanted)])
        with naming("a process of module 1"):
            dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.entrance)
        return bool(flag)

    def largest(self, value: int) -> int:
        """The largest value of all processes."""
        if not self.leader:
            self._move(torch.tensor([value]), self.rank, 0)
        for rank in range(1, self.mesh.size) if self.leader else ():
            other = torch.zeros(1, dtype=torch.int64)
            self._move(other, rank, 0)
            value = max(value, int(other))
        return int(self.share(str(value)))

    def collect(self, text: str) -> list[str]:
        """On the leader, the texts of all processes by rank; elsewhere nothing."""
        if not self.leader:
            self._exchange(self.rank, 0, text.encode())
            return []
        return [text, *(self._exchange(rank, 0).decode() for rank in range(1, self.mesh.size))]

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """On the leader, the tensors of every process with their rows put together; elsewhere nothing."""
        own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        writers = [rank for rank in range(self.mesh.size) if self.mesh.place(rank).data == 0]
        parts: list[Mapping[str, Tensor]] = [own]
        for rank in writers[1:]:
            if self.leader:
                parts.append(from_bytes(self._exchange(rank, 0)))
            elif rank == self.rank:
                self._exchange(rank, 0, to_bytes(own))
        return join(parts) if self.leader else {}

    def moved(self, tensors: Mapping[str, Tensor], source: int, target: int) -> dict[str, Tensor]:
        """Send tensors from one process to another; called by both, and by no other. Returns them on the CPU."""
        if self.rank == source:
            self._exchange(source, target, to_bytes({k: v.detach().cpu().contiguous() for k, v in tensors.items()}))
            return {}
        return from_bytes(self._exchange(source, target))

    def _exchange(self, source: int, target: int, data: bytes = b"") -> bytes:
        """Move bytes between two processes; returns them at both ends."""
        size = torch.tensor([len(data)])
        self._move(size, source, target)
        if self.rank == source:
            buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0).byte()
        else:
            buffer = torch.empty(int(size), dtype=torch.uint8)
        self._move(buffer, source, target)
        return buffer.numpy().tobytes()

    def _move(self, tensor: Tensor, source: int, target: int) -> None:
        if self.rank == source:
            with naming(self.names[target]):
                dist.send(tensor, target, group=self._control)
        else:
            with naming(self.names[source]):
                dist.recv(tensor, source, group=self._control)


def _group(ranks: list[int] | None, backend: str | None, limit: datetime.timedelta) -> dist.ProcessGroup:
    found = dist.new_group(ranks, timeout=limit, backend=backend)
    assert isinstance(found, dist.ProcessGroup) or found is dist.GroupMember.NON_GROUP_MEMBER
    return found  # type: ignore[return-value]


@contextlib.contextmanager
def naming(who: str) -> Iterator[None]:
    """Say in one line which peer was lost.

    Raises:
        PeerLostError: the communication inside failed.
    """
    try:
        yield
    except RuntimeError as error:  # torch.distributed has no error of its own for a closed connection
        reason = str(error).splitlines()[0].split("This is typically")[0].split("] ", 1)[-1].strip(" .")
        raise PeerLostError(f"{who} is lost ({reason or 'no answer'})") from None


def local_device(config: RunConfig) -> torch.device:
    """The device of this process: the one in the configuration, or of several GPUs its own."""
    device = torch.device(config.train.device or "cpu")
    if device.type == "cuda" and config.runtime == "distributed":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    return device


@contextlib.contextmanager
def process_world(config: RunConfig, device: torch.device) -> Iterator[ProcessWorld]:
    """Join the processes of the mesh, as torchrun's environment says, and leave them at the end.

    A process group that is there already is used and kept. One that failed is left to the end of the process.

    Raises:
        ConfigError: there are not as many processes as the mesh has places.
        PeerLostError: they do not find each other.
    """
    mesh = Mesh(config.mesh.depth, config.mesh.width, config.mesh.data)
    count = dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))
    if count != mesh.size:
        sizes = f"mesh of depth {mesh.depth} x width {mesh.width} x data {mesh.data}"
        expected = f"{mesh.size} processes for a {sizes} (torchrun --nproc-per-node, or --processes)"
        raise ConfigError("runtime", f"distributed on {count} processes", expected)
    if dist.is_initialized():
        world = ProcessWorld(mesh, device, config.mesh.timeout)
        yield world
        world.leave()
        return
    _join(device, config.mesh.timeout)
    yield ProcessWorld(mesh, device, config.mesh.timeout)
    dist.destroy_process_group()  # not after an error: a thread may still wait for a peer that is gone


def _join(device: torch.device, timeout: float) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "0")):
        os.environ.setdefault(name, value)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    limit = datetime.timedelta(seconds=timeout)
    with naming("a process of the mesh"):
        store, rank, size = within(timeout, lambda: next(rendezvous("env://", timeout=limit)))
        # torchrun may keep its store when it starts processes again, and with it the addresses of dead ones
        store = dist.PrefixStore(f"attempt/{attempt_number()}", store)  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)


def names_of(nodes: Sequence[tuple[str, int]], rank: int) -> str:
    """How a message names the nodes of a rank: ``module 2, groups 1-2 (rank 3)``."""
    modules = list(dict.fromkeys(name for name, _ in nodes))
    groups = sorted({group for _, group in nodes})
    span = f"group {groups[0]}" if len(groups) == 1 else f"groups {groups[0]}-{groups[-1]}"
    return f"module{'s' if len(modules) > 1 else ''} {', '.join(modules)}, {span} (rank {rank})"
