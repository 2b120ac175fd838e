"""``locallearn bench read``: reading of a packed set against a training step of ResNet-50."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich import box
from rich.table import Table

from locallearn.bench.measuring import MeasuringOptions, facts, show
from locallearn.cli.early import working
from locallearn.cli.options import check_at_least, parse
from locallearn.config import DataConfig


@dataclass(frozen=True)
class ReadOptions(MeasuringOptions):
    """Options of ``bench read``."""

    root: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ROOT")] = "."
    """Packed set (locallearn pack)."""
    image_size: int = 224
    """Side that images are cut to [pixels]."""
    batch_size: int = 64
    """Images a step [images]."""
    workers: int | None = None
    """Processes that read; by default as many as there are cores."""
    repeats: int = 20
    """Batches that are timed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, batch_size=2, workers=0)


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    description = "Images a second that are read and cut, and that a training step of ResNet-50 takes."
    options = parse(ReadOptions, arguments, "bench read", description)
    data = DataConfig("packed", root=options.root, image_size=options.image_size, workers=options.workers)
    with working("importing torch", options.json) as tell:
        from locallearn.bench.read import bench_read

        device, precision = options.prepare()
        tell("reading, training, and both together")
        row = bench_read(data, options.batch_size, device, precision, options.repeats)
    table = Table(
        title=f"packed images at {options.image_size}, batch {options.batch_size}, {row['workers']} processes",
        caption="images/s; waiting: part of the time together that the step waited for images",
        box=box.SIMPLE_HEAD,
    )
    for column in ("reading alone", "ResNet-50 alone", "together", "waiting"):
        table.add_column(column, justify="right")
    speeds = (row[f"{name}_images_per_second"] for name in ("read", "step", "together"))
    table.add_row(*(f"{speed:,.1f}" for speed in speeds), f"{row['waiting']:.1%}")
    show(options, {**facts(device, precision, options.repeats), **row}, [table])
    return 0
