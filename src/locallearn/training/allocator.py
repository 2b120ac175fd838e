"""Memory that is freed on the CPU stays with the process, as a GPU's does."""

from __future__ import annotations

import contextlib
import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def keep_freed_memory() -> bool:
    """Make glibc's malloc keep what is freed, for the whole process; tell whether there is a glibc to do so.

    By default tensors above 32 MiB are mapped anew each time and the end of the heap is given back, so that a step
    takes a page fault for every 4 KiB that it writes: 10 to 15 % of its time where heads or batches are large.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library
        return False
    # in this order: a trim threshold alone would switch off malloc's own growing threshold of mapping
    return bool(mallopt(_M_MMAP_THRESHOLD, 2**30)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def give_freed_memory_back() -> None:
    """Let malloc return what is freed, as it does after some work with large tensors, and return what is free now.

    glibc raises both thresholds as a process goes, at most to these values; it offers no way back to lower ones.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 2**25)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**26)
        libc.malloc_trim(0)
