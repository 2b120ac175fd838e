"""``locallearn bench epoch``: whole epochs of training against the bandwidth of the memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

from locallearn.bench.epoch import bench_epoch
from locallearn.bench.step import Setting
from locallearn.cli.bench_step import TrainedCellOptions
from locallearn.cli.measuring import facts, show
from locallearn.cli.options import parse
from locallearn.core.network import ImageShape
from locallearn.errors import ConfigError

_CELLS = (("e2e", 1, 1), ("gn-dgl", 4, 4))


@dataclass(frozen=True)
class EpochOptions(TrainedCellOptions):
    """Options of ``bench epoch``; by default plain backpropagation and GN-DGL with K = G = 4."""

    images: int = 50_000
    """Images of an epoch [images], random ones; CIFAR-10 has 50,000."""
    batch_size: int = 1024
    """Images a step [images]."""
    repeats: int = 3
    """Epochs of each network; medians are printed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images < 2 * self.batch_size:
            raise ConfigError("--images", self.images, f"two batches or more, at least {2 * self.batch_size}")


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    description = "Time whole epochs of training, in turns, against what the bandwidth of the memory would allow."
    options = parse(EpochOptions, arguments, "bench epoch", description)
    device, precision = options.prepare()
    image = ImageShape(3, options.image_size, 10)
    setting = Setting(image, options.batch_size, device, precision, options.repeats, options.threads)
    measured = bench_epoch(options.model, options.cells(_CELLS), options.images, setting, options.head)
    common = {
        "model": options.model,
        "images": options.images,
        "batch_size": options.batch_size,
        "head": options.head,
    }
    found = {**facts(device, precision, options.repeats), **common, **measured}
    show(options, found, [table(measured, options)])
    return 0


def table(measured: dict[str, Any], options: EpochOptions) -> Table:
    """What was measured."""
    shown = Table(
        title=f"{options.model}, {options.images:,} images an epoch, batch {options.batch_size}, head {options.head}",
        caption=f"floor: what torch's operators move at {measured['bandwidth'] / 1e9:,.1f} GB/s, as copies do here; "
        "fused: convolutions and matrix products alone; x: the epoch over it",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    on_gpu = any(row["host_seconds"] is not None for row in measured["rows"])
    shown.add_column("cell", no_wrap=True)
    host = ["operators\na step", "host,\ns"] if on_gpu else []
    for column in ["epoch,\ns", "spread", "images/s", *host, "GB\na step", "floor,\ns", "x", "fused,\ns", "x"]:
        shown.add_column(column, justify="right", no_wrap=True)
    for row in measured["rows"]:
        cells = [f"{row['method']} {row['depth']} x {row['width']}", f"{row['seconds']:,.2f}", f"{row['spread']:.1%}"]
        cells.append(f"{row['images_per_second']:,.0f}")
        if on_gpu:
            cells += [f"{row['operators']:,}", f"{row['host_seconds']:.2f}"]
        cells.append(f"{row['bytes'] / 1e9:.2f}")
        for floor in ("floor", "product_floor"):
            cells += [f"{row[floor]:.2f}", f"{row['seconds'] / row[floor]:.1f}"]
        shown.add_row(*cells)
    return shown
