"""Processes that begin with what takes seconds to import."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import multiprocessing

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext


def with_imports(*modules: str) -> ForkServerContext | SpawnContext:
    """How to start processes: as copies of one that has imported these modules, or anew where there are no copies.

    Args:
        modules: names; one that is not there is left out.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    return context
