"""Charts of a predicted timeline: a row a device, a bar a piece of work. Plain values in, matplotlib figures out.

Colour tells the kind of work; a light and a dark shade take turns from batch to batch, or from microbatch to
microbatch. All charts of a page have the same time axis, so that they compare by eye.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator

from locallearn.report.styles import LineStyle
from locallearn.report.units import time_text, time_unit

Schedule = Mapping[str, Any]
"""An item of ``schedules`` of a timeline: ``name``, ``devices``, ``makespan`` and ``work`` are used here."""

NAMES = {
    "local": "Local learning",
    "backpropagation": "Backpropagation on one device",
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "data-parallel": "Data parallelism",
}
KINDS = {
    "F": ("forward", "#0072b2"),
    "H": ("heads", "#d55e00"),
    "B": ("backward and update", "#00835f"),
    "G": ("backward of the next module's loss, and update", "#56b4e9"),
    "R": ("all-reduce", "#b0528a"),
}
"""What each kind of work is called, and its colour."""

WIDTH = 11.5  # inches
_LEFT, _RIGHT, _BOTTOM, _TOP = 1.3, 0.15, 0.37, 0.06  # margins [inches]: the same for all, so that the axes line up
_ROWS, _THINNEST, _THICKEST = 260, 3.0, 13.0  # height of all rows and of one [points]
_LABEL = 9.0  # height that the name of a row needs [points]
_BAR = 0.84  # height of a bar [rows]
_LIGHT = 0.52  # share of white in the light shade
_INK, _IDLE, _GRID = "#444444", "#ececee", "#dddddd"
_AT_MOST = 3  # a schedule that takes more times as long as local learning does not decide on the axis


def axis_end(schedules: Sequence[Schedule]) -> float:
    """Where the shared time axis ends [s].

    At the end of the longest schedule that takes at most 3 times as long as the first one; longer ones are cut, so
    that what happens in the others can be seen.
    """
    first = schedules[0]["makespan"]
    return max(s["makespan"] for s in schedules if s["makespan"] <= _AT_MOST * first)


def first_batch_end(timeline: Mapping[str, Any]) -> float | None:
    """When the first schedule with microbatches has done its first batch [s]; None where none has any."""
    ends = []
    for schedule in timeline["schedules"]:
        parts = _parts(schedule, timeline["batches"])
        if parts > 1:
            ends.append(max(end for *_, part, _, end in schedule["work"] if part < parts))
    return min(ends, default=None)


def schedule_figure(schedule: Schedule, end: float, batches: int | None = None) -> Figure:
    """Draw who does what when: a row a device, time from 0 to ``end`` [s].

    Args:
        schedule: what to draw.
        end: where the time axis ends; a longer schedule is cut there and says how long it is.
        batches: shades tell these batches apart; None lets them tell microbatches apart.
    """
    rows = len(schedule["devices"])
    row = float(np.clip(_ROWS / rows, _THINNEST, _THICKEST))
    figure, axes = _axes(rows, row, end)
    _label_rows(axes, schedule["devices"], row)
    makespan = schedule["makespan"]
    _draw(axes, [(device, 0.0, min(makespan, end)) for device in range(rows)], _IDLE, "waiting", height=1.0)
    parts = _parts(schedule, batches) if batches else 1
    bars: dict[tuple[str, int], list[tuple[int, float, float]]] = {}
    for device, kind, _, microbatch, start, stop in schedule["work"]:
        if start < end:
            bars.setdefault((kind, microbatch // parts % 2), []).append((device, start, stop))
    for (kind, shade), spans in sorted(bars.items()):
        _draw(axes, spans, _shades(KINDS[kind][1])[shade], f"{kind}{shade}")
    _separate_modules(axes, schedule["work"], min(makespan, end))
    if batches or makespan <= end:  # of a part of the time everybody sees that it goes on
        _mark_end(axes, makespan, end)
    return figure


def makespan_figure(schedules: Sequence[Schedule]) -> Figure:
    """How long every schedule takes [s], in full: the dark part is what a device computes on average."""
    row = 19.0
    figure, axes = _axes(len(schedules), row, 1.12 * max(s["makespan"] for s in schedules))
    axes.set_yticks(range(len(schedules)), [NAMES[s["name"]].replace(" on one", "\non one") for s in schedules])
    axes.tick_params(axis="y", length=0, labelsize=8)
    dark, light = _shades("#5a626c")
    computing = [s["makespan"] * sum(s["utilisation"]) / len(s["utilisation"]) for s in schedules]
    _draw(axes, [(i, 0.0, s["makespan"]) for i, s in enumerate(schedules)], light, "makespan")
    _draw(axes, [(i, 0.0, busy) for i, busy in enumerate(computing)], dark, "computing")
    for i, schedule in enumerate(schedules):
        text = time_text(schedule["makespan"])
        axes.annotate(text, (schedule["makespan"], i), (4, 0), textcoords="offset points", va="center", fontsize=8)
    return figure


def legend(shown: str, kinds: Sequence[str]) -> list[tuple[str, LineStyle]]:
    """What colours and shades mean.

    Args:
        shown: what shades tell apart: ``"batches"`` or ``"microbatches"``.
        kinds: the kinds of work that occur.
    """
    dark, light = _shades("#5a626c")
    entries = [(label, colour) for kind, (label, colour) in KINDS.items() if kind in kinds]
    entries += [("waiting", "#d4d5d8")]
    entries += [(f"{shown} 1, 3, ...", dark), (f"{shown} 2, 4, ...", light)]
    return [(label, LineStyle(colour, width=6)) for label, colour in entries]


def _axes(rows: int, row: float, end: float) -> tuple[Figure, Axes]:
    height = _BOTTOM + _TOP + rows * row / 72
    figure = Figure(figsize=(WIDTH, height), facecolor="none")  # the page has a ground of its own
    axes = figure.add_subplot(facecolor="none")
    figure.subplots_adjust(
        left=_LEFT / WIDTH, right=1 - _RIGHT / WIDTH, bottom=_BOTTOM / height, top=1 - _TOP / height
    )
    axes.set_xlim(0, end)
    axes.set_ylim(rows - 0.5, -0.5)  # the first device is on top
    unit, size = time_unit(end)
    axes.set_xlabel(f"time [{unit}]", fontsize=8.5, color=_INK, labelpad=1)
    axes.xaxis.set_major_locator(MaxNLocator(12, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / size:g}")
    axes.tick_params(labelsize=8, labelcolor=_INK, color="#bbbbbb", length=3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#bbbbbb")
    axes.grid(axis="x", color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _label_rows(axes: Axes, devices: Sequence[str], row: float) -> None:
    """Name the rows; where they are too thin for that, every second, fourth, ..."""
    step = 1
    while step * row < _LABEL:
        step *= 2
    axes.set_yticks(range(0, len(devices), step), devices[::step])
    axes.tick_params(axis="y", length=0, labelsize=7.5)


def _draw(
    axes: Axes, spans: Sequence[tuple[int, float, float]], colour: str, label: str, height: float = _BAR
) -> None:
    """Draw bars (row, start, end) as one path: tens of thousands of elements of their own would be slow."""
    row, start, end = np.array(spans, dtype=float).T
    top, bottom = row - height / 2, row + height / 2
    corners = np.stack([[start, top], [end, top], [end, bottom], [start, bottom]]).transpose(2, 0, 1)
    path = Path.make_compound_path_from_polys(corners)
    # not add_patch: it would look for the limits, slowly, and they are known
    axes.add_artist(PathPatch(path, facecolor=colour, linewidth=0, label=label, zorder=2))


def _separate_modules(axes: Axes, work: Sequence[Sequence[Any]], end: float) -> None:
    """A line between the groups of one module and those of the next; none where a module has one row."""
    modules = [module for _, module in sorted({(item[0], item[2]) for item in work})]
    if len(set(modules)) < len(modules):
        borders = [row - 0.5 for row in range(1, len(modules)) if modules[row] != modules[row - 1]]
        axes.hlines(borders, 0, end, color="#8a9099", linewidth=0.6, zorder=3)


def _mark_end(axes: Axes, makespan: float, end: float) -> None:
    """Say how long a schedule takes, where it ends or is cut."""
    middle = sum(axes.get_ylim()) / 2
    if makespan > end * (1 + 1e-9):
        box = {"boxstyle": "rarrow,pad=0.25", "facecolor": "white", "edgecolor": "#8a9099", "linewidth": 0.8}
        text = f"goes on to {time_text(makespan)}"
        axes.text(0.985 * end, middle, text, ha="right", va="center", fontsize=8, color="#111111", bbox=box, zorder=4)
        return
    axes.axvline(makespan, color="#111111", linewidth=1.0, zorder=3, clip_on=False)
    if makespan < 0.93 * end:
        axes.annotate(
            time_text(makespan), (makespan, middle), (4, 0), textcoords="offset points", va="center", fontsize=8
        )


def _parts(schedule: Schedule, batches: int) -> int:
    """Microbatches of a batch: 1 where batches are not split."""
    return (1 + max(item[3] for item in schedule["work"])) // batches


def _shades(colour: str) -> tuple[str, str]:
    """The colour, and a light shade of it."""
    light = np.array(to_rgb(colour)) * (1 - _LIGHT) + _LIGHT
    return colour, to_hex(tuple(light))
