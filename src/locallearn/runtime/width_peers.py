"""Peers in other processes (``locallearn.nn.peers``)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from locallearn.nn.peers import Peers
from locallearn.runtime.messages import dense, flat
from locallearn.runtime.world import ProcessWorld, naming


class ProcessPeers(Peers):
    """The ranks that share one module, or hold replicas of it.

    Args:
        world: the processes.
        name: how messages name the module.
        shared: whether the module's groups are spread over the width of the mesh.

    Attributes:
        parts: rows of the current batch on each replica; set before each step.
        waited: seconds spent in exchanges so far.
        sent_bytes: that this rank has sent in them.
        keeps: whether the features that heads have seen are kept for ``features``.
        uneven: whether a parameter may have a gradient on some replicas only, as in a user's own model.
    """

    def __init__(self, world: ProcessWorld, name: str, shared: bool, uneven: bool = False) -> None:
        self.uneven = uneven
        self.ways = world.mesh.width if shared else 1
        self.index = world.place.width if shared else 0
        self.replicas, self.replica = world.mesh.data, world.place.data
        self.parts: Sequence[range] = ()
        self.waited = 0.0
        self.sent_bytes = 0
        self._width = world.axis("width") if self.ways > 1 else None
        self._data = world.axis("data") if self.replicas > 1 else None
        self._name = name
        self.keeps = False
        self._gathered: tuple[Tensor, Tensor] | None = None

    def gather_groups(self, x: Tensor, dim: int) -> Tensor:
        """The values of all groups, stacked on ``dim``; a gradient reaches this rank's own only."""
        if self._width is None:
            return x
        found = torch.cat(self._gather(x, self._width, self.index, self.ways), dim)
        if self.keeps and dim == 1:
            self._gathered = x.detach(), found.detach()
        return found

    def features(self, x: Tensor) -> Tensor:
        """The features of all groups; they are not exchanged again where the module's heads have seen them.

        All ranks of the module decide alike, for they compute the same layers. What was kept is let go.
        """
        kept, self._gathered = self._gathered, None
        if kept is not None and _same(kept[0], x):
            return kept[1]
        return self.gather_groups(x, 1)

    def whole_batch(self, x: Tensor, dim: int) -> Tensor:
        """The values of the whole batch, stacked on ``dim``; a gradient reaches this rank's own images only."""
        if self._data is None:
            return x
        sizes, most = [len(part) for part in self.parts], len(self.parts[0])
        padded = torch.cat([x, x.narrow(dim, 0, 1)], dim) if x.shape[dim] < most else x  # one row at most
        found = self._gather(padded, self._data, self.replica, self.replicas)
        found[self.replica] = x
        return torch.cat([part.narrow(dim, 0, size) for part, size in zip(found, sizes, strict=True)], dim)

    def batch_mean(self, mean: Tensor, share: float | None = None) -> Tensor:
        """From a mean over this rank's images the mean over the batch; a gradient reaches its own images only."""
        if self._data is None:
            return mean
        if share is None:
            share = len(self.parts[self.replica]) / self.parts[-1].stop
        own = mean * share if share else torch.zeros_like(mean)  # the mean of nothing is no number
        return own + (self.batch_sums(own.detach().clone()) - own.detach())

    def batch_sums(self, sums: Tensor) -> Tensor:
        """From sums over this rank's images the sums over the batch, in place and without gradient."""
        if self._data is not None:
            self._timed(lambda: dist.all_reduce(sums, group=self._data))
            # of a ring: all but one part of as many as there are ranks, to be added and to be handed on
            self.sent_bytes += 2 * sums.nbytes * (self.replicas - 1) // self.replicas
        return sums

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of all replicas; each has its own images' part of the batch's gradient."""
        if self._data is None:
            return
        parameters = list(parameters)
        if self.uneven:
            self._fill(parameters)
        gradients = [dense(p.grad) for p in parameters if p.grad is not None]
        together = self.batch_sums(torch.cat([flat(gradient) for gradient in gradients]))
        for gradient, found in zip(gradients, together.split([g.numel() for g in gradients]), strict=True):
            flat(gradient).copy_(found)

    def _fill(self, parameters: Sequence[nn.Parameter]) -> None:
        """Give zeros to parameters that have a gradient on another replica alone."""
        has = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32)
        found = self.batch_sums(has.to(parameters[0].device)).tolist() if parameters else []
        for parameter, replicas in zip(parameters, found, strict=True):
            if replicas and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def _gather(self, x: Tensor, group: dist.ProcessGroup, index: int, count: int) -> list[Tensor]:
        """The same-sized tensors of a group of ranks, in order; this rank's own is ``x`` itself."""
        own = dense(x.detach())
        found = [torch.empty_like(own) for _ in range(count)]
        self._timed(lambda: dist.all_gather([flat(each) for each in found], flat(own), group=group))
        self.sent_bytes += own.nbytes * (count - 1)
        return [x if i == index else each for i, each in enumerate(found)]

    def _timed(self, exchange: Callable[[], object]) -> None:
        begin = time.perf_counter()
        with naming(f"another process of {self._name}"):
            exchange()
        self.waited += time.perf_counter() - begin


def _same(kept: Tensor, x: Tensor) -> bool:
    """Whether these are the same numbers: in the same memory, which is not freed while one of them is kept."""
    return (kept.data_ptr(), kept.dtype, kept.shape) == (x.data_ptr(), x.dtype, x.shape)
