"""Which processes train which nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from locallearn.arguments import checked_fields
from locallearn.config.checks import STRICT, check, choice, is_real, positive_int


@checked_fields
@dataclass(frozen=True)
class MeshConfig:
    """The processes of the distributed runtime: depth x width x data of them."""

    __pydantic_config__ = STRICT

    depth: int = 1
    """Processes that share the modules [processes]; at most depth K. With fewer, each has several modules."""
    width: int = 1
    """Processes that share the groups of every module [processes]; must divide every module's groups."""
    data: int = 1
    """Replicas of every node [processes]; each takes a part of every batch, and gradients are averaged."""
    in_flight: int = 2
    """Batches of features that a module may have on the way to the next one before it waits [batches]."""
    wire: Literal["fp32", "bf16"] | None = None
    """How features travel between processes; by default as they are, which changes nothing."""
    timeout: float = 300.0
    """A process that says nothing for so long is lost [s]; longer than an evaluation takes. A process that dies is
    noticed at once."""

    def __post_init__(self) -> None:
        for name in ("depth", "width", "data", "in_flight"):
            positive_int(f"mesh.{name}", getattr(self, name), most=1_000_000)
        choice("mesh.wire", self.wire, "fp32", "bf16")
        check("mesh.timeout", self.timeout, lambda v: is_real(v) and v > 0, "a finite number above 0")
        check("mesh.timeout", self.timeout, lambda v: v <= 10**7, "at most 10,000,000 (four months)")

    @property
    def size(self) -> int:
        """Processes in all."""
        return self.depth * self.width * self.data
