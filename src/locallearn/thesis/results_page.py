"""Results as a single HTML file that needs nothing else: no network, no scripts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from locallearn.report.compare import MISSING, Measured, duration, mebibytes, number, percent
from locallearn.report.page import environment
from locallearn.report.svg import to_svg
from locallearn.thesis import results_plots as plots
from locallearn.thesis.results_curves import caption, curves_figure, measured_curves
from locallearn.thesis.results_grids import (
    BANDS,
    LEGEND,
    StudyData,
    curve_grid,
    figure_grid,
    numbers,
    table_grid,
    without_empty_rows,
)
from locallearn.thesis.results_summary import FIGURE, points_of


def render(studies: Sequence[StudyData]) -> str:
    """The report of these studies as the text of an HTML file."""
    sections = [_section(study) for study in studies]
    page = environment(Path(__file__).parent).get_template("results.html.jinja")
    return page.render(legend_text=LEGEND, bands_text=BANDS, run_headings=RUN_HEADINGS, studies=sections)


def _section(study: StudyData) -> dict[str, Any]:
    measured = study["measured"]
    tables = [without_empty_rows(table_grid(table, measured)) for table in study["tables"]]
    return {
        **study,
        "tables": tables,
        "figures": [_figure(study["name"], figure, measured) for figure in study["figures"]],
        "pictures": [_pictures(study["name"], figure, measured) for figure in study["curves"]],
        "curves": _curves(study["name"], measured),
        "runs": [_run(record) for records in measured.values() for record in records],
    }


def _figure(prefix: str, figure: Mapping[str, Any], measured: Measured) -> dict[str, Any]:
    panels = []
    for index, panel in enumerate(figure["panels"], start=1):
        bubbles = [bubble for bubble in (_bubble(point, measured) for point in panel["points"]) if bubble]
        name = f"{prefix}-{figure['name']}-{index}"
        caption = f"{panel['title']}: accuracy [%] against the largest node"
        svg = Markup(to_svg(plots.bubble_figure(bubbles), name, caption)) if bubbles else None
        grid = without_empty_rows(figure_grid(figure, panel, measured))
        panels.append({"caption": caption, "svg": svg, "grid": grid})
    legend = plots.legend(point["method"] for panel in figure["panels"] for point in panel["points"])
    return {"name": figure["name"], "title": figure["title"], "panels": panels, "legend": legend}


def _bubble(point: Mapping[str, Any], measured: Measured) -> plots.Bubble | None:
    records = measured.get(point["cell"], ())
    found = numbers(records, point["field"])
    if not found:
        return None
    macs = records[-1]["macs"]
    return plots.Bubble(
        method=point["method"],
        label=point["label"],
        accuracy=statistics.mean(found),
        spread=statistics.stdev(found) if len(found) > 1 else math.nan,
        largest_node=macs["largest_node"] / 1e6,
        inference=macs["inference"] / macs["e2e"],
        published=None if point["published"] is None else float(point["published"]),
    )


def _pictures(prefix: str, figure: Mapping[str, Any], measured: Measured) -> dict[str, Any]:
    """A figure of curves: each panel with a legend of its own."""
    panels = []
    for index, panel in enumerate(figure["panels"], start=1):
        curves = measured_curves(panel, measured)
        if not curves:
            continue
        text = caption(panel)
        svg = Markup(to_svg(curves_figure(curves, panel["field"]), f"{prefix}-{figure['name']}-{index}", text))
        legend = [(curve.label, curve.style) for curve in curves]
        panels.append({"caption": text, "svg": svg, "legend": legend, "grid": curve_grid(figure, panel, measured)})
    return {"name": figure["name"], "title": figure["title"], "panels": panels}


def pictures(study: StudyData) -> dict[str, tuple[str, str]]:
    """Pictures of a study that stand alone: the title of the grid beside each, its name and its SVG."""
    found = {}
    for figure in study["curves"]:
        for index, panel in enumerate(figure["panels"], start=1):
            curves = measured_curves(panel, study["measured"])
            name = f"{study['name']}-{figure['name']}-{index}"
            if curves:
                text = caption(panel)
                found[text] = name, to_svg(curves_figure(curves, panel["field"], legend=True), name, text)
    return found


def lead_picture(study: StudyData) -> str:
    """The networks of Table 3.4 of a study, and the thesis's, as an SVG that stands alone."""
    bubbles = [bubble for bubble in (_bubble(point, study["measured"]) for point in points_of(study)) if bubble]
    caption = f"{study['name']}: accuracy [%] against the largest node, ours filled and the thesis's hollow"
    return to_svg(plots.bubble_figure(bubbles, alone=True), f"{study['name']}-{FIGURE}", caption)


def _curves(prefix: str, measured: Measured) -> dict[str, Any]:
    """One picture for each data set and model: accuracy over epochs of every cell and seed."""
    groups: dict[str, list[plots.Curve]] = {}
    for records in measured.values():
        for record in records:
            config = record["config"]
            curve = plots.Curve(plots.method_of(config), f"{record['cell']}, seed {record['seed']}", record["curve"])
            groups.setdefault(f"{config['model']} on {config['data']['name']}", []).append(curve)
    pictures = []
    for index, (title, curves) in enumerate(groups.items(), start=1):
        caption = f"{title}: test accuracy of the last layer [%] over epochs"
        svg = Markup(to_svg(plots.curve_figure(curves), f"{prefix}-curves-{index}", caption))
        pictures.append({"caption": caption, "svg": svg})
    methods = [curve.method for curves in groups.values() for curve in curves]
    return {"pictures": pictures, "legend": plots.legend(methods)}


RUN_HEADINGS = (
    "cell", "seed", "last layer [%]", "ensemble [%]", "largest node [million MACs]", "epochs", "training time",
    "images/s", "activations [MiB]", "device memory [MiB]", "hardware", "torch", "data", "digest", "commit",
)  # fmt: skip


def _run(record: Mapping[str, Any]) -> list[str]:
    """A record as a row under ``RUN_HEADINGS``."""
    memory, hardware = record.get("memory") or {}, record.get("hardware") or {}
    return [
        record["cell"],
        str(record["seed"]),
        percent(record["accuracy"]["last_layer"]),
        percent(record["accuracy"]["ensemble"]),
        number(record["macs"]["largest_node"] / 1e6, 3),
        str(record["config"]["train"]["epochs"]),
        duration(record.get("seconds")),
        number(record.get("images_per_second")),
        mebibytes(memory.get("activation_bytes")),
        mebibytes(memory.get("peak_device_bytes")),
        f"{hardware.get('gpu') or hardware.get('cpu') or MISSING}, {hardware.get('threads', MISSING)} threads",
        (record.get("versions") or {}).get("torch") or MISSING,
        record["data_source"],
        record["digest"],
        (record.get("commit") or MISSING)[:12],
    ]
