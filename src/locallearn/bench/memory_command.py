"""``locallearn bench memory``: activation memory and time by K, beside checkpointing and gradient accumulation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

from locallearn.bench.cells import DEPTHS, HEAD, PARTS
from locallearn.bench.measuring import MeasuringOptions, check_positive, facts, show
from locallearn.cli.early import working
from locallearn.cli.options import check_at_least, parse
from locallearn.config.own_parts import check_part
from locallearn.errors import ConfigError
from locallearn.nn.backbones import check_model
from locallearn.report.units import mebibytes


@dataclass(frozen=True)
class MemoryOptions(MeasuringOptions):
    """Options of ``bench memory``."""

    models: tuple[str, ...] = ("resnet32", "resnet110", "resnet50")
    """Backbones, a table each."""
    depth: tuple[int, ...] = DEPTHS
    """K of the local networks."""
    width: int = 1
    """G of the local networks."""
    head: str = HEAD
    """Auxiliary head, as objective.head."""
    batch_size: int = 128
    """Images a step [images]; micro-batches of gradient accumulation are its halves, quarters and eighths."""
    repeats: int = 5
    """Measurements of each network; medians are printed."""
    compiled: bool = False
    """Also backpropagation under torch.compile, of ResNets of basic blocks (minutes of compiling)."""
    bytes_only: bool = False
    """Time nothing: the bytes of one step each, which are the same on every machine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_part("objective.head", self.head)
        for model in self.models:
            check_model(model)
        check_positive(self, "depth")
        check_at_least(self, width=1)
        if self.batch_size < 2 * max(PARTS):
            expected = (
                f"at least {2 * max(PARTS)} (batch norm needs two images of each of {max(PARTS)} micro-batches)"
            )
            raise ConfigError("--batch-size", self.batch_size, expected)


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    description = "Peak activation memory and time of a step by K, beside backpropagation's ways to save memory."
    options = parse(MemoryOptions, arguments, "bench memory", description)
    with working("importing torch", options.json) as tell:
        from locallearn.bench.activations import bench_memory
        from locallearn.bench.step import Setting
        from locallearn.core.image_shape import ImageShape

        device, precision = options.prepare()
        repeats = 0 if options.bytes_only else options.repeats
        setting = Setting(ImageShape(3, options.image_size, 10), options.batch_size, device, precision, repeats)
        rows = {}
        for model in options.models:
            tell(model)
            rows[model] = bench_memory(model, options.depth, options.width, setting, options.head, options.compiled)
        found = facts(device, precision, repeats)
    found |= {"batch_size": options.batch_size, "head": options.head, "models": rows}
    show(options, found, [_table(rows[model], model, options) for model in options.models])
    return 0


def _table(rows: Sequence[dict[str, Any]], model: str, options: MemoryOptions) -> Table:
    table = Table(
        title=f"{model}: peak activation memory of a step, batch {options.batch_size}, head {options.head}",
        caption="MiB and time also over backprop's; x time: the fastest backprop in as much memory, over this time; "
        "x memory: the smallest backprop as fast, over this memory",
        box=box.SIMPLE_HEAD,
    )
    columns = ["", "MiB kept", "of all"]
    if not options.bytes_only:
        columns += ["time", "spread", "x time", "x memory"]
    for row in rows:
        if "graphs" in row:
            said = f"\ncompiled: first step {row['warm_up_seconds']:.0f} s, {row['graphs']} graphs, "
            table.caption = f"{table.caption}{said}{row['recompiles']} compiled after it"
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        cells = [row["name"], mebibytes(row["activation_bytes"]), f"{row['memory']:.2f}"]
        if not options.bytes_only:
            cells += [f"{row['time']:.2f}", f"{row['spread']:.1%}"]
            cells += [_number(row, name) for name in ("time_at_equal_memory", "memory_at_equal_time")]
        table.add_row(*cells)
    return table


def _number(row: dict[str, Any], name: str) -> str:
    if name not in row:
        return ""
    return "none" if row[name] is None else f"{row[name]:.2f}"
