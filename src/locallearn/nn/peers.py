"""What ranks that share one module exchange while they compute.

A module whose groups sit on several ranks, or that has replicas, computes as it does on one rank; only where a
node sees others (stop-gradient heads, the diversity penalty) or the whole batch (batch norm, losses) it asks its
peers, which are ``current`` while the module computes. On one rank there are none, and nothing is exchanged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from contextvars import ContextVar

import torch
from torch import Tensor, nn


class Peers:
    """The other ranks of one module. These are none: every method gives back what it is given.

    Attributes:
        index: this rank's place among those that share the module's groups.
        ways: how many ranks share the module's groups, each with as many.
        replicas: how many ranks hold the same groups, each with a part of every batch.
        replica: this rank's place among those.
    """

    index = 0
    ways = 1
    replicas = 1
    replica = 0

    def gather_groups(self, x: Tensor, dim: int) -> Tensor:
        """The values of all groups, stacked on ``dim``; a gradient reaches this rank's own only."""
        return x

    def whole_batch(self, x: Tensor, dim: int) -> Tensor:
        """The values of the whole batch, stacked on ``dim``; a gradient reaches this rank's own images only."""
        return x

    def batch_mean(self, mean: Tensor, share: float | None = None) -> Tensor:
        """From a mean over this rank's images the mean over the batch; a gradient reaches its own images only.

        Args:
            mean: the mean; of no image it is not looked at.
            share: what part of the batch's mean it is; by default this rank's part of the images.
        """
        return mean

    def batch_sums(self, sums: Tensor) -> Tensor:
        """From sums over this rank's images the sums over the batch, perhaps in place; without gradient."""
        return sums

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of all replicas; each has its own images' part of the batch's gradient."""


_ALONE = Peers()
_current: ContextVar[Peers] = ContextVar("peers", default=_ALONE)


def current() -> Peers:
    """The peers of the module that computes now."""
    return _current.get()


@torch.compiler.assume_constant_result
def replicated() -> bool:
    """Whether the module that computes now has replicas; compiled ones never have."""
    return current().replicas > 1


@contextlib.contextmanager
def computing_with(peers: Peers) -> Iterator[None]:
    """Make these peers the current ones."""
    token = _current.set(peers)
    try:
        yield
    finally:
        _current.reset(token)
