"""``locallearn bench step``: training steps against a loop over groups and against backpropagation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich import box
from rich.table import Table

from locallearn.bench.step import HEADLINE, TABLE_3_4, Setting, bench_step
from locallearn.cli.measuring import MeasuringOptions, check_positive, facts, show
from locallearn.cli.options import parse
from locallearn.core.network import ImageShape
from locallearn.errors import ConfigError
from locallearn.report.units import mebibytes


@dataclass(frozen=True)
class StepOptions(MeasuringOptions):
    """Options of ``bench step``."""

    model: str = "resnet32"
    """Backbone."""
    depth: tuple[int, ...] = ()
    """K of the cells of method gn-dgl, with --width; by default five cells of Table 3.4."""
    width: tuple[int, ...] = ()
    """G of the cells, as many as --depth."""
    table: bool = False
    """All 21 cells of Table 3.4."""
    widths: tuple[int, ...] = (1,)
    """Width factors: every cell of the model with so many times its channels."""
    baselines: tuple[Literal["loop", "loop-fp32", "e2e"], ...] = ("loop", "loop-fp32", "e2e")
    """What to time in turns with every cell: a loop over groups at the same precision, one in fp32, and plain
    backpropagation."""
    batch_size: int = 128
    """Images a step [images]."""
    repeats: int = 7
    """Measurements of each network; medians are printed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.depth) != len(self.width):
            raise ConfigError("--width", self.width, f"as many numbers as --depth has ({len(self.depth)})")
        if self.table and self.depth:
            raise ConfigError("--table", True, "either --table, or --depth and --width")
        check_positive(self, "depth", "width", "widths")
        if self.batch_size < 2:
            raise ConfigError("--batch-size", self.batch_size, "at least 2 (batch norm needs two images)")

    @property
    def cells(self) -> tuple[tuple[str, int, int], ...]:
        """(method, K, G)."""
        if self.table:
            return TABLE_3_4
        given = tuple(("gn-dgl", k, g) for k, g in zip(self.depth, self.width, strict=True))
        return given or HEADLINE


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    description = "Time training steps in turns with a loop over groups and with plain backpropagation."
    options = parse(StepOptions, arguments, "bench step", description)
    device, precision = options.prepare()
    setting = Setting(ImageShape(3, options.image_size, 10), options.batch_size, device, precision, options.repeats)
    wanted = dict.fromkeys(options.baselines)
    if precision == "fp32" and "loop" in wanted:
        wanted.pop("loop-fp32", None)  # the same thing
    models = [options.model if factor == 1 else f"{options.model}x{factor}" for factor in options.widths]
    rows = [bench_step(model, *cell, list(wanted), setting) for model in models for cell in options.cells]
    found = {**facts(device, precision, options.repeats), "batch_size": options.batch_size, "rows": rows}
    title = f"Training steps at batch {options.batch_size}, {precision}"
    show(options, found, [_table(rows, list(wanted), title)])
    return 0


def _table(rows: Sequence[dict[str, Any]], baselines: Sequence[str], title: str) -> Table:
    caption = "x NAME: how many times faster than NAME, in turns; MACs: x e2e as multiply-accumulates have it"
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD)
    columns = ["cell", "K", "G", "images/s", "spread", "MiB kept", *(f"x {name}" for name in baselines)]
    columns += ["MACs"] if "e2e" in baselines else []
    for column in columns:
        table.add_column(column, justify="left" if column == "cell" else "right", no_wrap=column != "cell")
    for row in rows:
        cells = [f"{row['model']} {row['method']}", str(row["depth"]), str(row["width"])]
        cells += [f"{row['images_per_second']:,.0f}", f"{row['spread']:.1%}", mebibytes(row["activation_bytes"])]
        cells += [f"{row['baselines'][n]['ratio']:.2f}" if n in row["baselines"] else "" for n in baselines]
        cells += [f"{row['predicted']:.2f}"] if "e2e" in baselines else []
        table.add_row(*cells)
    return table
