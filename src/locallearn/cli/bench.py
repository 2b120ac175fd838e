"""``locallearn bench WHAT``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from locallearn.bench.inference import TABLE_3_5, bench_inference
from locallearn.cli import bench_distributed, bench_epoch, bench_hosts, bench_memory, bench_read, bench_step
from locallearn.cli.measuring import CellOptions, check_positive, facts, show
from locallearn.cli.options import parse
from locallearn.core.network import ImageShape
from locallearn.errors import UsageError


@dataclass(frozen=True)
class InferenceOptions(CellOptions):
    """Options of ``bench inference``; by default the cells of Table 3.5."""

    batch_sizes: tuple[int, ...] = (1, 128)
    """Images of a forward pass [images]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "batch_sizes")


_USAGE = """usage: locallearn bench WHAT [options]

what:
  step         training steps of K x G networks against a loop over groups and against backpropagation
  epoch        whole epochs of training, data and metrics included, against the bandwidth of the memory
  memory       activation memory and time by K, beside checkpointing and gradient accumulation
  distributed  nodes on several processes against torch's pipelining and data parallelism
  hosts        the same on two hosts by latency and bandwidth of the network between them
  read         reading of packed images against a training step that needs them
  inference    split networks against the end-to-end one

locallearn bench WHAT --help tells its options."""


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE)
        return 0
    commands = {
        "step": bench_step.run,
        "epoch": bench_epoch.run,
        "memory": bench_memory.run,
        "distributed": bench_distributed.run,
        "hosts": bench_hosts.run,
        "read": bench_read.run,
        "inference": _inference,
    }
    if arguments[0] not in commands:
        raise UsageError(f"bench: {arguments[0]!r} is not known; expected {', '.join(commands)}")
    return commands[arguments[0]](arguments[1:])


def _inference(arguments: Sequence[str]) -> int:
    description = (
        "Time split networks (auxiliary heads stripped) in turns with the end-to-end network (by default Table 3.5)."
    )
    options = parse(InferenceOptions, arguments, "bench inference", description)
    device, precision = options.prepare()
    cells = tuple(zip(options.depth, options.width, strict=True)) or TABLE_3_5
    image = ImageShape(3, options.image_size, 10)
    rows = bench_inference(options.model, cells, options.batch_sizes, image, device, precision, options.repeats)
    found = {"model": options.model, **facts(device, precision, options.repeats), "rows": rows}
    show(options, found, [_table(rows, f"Inference of {options.model} against end to end, {precision}")])
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
