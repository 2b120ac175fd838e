"""``locallearn bench many``: very many devices, by simulation."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from locallearn.cli.console import Terminal, say
from locallearn.cli.early import working
from locallearn.cli.options import check_at_least, check_ending, parse
from locallearn.config import RunConfig
from locallearn.errors import ConfigError
from locallearn.files import make_folder, write_atomically
from locallearn.nn.backbones import check_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from locallearn.bench.many import Cluster


@dataclass(frozen=True)
class ManyOptions:
    """Options of ``bench many``."""

    model: str = "resnet110x8"
    """Backbone, which is counted as `locallearn cost` counts it."""
    depth: tuple[int, ...] = (16, 16, 32, 32, 32)
    """K of the local networks; with --width."""
    width: tuple[int, ...] = (1, 4, 1, 8, 32)
    """G of the local networks, as many as --depth."""
    devices: tuple[int, ...] = (64, 256, 1024)
    """Devices; those that a network has more of than nodes hold copies of it."""
    batch_size: int = 4096
    """Images a step of all devices together [images]."""
    device_flops: float = 1e13
    """Operations a second that a device reaches (a multiply-accumulate is two)."""
    bandwidth: float = 1.25e10
    """Of what a device sends, in a cluster [bytes/s]."""
    latency: float = 1e-5
    """Of a message, in a cluster [s]."""
    far_bandwidth: float = 1.25e8
    """The same between far hosts [bytes/s]."""
    far_latency: float = 0.05
    """The same between far hosts [s]."""
    slowdown: float = 2.0
    """How many times as long one slow device takes."""
    loss: float = 10.0
    """How many times as long messages on one bad link take."""
    in_flight: int = 2
    """Batches that a module may have begun and the next one not yet taken forward."""
    figure: str | None = None
    """SVG file to draw the speed-ups to."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        check_model(self.model)
        if len(self.depth) != len(self.width) or not self.depth:
            raise ConfigError("--width", self.width, f"as many numbers as --depth has ({len(self.depth)})")
        check_at_least(self, batch_size=2, in_flight=1)
        for name in ("depth", "width", "devices"):
            for value in getattr(self, name):
                if value < 1:
                    raise ConfigError(f"--{name}", value, "whole numbers of at least 1")
        for name in ("device_flops", "bandwidth", "far_bandwidth"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"--{name.replace('_', '-')}", getattr(self, name), "a number above 0")
        for name, least in (("latency", 0.0), ("far_latency", 0.0), ("slowdown", 1.0), ("loss", 1.0)):
            if not least <= getattr(self, name) < float("inf"):
                raise ConfigError(f"--{name.replace('_', '-')}", getattr(self, name), f"at least {least:g}")
        if max(self.devices) > self.batch_size:
            raise ConfigError("--devices", max(self.devices), f"at most {self.batch_size}, the images of a batch")
        check_ending("--figure", self.figure, ".svg")

    def conditions(self) -> dict[str, Cluster]:
        """What the devices are like, by name."""
        from locallearn.bench.many import Cluster

        near = Cluster(self.device_flops, self.bandwidth, self.latency)
        return {
            "cluster": near,
            "one slow device": dataclasses.replace(near, slowdown=self.slowdown),
            "one bad link": dataclasses.replace(near, loss=self.loss),
            "far hosts": Cluster(self.device_flops, self.far_bandwidth, self.far_latency),
        }


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    description = "Predict the speed-up of many devices over one, beside the usual ways. Measures nothing."
    options = parse(ManyOptions, arguments, "bench many", description)
    cells = {}
    with working("importing torch", options.json) as tell:
        from locallearn.bench.many import speedups
        from locallearn.costs.nodes import CIFAR10, cost

        for depth, width in zip(options.depth, options.width, strict=True):
            tell(f"counting K = {depth}, G = {width}")
            method = "dgl" if width == 1 else "gn-dgl"
            config = RunConfig(method=method, model=options.model, depth=depth, width=(width,))
            cells[depth, width] = cost(config, CIFAR10, batch_size=options.batch_size, precision="bf16")
        conditions = options.conditions()
        rows = []
        for devices in options.devices:
            tell(f"simulating {devices} devices")
            rows += speedups(cells, devices, conditions, options.in_flight)
    if options.json:
        print(json.dumps({**dataclasses.asdict(options), "rows": rows}))
    else:
        Terminal().print(_table(rows, list(conditions), options))
    if options.figure:
        from locallearn.report.svg import to_svg

        file = Path(options.figure)
        make_folder(file.parent)
        title = "Speed-up over one device by number of devices, in a cluster and between far hosts"
        write_atomically(file, to_svg(_figure(rows), "many-", title))
        if not options.json:
            say(file)
    return 0


def _table(rows: Sequence[Mapping[str, Any]], conditions: Sequence[str], options: ManyOptions) -> Table:
    table = Table(
        title=f"{options.model}: predicted speed-up over one device, batch {options.batch_size}", box=box.SIMPLE_HEAD
    )
    for name in ("devices", "", "copies", *conditions):
        table.add_column(name, justify="right" if name else "left", no_wrap=not name)
    before = None
    for row in rows:
        first = str(row["devices"]) if row["devices"] != before else ""
        before = row["devices"]
        table.add_row(first, row["way"], str(row["copies"]), *(f"{row['speedups'][c]:,.1f}" for c in conditions))
    return table


def _figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """A line a way: the best network of each kind for every number of devices, close (solid) and far (dashed)."""
    from locallearn.report.plots import new_axes

    figure, axes = new_axes("devices", height=3.2, width=7.0)
    kinds = {row["way"].split()[0] for row in rows}
    colours = {"DGL": "#0072b2", "GN-DGL": "#d55e00", "1F1B": "#00835f", "DDP": "#b0528a", "FSDP": "#8a6d00"}
    for kind in sorted(kinds):
        own = [row for row in rows if row["way"].split()[0] == kind]
        devices = sorted({row["devices"] for row in own})
        for condition, dash in (("cluster", "-"), ("far hosts", "--")):
            best = [max(row["speedups"][condition] for row in own if row["devices"] == n) for n in devices]
            colour = colours.get(kind, "#444444")
            label = f"{kind}, {condition}"
            axes.plot(devices, best, dash, color=colour, marker="o", markersize=4, gid=label, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = sorted({row["devices"] for row in rows})
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.set_ylabel("speed-up over one device", fontsize=9)
    figure.subplots_adjust(left=0.1, right=0.68)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
