"""``locallearn bench epoch``: whole epochs of training against the bandwidth of the memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

from locallearn.bench.measuring import facts, show
from locallearn.bench.step_command import TrainedCellOptions
from locallearn.cli.early import working
from locallearn.cli.options import parse
from locallearn.config import OneProcess
from locallearn.errors import ConfigError

_CELLS = (("e2e", 1, 1), ("gn-dgl", 4, 4))


@dataclass(frozen=True)
class EpochOptions(TrainedCellOptions):
    """Options of ``bench epoch``; by default plain backpropagation and GN-DGL with K = G = 4."""

    images: int = 50_000
    """Images of an epoch [images], random ones; CIFAR-10 has 50,000."""
    runtime: OneProcess = "inline"
    """How modules train: one after the other, several at once on the threads of a CPU, or launched together on a
    GPU."""
    batch_size: int = 1024
    """Images a step [images]."""
    repeats: int = 3
    """Epochs of each network; medians are printed."""
    compiled: bool = False
    """Compare with torch's layers under torch.compile, too; compiling takes a minute or several."""
    bytes_only: bool = False
    """Time nothing: what one step moves, which is the same on every machine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compiled and self.bytes_only:
            raise ConfigError("--compiled", True, "none with --bytes-only, which times nothing")
        if self.images < 2 * self.batch_size:
            raise ConfigError("--images", self.images, f"two batches or more, at least {2 * self.batch_size}")


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    description = (
        "Time whole epochs of training, in turns, against what the bandwidth of the memory would allow; "
        "by default of plain backpropagation and of GN-DGL with K = G = 4."
    )
    options = parse(EpochOptions, arguments, "bench epoch", description)
    with working("importing torch", options.json) as tell:
        from locallearn.bench.epoch import bench_epoch
        from locallearn.bench.step import Setting
        from locallearn.core.image_shape import ImageShape

        device, precision = options.prepare()
        image = ImageShape(3, options.image_size, 10)
        repeats = 0 if options.bytes_only else options.repeats
        setting = Setting(image, options.batch_size, device, precision, repeats, options.threads)
        cells = options.cells(_CELLS)
        tell(f"training epochs of {len(cells)} networks in turns")
        measured = bench_epoch(
            options.model, cells, options.images, setting, options.head, options.runtime, options.compiled
        )
        common = facts(device, precision, repeats)
    common |= {
        "model": options.model,
        "images": options.images,
        "batch_size": options.batch_size,
        "head": options.head,
        "runtime": options.runtime,
    }
    found = {**common, **measured}
    show(options, found, [table(measured, options)])
    return 0


def table(measured: dict[str, Any], options: EpochOptions) -> Table:
    """What was measured, or only counted."""
    rows = measured["rows"]
    caption, columns = "fused: convolutions and matrix products alone", ["operators", "GB", "GB fused"]
    if "bandwidth" in measured:
        bandwidth = f"{measured['bandwidth'] / 1e9:,.1f} GB/s, as copies do here"
        caption = f"floor: what torch's operators move at {bandwidth}; {caption}; x: the epoch over it"
        host = ["host,\ns"] if rows[0]["host_seconds"] is not None else []
        columns = ["epoch,\ns", "spread", "images/s", *host, "GB\na step", "floor,\ns", "x", "fused,\ns", "x"]
    shown = Table(
        title=f"{options.model}, batch {options.batch_size}, {options.images:,} images, {options.runtime}",
        caption=caption,
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    shown.add_column("cell", no_wrap=True)
    for column in columns:
        shown.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        cells = _times(row) if "seconds" in row else _counts(row)
        shown.add_row(f"{row['method']} {row['depth']} x {row['width']}", *cells)
    if "compiled" in measured:
        one = measured["compiled"]
        rate = f"{one['images_per_second']:,.0f}"
        shown.add_row("compiled", f"{one['seconds']:,.2f}", f"{one['spread']:.1%}", rate)
        told = f"{one['graphs']} graphs, {one['recompiles']} compiled after it"
        shown.caption = f"{caption}\ncompiled: first step {one['warm_up_seconds']:.0f} s, {told}"
    return shown


def _counts(row: dict[str, Any]) -> list[str]:
    return [f"{row['operators']:,}", *(f"{row[name] / 1e9:.2f}" for name in ("bytes", "product_bytes"))]


def _times(row: dict[str, Any]) -> list[str]:
    cells = [f"{row['seconds']:,.2f}", f"{row['spread']:.1%}", f"{row['images_per_second']:,.0f}"]
    if row["host_seconds"] is not None:
        cells.append(f"{row['host_seconds']:.2f}")
    cells.append(f"{row['bytes'] / 1e9:.2f}")
    for floor in ("floor", "product_floor"):
        cells += [f"{row[floor]:.2f}", f"{row['seconds'] / row[floor]:.1f}"]
    return cells
