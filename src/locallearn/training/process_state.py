"""What training changes in its process, and how that is put back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from locallearn.training.allocator import give_freed_memory_back


@contextlib.contextmanager
def cpu_threads(count: int | None = None) -> Iterator[None]:
    """So many threads for torch's operators on the CPU, or as many as there are; in the end as many as before."""
    before = torch.get_num_threads()
    try:
        if count:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def process_as_before() -> Iterator[None]:
    """Put back torch's number of threads in the end, and let malloc return what is freed."""
    with cpu_threads():
        try:
            yield
        finally:
            give_freed_memory_back()
