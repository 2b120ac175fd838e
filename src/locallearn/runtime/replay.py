"""The replay buffer of asynchronous training (Belilovsky et al., 2020, Algorithm 2): pure data, no tensors needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Sample(Generic[T]):
    """One use of an item.

    Attributes:
        item: what was put in.
        uses: how often it was used before; 0 the first time.
        staleness: how many items came after it until now.
    """

    item: T
    uses: int
    staleness: int


@dataclass
class _Entry(Generic[T]):
    item: T
    number: int
    uses: int = 0


class ReplayBuffer(Generic[T]):
    """The newest items, each to be used a bounded number of times.

    An item that comes while the buffer is full takes the place of the oldest one: who puts never waits.

    Args:
        size: items that it holds at most.
        max_reuse: how often an item may be used again after the first time.
    """

    def __init__(self, size: int, max_reuse: int) -> None:
        self.size = size
        self.max_reuse = max_reuse
        self.arrived = 0
        self.dropped = 0
        """Items that were pushed out before they were ever used."""
        self._entries: list[_Entry[T]] = []

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def unused(self) -> int:
        """Items that were never used."""
        return sum(entry.uses == 0 for entry in self._entries)

    def put(self, item: T) -> None:
        """Add an item, in the place of the oldest one where the buffer is full."""
        self.arrived += 1
        self._entries.append(_Entry(item, self.arrived))
        if len(self._entries) > self.size:
            self.dropped += self._entries.pop(0).uses == 0

    def take(self, fresh: bool = False) -> Sample[T] | None:
        """The item that was used least, of those the newest; None where there is none.

        An item that was used as often as allowed leaves the buffer.

        Args:
            fresh: only an item that was never used.
        """
        if not self._entries or (fresh and not self.unused):
            return None
        entry = min(self._entries, key=lambda entry: (entry.uses, -entry.number))
        sample = Sample(entry.item, entry.uses, self.arrived - entry.number)
        entry.uses += 1
        if entry.uses > self.max_reuse:
            self._entries.remove(entry)
        return sample
