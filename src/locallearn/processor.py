"""Which arithmetic the processor is fast at."""

from __future__ import annotations

import functools
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
"""Where Linux describes it."""


def prefers_float() -> bool:
    """Whether it multiplies bfloat16 numbers faster one at a time, as float, than in pairs.

    Processors by Intel start a ``vdpbf16ps`` every other cycle, and two multiplications of float in every cycle.
    """
    return "GenuineIntel" in words()


def slow_in_bf16() -> bool:
    """Whether torch's matrix products and convolutions take longer in bf16 than in fp32.

    They do with pairs on a processor that prefers float, unless it multiplies tiles (AMX), which torch uses.
    """
    return prefers_float() and not multiplies_tiles()


def multiplies_tiles() -> bool:
    """Whether it multiplies tiles of bfloat16 numbers (AMX), which torch uses, several times as fast as vectors."""
    return "amx_bf16" in words()


@functools.cache
def words() -> frozenset[str]:
    """What Linux says of it; nothing on other systems."""
    return frozenset(CPUINFO.read_text().split()) if CPUINFO.exists() else frozenset()
