"""Hooks that are there for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from torch.utils.hooks import RemovableHandle


@contextlib.contextmanager
def removed_after(hooks: Iterable[RemovableHandle]) -> Iterator[None]:
    """Remove hooks at the end, however it comes."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
