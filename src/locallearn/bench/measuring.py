"""What the commands of ``bench`` have in common: options, facts about the machine, and the line under a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

from locallearn.cli.console import Terminal
from locallearn.cli.options import check_at_least
from locallearn.errors import ConfigError
from locallearn.nn.backbones import check_model

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class MeasuringOptions:
    """Where and how often to measure."""

    image_size: int = 32
    """Side of an image [pixels]."""
    repeats: int = 30
    """Measurements of each network; medians are printed."""
    device: str | None = None
    """cpu or cuda[:N]; by default the GPU where there is one."""
    precision: str | None = None
    """fp32 or bf16; by default bf16 where the device computes it faster."""
    threads: int | None = None
    """CPU threads; by default as many as torch chooses."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        if self.precision not in (None, "fp32", "bf16"):
            raise ConfigError("--precision", self.precision, "fp32 or bf16")
        check_at_least(self, repeats=1, image_size=4, threads=1)

    def prepare(self, here: bool = True) -> tuple[torch.device, str]:
        """Set the threads; the device, and the precision on it.

        Args:
            here: whether this process measures, and not others that it starts.
        """
        import torch

        from locallearn.training.allocator import keep_freed_memory
        from locallearn.training.setup import check_device, default_precision

        device = check_device(self.device)
        if self.threads:
            torch.set_num_threads(self.threads)
        if here and device.type == "cpu":
            keep_freed_memory()  # as training does; every baseline gains by it, too
        return device, self.precision or default_precision(device)


@dataclass(frozen=True)
class CellOptions(MeasuringOptions):
    """Which K x G networks to measure."""

    model: str = "resnet32"
    """Backbone."""
    depth: tuple[int, ...] = ()
    """K of the cells; with --width; there are some by default."""
    width: tuple[int, ...] = ()
    """G of the cells, as many as --depth."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_model(self.model)
        if len(self.depth) != len(self.width):
            raise ConfigError("--width", self.width, f"as many numbers as --depth has ({len(self.depth)})")
        check_positive(self, "depth", "width")


def check_positive(options: object, *names: str) -> None:
    """Refuse numbers below 1 in options that are tuples of numbers."""
    for name in names:
        for value in getattr(options, name):
            if value < 1:
                raise ConfigError(f"--{name.replace('_', '-')}", value, "whole numbers of at least 1")


def facts(device: torch.device, precision: str, repeats: int) -> dict[str, Any]:
    """What a quoted figure must say besides itself."""
    from locallearn.training import provenance

    return {"precision": precision, "repeats": repeats, **provenance.facts_of(str(device))}


def show(options: MeasuringOptions, found: dict[str, Any], tables: Sequence[Table]) -> None:
    """Print ``found`` as JSON, or the tables and what they were measured with."""
    if options.json:
        print(json.dumps(found, indent=2))
        return
    console = Terminal()
    for table in tables:
        console.print(table)
    hardware = found["hardware"]
    turns = f", median of {found['repeats']} turns; spread is the quartile distance over the median"
    turns = turns if found["repeats"] else ", nothing timed"
    console.print(
        f"{hardware.get('gpu', hardware['cpu'])}, {hardware['threads']} threads, torch {found['versions']['torch']}, "
        f"kernels {hardware['kernels']}, {found['precision']}{turns}",
        highlight=False,
    )
