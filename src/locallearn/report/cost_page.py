"""What a run costs, and its predicted timeline, as a single HTML file that needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from locallearn.report import timeline_plots as plots
from locallearn.report.compare import mebibytes, number
from locallearn.report.page import Picture, environment, write_page
from locallearn.report.svg import to_svg
from locallearn.report.units import time_text

Table = tuple[list[str], list[list[str]]]
"""Headings, and rows of texts."""


def write_cost_page(values: Mapping[str, Any], settings: Mapping[str, object], output: Path) -> Path:
    """Write the page and return ``output``.

    Args:
        values: what ``locallearn cost --json`` prints; the charts need its ``timeline``.
        settings: names and values of what was asked for; None and an empty tuple are left out.
        output: HTML file to write, in place of an old one.

    Raises:
        UsageError: ``output`` cannot be written.
    """
    return write_page(render(values, settings), output)


def render(values: Mapping[str, Any], settings: Mapping[str, object]) -> str:
    """The page as text; arguments as for ``write_cost_page``."""
    return (
        environment()
        .get_template("cost.html.jinja")
        .render(
            title="Cost",
            settings=[(name, _text(value)) for name, value in settings.items() if value not in (None, ())],
            totals=_totals(values),
            nodes=_node_table(values["nodes"]),
            timeline=_timeline(values["timeline"]) if "timeline" in values else None,
        )
    )


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _totals(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    names = {
        "e2e_macs": "MACs, end-to-end network",
        "max_node_macs": "MACs, largest node",
        "inference_macs": "MACs, inference",
    }
    speedups = {"training_speedup": "training speed-up", "inference_speedup": "inference speed-up"}
    counts = [(text, number(values[name])) for name, text in names.items()]
    return counts + [(text, number(values[name], 3)) for name, text in speedups.items()]


def _node_table(nodes: Sequence[Mapping[str, Any]]) -> Table:
    """A row for the groups of a module that cost the same, as they all do."""
    headings = ["module", "groups", "MACs", "parameters", "activations [MiB]", "output [MiB]"]
    counted = ("macs", "parameters", "activation_bytes", "output_bytes")
    rows = []
    for (module, *counts), same in groupby(nodes, key=lambda node: [node["module"], *map(node.get, counted)]):
        macs, parameters, activations, output = counts
        sizes = [mebibytes(activations), mebibytes(output)]
        rows.append([str(module), str(len(list(same))), number(macs), number(parameters), *sizes])
    return headings, rows


def _timeline(timeline: Mapping[str, Any]) -> dict[str, Any]:
    """The table of schedules and the charts: the whole run, and its start with microbatches told apart."""
    schedules = timeline["schedules"]
    end, start = plots.axis_end(schedules), plots.first_batch_end(timeline)
    totals = Picture(
        "Predicted time; dark: a device computes (on average), light: it waits or reduces",
        _svg(plots.makespan_figure(schedules), "makespan", "Predicted time of every schedule"),
        _LEAST_WIDTH,
    )
    batches = f"{timeline['batches']} batch{'es' * (timeline['batches'] > 1)} of {timeline['batch_size']} images"
    charts = [_chart(s, plots.schedule_figure(s, end, timeline["batches"]), "run", batches) for s in schedules]
    closer = []
    if start is not None and 2 * start < end:
        shown = f"the first {time_text(start)}"
        closer = [_chart(s, plots.schedule_figure(s, start), "start", shown) for s in schedules]
    kinds = sorted({item[1] for schedule in schedules for item in schedule["work"]})
    return {
        "batches": batches,
        "microbatches": timeline["microbatches"],
        "table": _schedule_table(schedules),
        "totals": [totals],
        "charts": charts,
        "legend": plots.legend("batches", kinds),
        "cut": [plots.NAMES[s["name"]] for s in schedules if s["makespan"] > end],
        "closer": closer,
        "closer_legend": plots.legend("microbatches", kinds),
        "start": None if start is None else time_text(start),
    }


_LEAST_WIDTH = 5.5 * plots.WIDTH


def _chart(schedule: Mapping[str, Any], figure: Figure, prefix: str, what: str) -> Picture:
    name = plots.NAMES[schedule["name"]]
    devices = len(schedule["devices"])
    caption = f"{name}: {devices} device{'s' * (devices > 1)}, {time_text(schedule['makespan'])}"
    return Picture(caption, _svg(figure, f"{prefix}-{schedule['name']}", f"{caption}; {what}"), _LEAST_WIDTH)


def _schedule_table(schedules: Sequence[Mapping[str, Any]]) -> Table:
    headings = ["schedule", "devices", "time", "speed-up", "busy [%]", "least busy [%]", "sent [MiB]"]
    rows = []
    for schedule in schedules:
        used = schedule["utilisation"]
        rows.append(
            [
                plots.NAMES[schedule["name"]],
                str(len(used)),
                time_text(schedule["makespan"]),
                number(schedule["speedup"], 2),
                number(100 * sum(used) / len(used), 1),
                number(100 * min(used), 1),
                mebibytes(schedule["wire_bytes"]),
            ]
        )
    return headings, rows


def _svg(figure: Figure, prefix: str, title: str) -> Markup:
    """The figure with paths to a hundredth of a point: more is not seen, and many bars make a large file."""
    svg = to_svg(figure, prefix, title)
    return Markup(re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg))
