"""``locallearn bench distributed``: nodes on several processes against torch's pipelining and data parallelism."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich import box
from rich.table import Table

from locallearn.bench.measuring import facts, show
from locallearn.bench.own_options import CrewOptions
from locallearn.cli.early import working
from locallearn.cli.options import parse
from locallearn.report.units import mebibytes


@dataclass(frozen=True)
class DistributedOptions(CrewOptions):
    """Options of ``bench distributed``."""

    depth: tuple[int, ...] = ()
    """K of the local networks, with --width; by default as many modules as processes, and one module."""
    peers: tuple[Literal["e2e", "compiled", "1f1b", "gpipe", "ddp"], ...] = ("e2e", "1f1b", "ddp")
    """What to measure beside them: backpropagation in one process, as it is and compiled, torch's pipelines and
    DistributedDataParallel."""
    repeats: int = 5
    """Turns of each; medians are printed."""
    threads: int | None = 1
    """CPU threads of each process; one process is also timed with as many as all of them have."""

    @property
    def cells(self) -> tuple[tuple[int, int], ...]:
        """(K, G); by default those of all processes along depth, and along width."""
        along_width = () if self.is_own or self.depth else ((1, self.processes),)
        return (*super().cells, *along_width)


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    description = "Time nodes on several processes in turns with torch's pipelining and data parallelism."
    options = parse(DistributedOptions, arguments, "bench distributed", description)
    with working("importing torch", options.json) as tell:
        from locallearn.bench.processes import bench_distributed

        plan = options.plan(options.peers)
        tell(f"starting {options.processes} processes for each contender")
        setting = plan.setting
        found = options.figures() | facts(setting.device, setting.precision, options.repeats)
        found |= bench_distributed(plan, tell)
    show(options, found, _tables(found))
    return 0


def _tables(found: Mapping[str, Any]) -> list[Table]:
    rows = found["rows"]
    return [_speed(found), _parts(rows), _ratios(found["ratios"]), _memory(rows)]


def _speed(found: Mapping[str, Any]) -> Table:
    title = f"{found['model']} on {found['processes']} processes, batch {found['batch_size']}, {found['precision']}"
    caption = "p x t: processes x threads of each; waiting: for others, share of a step; predicted: by the timeline"
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD)
    digits = ",.2f" if "tokens" in found else ",.0f"
    for column in (
        "",
        "p x t",
        "examples/s" if "tokens" in found else "images/s",
        "spread",
        "waiting",
        "predicted",
        "off by",
    ):
        table.add_column(column, justify="right" if column else "left", no_wrap=bool(column))
    for row in found["rows"]:
        predicted = row["predicted_images_per_second"]
        table.add_row(
            row["label"],
            f"{row['processes']} x {row['threads']}",
            f"{row['images_per_second']:{digits}}",
            f"{row['spread']:.1%}",
            " ".join(f"{share:.1%}" for share in row["waiting"] or ()),
            f"{predicted:{digits}}" if predicted else "",
            f"{row['deviation']:+.1%}" if predicted else "",
        )
    return table


def _parts(rows: Sequence[Mapping[str, Any]]) -> Table:
    caption = "alone: while the others wait; apart: while they do theirs, without messages (the prediction's ground)"
    table = _named_rows("Each process's part of a step [ms]", caption, "alone", "apart", "step")
    for row in (row for row in rows if row["processes"] > 1):
        cells = [_milliseconds(row[name]) for name in ("alone_seconds", "apart_seconds")]
        table.add_row(row["name"], *cells, _milliseconds([statistics.median(row["seconds"])]))
    return table


def _named_rows(title: str, caption: str, *columns: str) -> Table:
    """A table whose first column names the row."""
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD)
    for column in ("", *columns):
        table.add_column(column, justify="right" if column else "left")
    return table


def _milliseconds(seconds: Sequence[float]) -> str:
    return "  ".join(f"{1e3 * each:.1f}" for each in seconds)


def _ratios(ratios: Mapping[str, Mapping[str, float]]) -> Table:
    caption = "of slower node: share of the speed that the slower of its nodes has, alone or apart"
    table = _named_rows("How many times as fast, in turns", caption, *ratios)
    for other in next(iter(ratios.values())):
        table.add_row(other, *(f"{values[other]:.2f}" for values in ratios.values()))
    return table


def _memory(rows: Sequence[Mapping[str, Any]]) -> Table:
    caption = "kept: for the backward pass, at the peak of a step; peak, start: resident, the most and before step 1"
    table = _named_rows("Memory of each process [MiB]", caption, "kept", "peak", "start")
    for row in rows:
        cells = [row[name] for name in ("activation_bytes", "peak_bytes", "start_bytes")]
        table.add_row(row["name"], *("  ".join(mebibytes(n) for n in values) for values in cells))
    return table
