"""``locallearn cost [RECIPE]``: what every node computes, holds and sends, before anything runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.table import Table

from locallearn.cli.console import Terminal, say
from locallearn.cli.early import check_names, working
from locallearn.cli.options import check_at_least, check_ending, check_links, parse
from locallearn.cli.own_model import names_own, own_network, refuse_changed
from locallearn.config import ContextName, ImageSize, ObjectiveConfig, RunConfig
from locallearn.errors import UsageError
from locallearn.plan.clock import Span, picture
from locallearn.plan.schedule import NodeWork
from locallearn.recipes.named import recipe
from locallearn.report.units import time_text

if TYPE_CHECKING:
    from locallearn.costs.nodes import Cost


DESCRIPTION = """Count what every node computes, holds and sends (docs/cost.md), and predict times; trains nothing.
A recipe may come first (`locallearn cost resnet32-auglocal`): then defaults are its."""

_IMAGES = {"cifar10": (3, 32), "digits": (1, 8)}
"""Channels and side [pixels] of the images of recipes, which are of 10 classes."""


@dataclass(frozen=True)
class CostOptions:
    """Options of ``cost``."""

    model: str = "resnet32"
    """Backbone, for example resnet32, resnet32x2, vgg6a, vit-tiny; or package.module:function, a function of your own
    that gives a pair: your model, or a network of ll.split, and a batch; or timm:NAME or hf:CONFIG."""
    method: str = "gn-dgl"
    """How the network is cut and trained, for example e2e, dgl, gn-dgl or single-thread."""
    depth: int = 1
    """K: depth modules that the backbone is cut into."""
    width: tuple[int, ...] = (1,)
    """G: width groups of every module, or one number for each module."""
    cuts: tuple[str, ...] = ("auto",)
    """Where modules end: auto (the thesis's table, else balanced), balanced, or the names of blocks."""
    context: ContextName = "none"
    """What a module is given beside features: none, image or before."""
    overlap: int = 0
    """With 1 a module's loss also reaches into the module before it."""
    patch_size: int | None = None
    """Side of the patches of a vision transformer [pixels]; by default the model's own."""
    objective: Annotated[ObjectiveConfig, tyro.conf.arg(name="")] = field(default_factory=ObjectiveConfig)
    image_size: ImageSize = 32
    """Side of an image, or height and width [pixels]."""
    channels: int = 3
    """Channels of an image."""
    classes: int = 10
    """Number of classes."""
    batch_size: int = 128
    """Images a step [images]; bytes are for one step."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """fp32, or bf16 autocast; decides the size of activations and features."""
    device_flops: float | None = None
    """Predict times: operations a second that one device reaches (a multiply-accumulate is two)."""
    bandwidth: float | None = None
    """What one device sends, with --device-flops [bytes/s]; no limit by default."""
    latency: float | None = None
    """From the last byte sent to its arrival, with --device-flops [s]; 0 by default."""
    batches: int = 8
    """Batches of the predicted run."""
    microbatches: int | None = None
    """Parts of a batch of GPipe and 1F1B; by default 4 a module, at most one an image."""
    in_flight: int = 2
    """Batches that a module may have begun and the next one not yet taken forward [batches]."""
    json: bool = False
    """Print JSON."""
    report: str | None = None
    """Also write tables and charts to this HTML file, in place of an old one."""

    def __post_init__(self) -> None:
        check_at_least(self, image_size=4, channels=1, classes=2)
        check_ending("--report", self.report, ".html", ".htm")
        check_links(self.device_flops, bandwidth=self.bandwidth, latency=self.latency)


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    name = arguments[0] if arguments and not arguments[0].startswith("-") else None
    config = RunConfig() if name is None else recipe(name)
    # the objective's settings have the names that they have in `train`, with or without the prefix
    rest = [argument.replace("--objective.", "--", 1) for argument in arguments[name is not None :]]
    default = CostOptions() if name is None else _of_recipe(config)
    options = parse(CostOptions, rest, f"cost {name}" if name else "cost", DESCRIPTION, default)
    if name and names_own(options.model):
        raise UsageError(f"cost: a model of your own has no recipe; leave {name} out")
    with working("importing torch and counting", options.json) as tell:
        found = _own(options) if names_own(options.model) else _built(options, config)
        from locallearn.costs.timeline import Machine, timeline

        values = found.to_json()
        if options.device_flops is not None:
            tell("predicting times")
            machine = Machine(options.device_flops, options.bandwidth, options.latency or 0.0)
            values["timeline"] = timeline(found, machine, options.batches, options.microbatches, options.in_flight)
        if options.report:
            tell("importing matplotlib and drawing")
            _write_report(options, values)
    if options.json:
        print(json.dumps(values))
    else:
        _show(found, values)
        if options.report:
            say(options.report)
    return 0


def _of_recipe(config: RunConfig) -> CostOptions:
    """Options whose defaults are a recipe's."""
    kept = {field.name for field in dataclasses.fields(CostOptions)} & {f.name for f in dataclasses.fields(config)}
    channels, size = _IMAGES[config.data.name]
    return CostOptions(
        **{field: getattr(config, field) for field in kept},
        channels=channels,
        image_size=size,
        batch_size=config.train.batch_size,
        precision="bf16" if config.train.precision == "bf16" else "fp32",
    )


def _built(options: CostOptions, config: RunConfig) -> Cost:
    """Of a backbone of the package, with all else as it is in a configuration."""
    config = dataclasses.replace(
        config,
        method=options.method,
        model=options.model,
        depth=options.depth,
        width=options.width,
        cuts=options.cuts,
        context=options.context,
        overlap=options.overlap,
        patch_size=options.patch_size,
        objective=options.objective,
    )
    check_names(config)
    from locallearn.core.image_shape import ImageShape
    from locallearn.costs.nodes import cost

    image = ImageShape(options.channels, options.image_size, options.classes)
    return cost(config, image, batch_size=options.batch_size, precision=options.precision)


def _own(options: CostOptions) -> Cost:
    """Of a model of the user's own."""
    refuse_changed(options, "method", "context", "overlap", "patch_size")
    refuse_changed(options, "image_size", "channels", "classes", "batch_size")
    from locallearn.costs.nodes import cost

    network, batch = own_network(options.model, options.depth, options.cuts, options.width, options.objective)
    return cost(network, batch, precision=None if options.precision == "fp32" else options.precision)


def _write_report(options: CostOptions, values: dict[str, Any]) -> None:
    from locallearn.report.cost_page import write_cost_page  # imports matplotlib, which the rest does without

    settings = dataclasses.asdict(options)
    settings |= {f"objective.{name}": value for name, value in settings.pop("objective").items()}
    hidden = {"json", "report"} | ({"batches", "microbatches", "in_flight"} if "timeline" not in values else set())
    shown = {name.replace("_", "-"): value for name, value in settings.items() if name not in hidden}
    write_cost_page(values, shown, Path(str(options.report)))


def _show(found: Cost, values: dict[str, Any]) -> None:
    console = Terminal()
    console.print(_node_table(found))
    for name, what in (
        ("e2e_macs", "multiply-accumulates of the end-to-end network"),
        ("max_node_macs", "multiply-accumulates of the largest node"),
        ("inference_macs", "multiply-accumulates of the split network without auxiliary heads"),
    ):
        console.print(f"{values[name]:>13,} {what}")
    for name, what in (("training_speedup", "training"), ("inference_speedup", "inference")):
        console.print(f"{values[name]:>13.3f} {what} speed-up")
    if "followed_bytes" in values:
        console.print(
            f"{max(values['followed_bytes']):>13,} bytes of weights at most that a step sends back to a node"
        )
    if "returned_bytes" in values:
        most = max(values["returned_bytes"])
        console.print(f"{most:>13,} bytes of gradients at most that a step gives back to a module")
    if "context_bytes" in values:
        console.print(f"{max(values['context_bytes']):>13,} bytes of context at most that go with a module's output")
    for schedule in values.get("timeline", {}).get("schedules", ()):
        _show_schedule(console, schedule, values["timeline"]["microbatches"])
    if "timeline" in values:
        console.print(_time_table(values["timeline"]))


def _node_table(found: Cost) -> Table:
    title = f"Each node; multiply-accumulates of 1 image, bytes of {found.batch_size} images in {found.precision}"
    table = Table(title=title)
    for column in ("module", "groups", "MACs", "parameters", "activations [MiB]", "output [MiB]"):
        table.add_column(column, justify="right")
    for k, module in enumerate(found.modules, start=1):
        table.add_row(
            str(k),
            str(module.groups),
            f"{module.macs:,}",
            f"{module.parameters:,}",
            f"{module.activation_bytes / 2**20:.2f}",
            f"{module.output_bytes / 2**20:.2f}",
        )
    return table


def _show_schedule(console: Terminal, schedule: dict[str, Any], microbatches: int) -> None:
    """Draw a schedule; of pipelines the first batch alone: the others look the same and microbatches are small."""
    spans = [Span(NodeWork(*item[:4]), *item[4:]) for item in schedule["work"]]
    what = schedule["name"]
    if what in ("gpipe", "1f1b"):
        spans = [span for span in spans if span.work.microbatch < microbatches]
        what += " (first batch)"
    columns = max(20, min(100, console.width - 4 - max(map(len, schedule["devices"]))))
    seconds = max(span.end for span in spans) / columns
    console.print(f"\n{what}: 1 column is {time_text(seconds)}", highlight=False)
    console.print(picture(spans, columns, schedule["devices"]), highlight=False, markup=False)


def _time_table(values: dict[str, Any]) -> Table:
    title = f"{values['batches']} batches of {values['batch_size']}, {values['microbatches']} microbatches"
    table = Table(title=title, caption="F forward, H heads, B backward and update, R all-reduce")
    table.add_column("")
    for column in ("devices", "time", "speed-up", "busy", "sent [MiB]"):
        table.add_column(column, justify="right")
    for schedule in values["schedules"]:
        used = schedule["utilisation"]
        table.add_row(
            schedule["name"],
            str(len(used)),
            time_text(schedule["makespan"]),
            f"{schedule['speedup']:.2f}",
            f"{100 * sum(used) / len(used):.0f} %",
            f"{schedule['wire_bytes'] / 2**20:.1f}",
        )
    return table
