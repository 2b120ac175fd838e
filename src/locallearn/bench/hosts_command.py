"""``locallearn bench hosts``: throughput of several hosts as latency rises and bandwidth falls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich import box
from rich.table import Table

from locallearn.bench.measuring import facts, show
from locallearn.bench.own_options import CrewOptions
from locallearn.bench.wire import MOST as MOST_HOSTS
from locallearn.cli.early import working
from locallearn.cli.options import check_at_least, parse
from locallearn.errors import ConfigError

_LEAD = 6
"""Most steps of a turn that are not timed: after a change of the cables TCP has to find out how fast it may send."""
_LATENCIES, _BANDWIDTHS = (0.0, 2.0, 10.0, 50.0), (100.0,)


@dataclass(frozen=True)
class HostsOptions(CrewOptions):
    """Options of ``bench hosts``."""

    processes: int = 2
    """How many hosts there are, with a process each [processes]."""
    peers: tuple[Literal["1f1b", "gpipe", "ddp"], ...] = ("1f1b", "ddp")
    """What to measure beside the local networks: torch's pipelines and DistributedDataParallel."""
    latency: tuple[float, ...] = ()
    """From one host to another, each once without a limit of bandwidth; by default 0, 2, 10 and 50, and none where
    --bandwidth is given [ms]."""
    bandwidth: tuple[float, ...] = ()
    """Limits of what each host sends, each once without latency; by default 100, and none where --latency is given
    [Mbit/s]."""
    in_flight: int = 4
    """Batches that a module may have on the way to the next one before it waits [batches]."""
    steps: int = 8
    """Timed steps of a turn; as many before them, 6 at most, are not timed."""
    repeats: int = 3
    """Turns of each; medians are printed."""
    threads: int | None = 1
    """CPU threads of each host."""

    def __post_init__(self) -> None:
        if self.processes > MOST_HOSTS:
            raise ConfigError("--processes", self.processes, f"at most {MOST_HOSTS} hosts")
        super().__post_init__()
        check_at_least(self, in_flight=1)
        for name, least in (("latency", 0.0), ("bandwidth", 0.1)):
            for value in getattr(self, name):
                if not least <= value < math.inf:
                    raise ConfigError(f"--{name}", value, f"at least {least:g}")

    @property
    def conditions(self) -> list[tuple[float, float | None]]:
        """Latency [s] and bandwidth [bytes/s; None: no limit] of each cable."""
        given = self.latency or self.bandwidth
        latencies = self.latency if given else _LATENCIES
        bandwidths = self.bandwidth if given else _BANDWIDTHS
        unlimited: list[tuple[float, float | None]] = [(each / 1e3, None) for each in latencies]
        return unlimited + [(0.0, each * 1e6 / 8) for each in bandwidths]


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    description = (
        "Time nodes on several hosts in turns with torch's pipelining and data parallelism. The hosts are network "
        "namespaces of this machine, which needs Linux and root."
    )
    options = parse(HostsOptions, arguments, "bench hosts", description)
    with working("importing torch", options.json) as tell:
        from locallearn.bench.hosts import bench_hosts

        plan = options.plan(options.peers, in_flight=options.in_flight, lead=min(_LEAD, options.steps))
        tell(f"starting {options.processes} processes for each contender")
        setting = plan.setting
        found = options.figures() | {"in_flight": options.in_flight}
        found |= facts(setting.device, setting.precision, options.repeats)
        found["rows"] = bench_hosts(plan, options.conditions, tell)
    show(options, found, [_table(found)])
    return 0


def _table(found: dict[str, Any]) -> Table:
    rows = found["rows"]
    names = list(dict.fromkeys(row["name"] for row in rows))
    unit, digits = ("examples/s", ",.2f") if "tokens" in found else ("images/s", ",.0f")
    caption = f"{unit}, and the timeline's prediction from the parts of a step without messages"
    title = f"{found['model']} on {found['processes']} hosts, batch {found['batch_size']}, {found['precision']}"
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
