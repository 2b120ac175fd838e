"""``locallearn bench distributed``: nodes on several processes against torch's pipelining and data parallelism."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich import box
from rich.table import Table

from locallearn.bench.measuring import check_positive, facts, show
from locallearn.bench.own_options import OwnProcessesOptions, check_microbatches
from locallearn.cli.early import working
from locallearn.cli.options import check_at_least, parse
from locallearn.errors import ConfigError
from locallearn.report.units import mebibytes


@dataclass(frozen=True)
class DistributedOptions(OwnProcessesOptions):
    """Options of ``bench distributed``."""

    processes: int = 2
    """How many train together [processes]."""
    depth: tuple[int, ...] = ()
    """K of the local networks, with --width; by default as many modules as processes, and one module."""
    width: tuple[int, ...] = ()
    """G of the local networks, as many as --depth; K x G is the number of processes."""
    cuts: tuple[str, ...] = ("auto",)
    """Where the network is cut into as many modules as processes, in the pipelines too: auto, balanced, or blocks;
    auto or submodules of a model of your own."""
    peers: tuple[Literal["e2e", "compiled", "1f1b", "gpipe", "ddp"], ...] = ("e2e", "1f1b", "ddp")
    """What to measure beside them: backpropagation in one process, as it is and compiled, torch's pipelines and
    DistributedDataParallel."""
    microbatches: int = 4
    """Parts of a batch in the pipelines; a divisor of --batch-size."""
    steps: int = 8
    """Timed steps of a turn."""
    repeats: int = 5
    """Turns of each; medians are printed."""
    device: str | None = "cpu"
    """cpu."""
    threads: int | None = 1
    """CPU threads of each process; one process is also timed with as many as all of them have."""
    timeout: float = 120.0
    """A turn that takes longer has failed [s]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, processes=2, steps=1)
        check_positive(self, "depth", "width")
        if self.device != "cpu":
            raise ConfigError("--device", self.device, "cpu")
        if len(self.depth) != len(self.width):
            raise ConfigError("--width", self.width, f"as many numbers as --depth has ({len(self.depth)})")
        for depth, width in self.cells:
            if depth * width != self.processes:
                raise ConfigError("--depth", f"{depth} x {width}", f"K x G = {self.processes}, the processes")
        if not 0 < self.timeout < float("inf"):
            raise ConfigError("--timeout", self.timeout, "seconds, above 0")
        if self.is_own and self.cells != ((self.processes, 1),):
            raise ConfigError("--width", self.width, f"1 with a model of your own, and --depth {self.processes}")
        check_microbatches(self, self.processes)

    @property
    def cells(self) -> tuple[tuple[int, int], ...]:
        """(K, G)."""
        along_depth, along_width = (self.processes, 1), (1, self.processes)
        default = (along_depth,) if self.is_own else (along_depth, along_width)
        return tuple(zip(self.depth, self.width, strict=True)) or default


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    description = "Time nodes on several processes in turns with torch's pipelining and data parallelism."
    options = parse(DistributedOptions, arguments, "bench distributed", description)
    with working("importing torch", options.json) as tell:
        from locallearn.bench.processes import CrewPlan, bench_distributed
        from locallearn.bench.step import Setting
        from locallearn.core.image_shape import ImageShape

        device, precision = options.prepare()
        image = ImageShape(3, options.image_size or 32, 10)
        setting = Setting(image, options.examples, device, precision, options.repeats, options.threads)
        plan = CrewPlan(
            options.model,
            options.processes,
            options.cells,
            options.cuts,
            options.peers,
            options.microbatches,
            options.steps,
            setting,
            options.timeout,
            own=options.own(options.processes, options.cuts),
        )
        tell(f"starting {options.processes} processes for each contender")
        measured = {**options.figures(), **facts(device, precision, options.repeats), **bench_distributed(plan, tell)}
    names = ("processes", "microbatches", "steps")
    found = {"cuts": list(options.cuts), **{name: getattr(options, name) for name in names}, **measured}
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
