"""``locallearn bench step``: training steps against a loop over groups and against backpropagation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich import box
from rich.table import Table

from locallearn.bench.cells import HEAD, HEADLINE, TABLE_3_4, Cell
from locallearn.bench.measuring import CellOptions, check_positive, facts, show
from locallearn.cli.early import working
from locallearn.cli.options import parse
from locallearn.config.own_parts import check_part
from locallearn.errors import ConfigError
from locallearn.report.units import mebibytes


@dataclass(frozen=True)
class TrainedCellOptions(CellOptions):
    """Which cells to train, and how."""

    table: bool = False
    """All 21 cells of Table 3.4."""
    head: str = HEAD
    """Auxiliary head, as objective.head."""
    batch_size: int = 128
    """Images a step [images]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_part("objective.head", self.head)
        if self.table and self.depth:
            raise ConfigError("--table", True, "either --table, or --depth and --width")
        if self.batch_size < 2:
            raise ConfigError("--batch-size", self.batch_size, "at least 2 (batch norm needs two images)")

    def cells(self, default: tuple[Cell, ...]) -> tuple[Cell, ...]:
        """Method, K and G of all; those of --depth and --width are of method gn-dgl."""
        if self.table:
            return TABLE_3_4
        return tuple(("gn-dgl", k, g) for k, g in zip(self.depth, self.width, strict=True)) or default


@dataclass(frozen=True)
class StepOptions(TrainedCellOptions):
    """Options of ``bench step``; by default five cells of Table 3.4."""

    widths: tuple[int, ...] = (1,)
    """Width factors: every cell of the model with so many times its channels."""
    runtimes: tuple[Literal["inline", "threads"], ...] = ("inline", "threads")
    """How the cells' modules train: one after the other, or several at once on the threads of a CPU."""
    baselines: tuple[Literal["loop", "loop-fp32", "e2e", "compiled"], ...] = ("loop", "loop-fp32", "e2e")
    """What to time in turns with every cell: a loop over groups at the same precision, one in fp32, plain
    backpropagation, and plain backpropagation of torch's layers under torch.compile (minutes of compiling)."""
    repeats: int = 7
    """Measurements of each network; medians are printed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.runtimes:
            raise ConfigError("--runtimes", self.runtimes, "inline, threads or both")
        check_positive(self, "widths")


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    description = (
        "Time training steps in turns with a loop over groups and with plain backpropagation; "
        "by default of five cells of Table 3.4."
    )
    options = parse(StepOptions, arguments, "bench step", description)
    models = [options.model if factor == 1 else f"{options.model}x{factor}" for factor in options.widths]
    with working("importing torch", options.json) as tell:
        from locallearn.bench.step import Setting, bench_step
        from locallearn.core.image_shape import ImageShape

        device, precision = options.prepare()
        image = ImageShape(3, options.image_size, 10)
        setting = Setting(image, options.batch_size, device, precision, options.repeats)
        wanted = dict.fromkeys(options.baselines)
        if precision == "fp32" and "loop" in wanted:
            wanted.pop("loop-fp32", None)  # the same thing
        rows = []
        for model in models:
            for method, depth, width in options.cells(HEADLINE):
                tell(f"{model}: {method} {depth} x {width}")
                rows += bench_step(model, method, depth, width, options.runtimes, list(wanted), setting, options.head)
        found = facts(device, precision, options.repeats)
    found |= {"batch_size": options.batch_size, "head": options.head, "rows": rows}
    tables = []
    for model in models:
        title = (
            f"Training steps of {model} (method K x G), batch {options.batch_size}, head {options.head}, {precision}"
        )
        tables.append(_table([row for row in rows if row["model"] == model], list(wanted), title))
    show(options, found, tables)
    return 0


_HEADS = {"loop": "x loop", "loop-fp32": "x loop\nfp32", "e2e": "x e2e", "compiled": "x com-\npiled"}
"""Columns of the baselines."""


def _table(rows: Sequence[dict[str, Any]], baselines: Sequence[str], title: str) -> Table:
    caption = (
        "x NAME: how many times faster than NAME, in turns; MACs: x e2e as multiply-accumulates of a step have it"
    )
    for row in rows:
        for one in row["baselines"].values():
            if "graphs" in one and row is rows[0]:
                caption += f"\ncompiled: first step {one['warm_up_seconds']:.0f} s, {one['graphs']} graphs, "
                caption += f"{one['recompiles']} compiled after it"
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("cell", "runtime"):
        table.add_column(column, no_wrap=True)
    numbers = ["images/s", "spread", "MiB\nkept", *(_HEADS[name] for name in baselines)]
    for column in numbers + (["MACs"] if "e2e" in baselines else []):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        cells = [f"{row['method']} {row['depth']} x {row['width']}", row["runtime"]]
        cells += [f"{row['images_per_second']:,.0f}", f"{row['spread']:.1%}", mebibytes(row["activation_bytes"])]
        cells += [f"{row['baselines'][n]['ratio']:.2f}" if n in row["baselines"] else "" for n in baselines]
        cells += [f"{row['predicted']:.2f}"] if "e2e" in baselines else []
        table.add_row(*cells)
    return table
