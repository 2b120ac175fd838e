"""The pictures of a report, and the same as files for papers: SVG and PDF."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from locallearn.files import make_folder, replacing
from locallearn.report import depth, plots
from locallearn.report.records import RunRecord

_MOST_ENTRIES = 20
"""A legend of more lines is larger than the picture."""


class Drawn(NamedTuple):
    """A figure and what it shows, with the unit."""

    caption: str
    figure: Figure


def of_run(record: RunRecord) -> list[Drawn]:
    """The figures of one run; none that would be empty."""
    by = plots.accuracy_name(record)
    figures: list[tuple[str, Callable[[RunRecord], Figure]]] = []
    if record.evaluations:
        figures.append((f"{by} [%]", plots.test_accuracy_figure))
    if record.train:
        figures.append(("Training loss", plots.loss_figure))
        figures.append(("Training accuracy [%]", plots.training_accuracy_figure))
    if len(record.nodes) > 1 and plots.final_nodes(record):
        when = "Final" if record.summary else "Latest"
        figures.append((f"{when} {plots.accuracy_name(record, within=True)} of each node [%]", plots.heatmap_figure))
    if record.train:
        figures.append(("Learning rate", plots.learning_rate_figure))
        figures.append(("Training speed [images/s]", plots.throughput_figure))
    return _filled([(caption, partial(draw, record)) for caption, draw in [*figures, *depth.run_figures(record)]])


def of_comparison(records: Sequence[RunRecord]) -> list[Drawn]:
    """The figures that put several runs beside each other; none that would be empty."""
    names = {plots.accuracy_name(record) for record in records}
    by = names.pop() if len(names) == 1 else "Accuracy, by classifier or neighbours,"
    figures: list[tuple[str, Callable[[Sequence[RunRecord]], Figure]]] = [
        (f"{by} of the last layer [%] over epochs", plots.last_layer_by_epoch_figure),
        (f"{by} of the last layer [%] over training time", plots.last_layer_by_time_figure),
    ]
    drawn = [*figures, *depth.comparison_figures(records)]
    return _filled([(caption, partial(draw, records)) for caption, draw in drawn])


def _filled(figures: Sequence[tuple[str, Callable[[], Figure]]]) -> list[Drawn]:
    """The figures in which something can be seen."""
    made = [Drawn(caption, draw()) for caption, draw in figures]
    return [one for one in made if _shows_something(one.figure)]


def _shows_something(figure: Figure) -> bool:
    for axes in figure.axes:
        lines = [np.asarray(line.get_ydata(), dtype=float) for line in axes.lines]
        areas = [np.ma.filled(np.ma.asarray(mesh.get_array(), dtype=float), np.nan) for mesh in axes.collections]
        if any(np.isfinite(values).any() for values in [*lines, *areas]):
            return True
    return False


def save(records: Sequence[RunRecord], folder: Path) -> list[Path]:
    """Write every figure of a report of these runs as SVG and PDF, each with its axis labelled and a legend.

    Args:
        records: the runs.
        folder: where the files go; those of an earlier report are replaced.

    Returns:
        The files: ``compare-...`` of several runs, and those of each run after its name.
    """
    make_folder(folder)
    sets = [("compare", of_comparison(records))] if len(records) > 1 else []
    sets += [(record.name, of_run(record)) for record in records]
    paths = []
    for name, drawn in sets:
        for caption, figure in drawn:
            _label(figure, caption)
            stem = _file_name(f"{name}-{caption}")
            for ending in ("svg", "pdf"):
                paths.append(folder / f"{stem}.{ending}")
                with replacing(paths[-1]) as temporary, matplotlib.rc_context({"svg.hashsalt": stem}):
                    dated = {"Date": None} if ending == "svg" else {"CreationDate": None}
                    figure.savefig(temporary, format=ending, bbox_inches="tight", metadata=dated)
    return paths


def _label(figure: Figure, caption: str) -> None:
    """What the page says beside a picture: the quantity at its axis, and which line is which."""
    axes = figure.axes[0]
    if not axes.collections:
        axes.set_ylabel(caption.partition(":")[0], fontsize=9)
    handles, labels = axes.get_legend_handles_labels()
    if 1 < len(handles) <= _MOST_ENTRIES:
        axes.legend(handles, labels, fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text.lower()).strip("-")[:80].rstrip("-")
