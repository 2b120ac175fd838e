"""``locallearn bench inference``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from locallearn.bench.cells import TABLE_3_5
from locallearn.bench.measuring import CellOptions, check_positive, facts, show
from locallearn.cli.early import working
from locallearn.cli.options import parse


@dataclass(frozen=True)
class InferenceOptions(CellOptions):
    """Options of ``bench inference``; by default the cells of Table 3.5."""

    batch_sizes: tuple[int, ...] = (1, 128)
    """Images of a forward pass [images]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "batch_sizes")


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    description = (
        "Time split networks (auxiliary heads stripped) in turns with the end-to-end network (by default Table 3.5)."
    )
    options = parse(InferenceOptions, arguments, "bench inference", description)
    cells = tuple(zip(options.depth, options.width, strict=True)) or TABLE_3_5
    with working("importing torch", options.json) as tell:
        from locallearn.bench.forward_passes import bench_inference
        from locallearn.core.image_shape import ImageShape

        device, precision = options.prepare()
        image, repeats = ImageShape(3, options.image_size, 10), options.repeats
        tell(f"forward passes of {len(cells)} networks")
        rows = bench_inference(options.model, cells, options.batch_sizes, image, device, precision, repeats)
        found = {"model": options.model, **facts(device, precision, repeats), "rows": rows}
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
