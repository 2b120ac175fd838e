"""``locallearn bench hosts``: throughput of two hosts as latency rises and bandwidth falls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich import box
from rich.table import Table

from locallearn.bench.measuring import facts, show
from locallearn.bench.own_options import OwnProcessesOptions, check_microbatches
from locallearn.cli.early import working
from locallearn.cli.options import check_at_least, parse
from locallearn.errors import ConfigError

_LEAD = 6
"""Steps of a turn that are not timed: after a change of the cable TCP takes some to find out how fast it may send."""


@dataclass(frozen=True)
class HostsOptions(OwnProcessesOptions):
    """Options of ``bench hosts``."""

    cuts: tuple[str, ...] = ("auto",)
    """Where it is cut in two: auto, balanced, or the name of a block; of a model of your own auto or a submodule."""
    peers: tuple[Literal["1f1b", "gpipe", "ddp"], ...] = ("1f1b", "ddp")
    """What to measure beside dgl: torch's pipelines and DistributedDataParallel."""
    latency: tuple[float, ...] = (0.0, 2.0, 10.0, 50.0)
    """From one host to the other, each once without a limit of bandwidth [ms]."""
    bandwidth: tuple[float, ...] = (100.0,)
    """Limits of what each host sends, each once without latency [Mbit/s]."""
    in_flight: int = 4
    """Batches that module 1 may have on the way to module 2 before it waits [batches]."""
    microbatches: int = 4
    """Parts of a batch in the pipelines; a divisor of --batch-size."""
    steps: int = 8
    """Timed steps of a turn."""
    repeats: int = 3
    """Turns of each; medians are printed."""
    device: str | None = "cpu"
    """cpu."""
    threads: int | None = 1
    """CPU threads of each host."""
    timeout: float = 120.0
    """A turn that takes longer has failed [s]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, in_flight=1, steps=1)
        if self.device != "cpu":
            raise ConfigError("--device", self.device, "cpu")
        for name, least in (("latency", 0.0), ("bandwidth", 0.1)):
            for value in getattr(self, name):
                if not least <= value < math.inf:
                    raise ConfigError(f"--{name}", value, f"at least {least:g}")
        if not 0 < self.timeout < math.inf:
            raise ConfigError("--timeout", self.timeout, "seconds, above 0")
        check_microbatches(self, 2)


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    description = (
        "Time dgl K=2 on two hosts in turns with torch's pipelining and data parallelism. The hosts are network "
        "namespaces of this machine, which needs Linux and root."
    )
    options = parse(HostsOptions, arguments, "bench hosts", description)
    conditions = [(latency / 1e3, None) for latency in options.latency]
    conditions += [(0.0, bandwidth * 1e6 / 8) for bandwidth in options.bandwidth]
    names = ("cuts", "microbatches", "in_flight", "steps")
    found = {name: getattr(options, name) for name in names}
    with working("importing torch", options.json) as tell:
        from locallearn.bench.hosts import bench_hosts
        from locallearn.bench.processes import CrewPlan
        from locallearn.bench.step import Setting
        from locallearn.core.image_shape import ImageShape

        device, precision = options.prepare()
        image = ImageShape(3, options.image_size or 32, 10)
        setting = Setting(image, options.examples, device, precision, options.repeats, options.threads)
        plan = CrewPlan(
            model=options.model,
            processes=2,
            cells=((2, 1),),
            cuts=options.cuts,
            peers=options.peers,
            microbatches=options.microbatches,
            steps=options.steps,
            setting=setting,
            timeout=options.timeout,
            in_flight=options.in_flight,
            lead=_LEAD,
            own=options.own(2, options.cuts),
        )
        found |= options.figures() | facts(device, precision, options.repeats)
        tell("starting two processes for each contender")
        found["rows"] = bench_hosts(plan, conditions, tell)
    show(options, found, [_table(found)])
    return 0


def _table(found: dict[str, Any]) -> Table:
    rows = found["rows"]
    names = list(dict.fromkeys(row["name"] for row in rows))
    unit, digits = ("examples/s", ",.2f") if "tokens" in found else ("images/s", ",.0f")
    caption = f"{unit}, and the timeline's prediction from the parts of a step without messages"
    title = f"{found['model']} on two hosts, batch {found['batch_size']}, {found['precision']}"
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD)
    table.add_column("cable")
    for name in names:
        table.add_column(name, justify="right")
        table.add_column("predicted", justify="right")
    for i in range(0, len(rows), len(names)):
        cells = []
        for row in rows[i : i + len(names)]:
            cells += [f"{row['images_per_second']:{digits}}", f"{row['predicted_images_per_second']:{digits}}"]
        table.add_row(_cable(rows[i]), *cells)
    return table


def _cable(row: dict[str, Any]) -> str:
    limit = f", {8 * row['bandwidth'] / 1e6:g} Mbit/s" if row["bandwidth"] else ""
    return f"{1e3 * row['latency']:g} ms{limit}"
