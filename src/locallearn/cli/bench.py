"""``locallearn bench WHAT``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from locallearn.bench.inference import TABLE_3_5, bench_inference
from locallearn.cli.options import parse
from locallearn.core.network import ImageShape
from locallearn.errors import ConfigError, UsageError
from locallearn.training import record
from locallearn.training.setup import check_device, default_precision


@dataclass(frozen=True)
class InferenceOptions:
    """Options of ``bench inference``."""

    model: str = "resnet32"
    """Backbone."""
    depth: tuple[int, ...] = ()
    """K of the cells; with --width; by default the cells of Table 3.5."""
    width: tuple[int, ...] = ()
    """G of the cells, as many as --depth."""
    batch_sizes: tuple[int, ...] = (1, 128)
    """Images of a forward pass [images]."""
    image_size: int = 32
    """Side of an image [pixels]."""
    repeats: int = 30
    """Measurements of each network; medians are printed."""
    device: str | None = None
    """cpu or cuda[:N]; by default the GPU where there is one."""
    precision: str | None = None
    """fp32 or bf16; by default bf16 where the device computes it natively."""
    threads: int | None = None
    """CPU threads; by default as many as torch chooses."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        if len(self.depth) != len(self.width):
            raise ConfigError("--width", self.width, f"as many numbers as --depth has ({len(self.depth)})")
        if self.precision not in (None, "fp32", "bf16"):
            raise ConfigError("--precision", self.precision, "fp32 or bf16")
        for name in ("batch_sizes", "depth", "width"):
            for value in getattr(self, name):
                if value < 1:
                    raise ConfigError(f"--{name.replace('_', '-')}", value, "whole numbers of at least 1")
        if self.repeats < 1:
            raise ConfigError("--repeats", self.repeats, "a whole number of at least 1")


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: locallearn bench inference [options]\n\ninference: split networks against the end-to-end one")
        return 0
    if arguments[0] != "inference":
        raise UsageError(f"bench: {arguments[0]!r} is not known; expected inference")
    return _inference(arguments[1:])


def _inference(arguments: Sequence[str]) -> int:
    description = "Time split networks (auxiliary heads stripped) in turns with the end-to-end network (Table 3.5)."
    options = parse(InferenceOptions, arguments, "bench inference", description)
    device = check_device(options.device)
    precision = options.precision or default_precision(device)
    if options.threads:
        torch.set_num_threads(options.threads)
    cells = tuple(zip(options.depth, options.width, strict=True)) or TABLE_3_5
    image = ImageShape(3, options.image_size, 10)
    rows = bench_inference(options.model, cells, options.batch_sizes, image, device, precision, options.repeats)
    facts = {"model": options.model, "precision": precision, "repeats": options.repeats}
    facts |= {"hardware": record.hardware(str(device)), "versions": record.versions(), "commit": record.commit()}
    if options.json:
        print(json.dumps({**facts, "rows": rows}, indent=2))
        return 0
    console = Console()
    console.print(_table(rows, f"Inference of {options.model} against end to end, {precision}"))
    hardware = facts["hardware"]
    console.print(
        f"{hardware.get('gpu', hardware['cpu'])}, {hardware['threads']} threads, torch {facts['versions']['torch']}, "
        f"median of {options.repeats} turns; spread is the quartile distance over the median",
        highlight=False,
    )
    return 0


def _table(rows: Sequence[dict[str, float]], title: str) -> Table:
    table = Table(title=title)
    for column in ("K", "G", "batch", "e2e images/s", "split images/s", "spread", "speed-up", "predicted by MACs"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            str(row["depth"]),
            str(row["width"]),
            str(row["batch_size"]),
            f"{row['e2e_images_per_second']:,.0f}",
            f"{row['images_per_second']:,.0f}",
            f"{row['spread']:.1%}",
            f"{row['speedup']:.3f}",
            f"{row['predicted_speedup']:.3f}",
        )
    return table
