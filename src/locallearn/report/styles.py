"""Which line stands for what: hue tells the module, the dash pattern tells the group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.colors import to_hex

from locallearn.report.records import Node, RunRecord

_DASHES: tuple[tuple[float, ...], ...] = ((), (4, 1.8), (1.2, 1.4), (6, 1.6, 1.2, 1.6))
_RUN_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#4d4d4d")  # Okabe and Ito's
_DARKEST_TO_LIGHTEST = (0.05, 0.84)  # the part of viridis that is seen on white
_GREY = "#8a8a8a"


@dataclass(frozen=True)
class LineStyle:
    """How a line is drawn, in a plot and in the legend beside it."""

    colour: str
    dash: tuple[float, ...] = ()
    """On and off lengths [line widths]; empty for a solid line."""
    width: float = 1.2
    """Line width [points]."""
    opacity: float = 1.0


LAST_LAYER = LineStyle("#111111", width=2.4)
ENSEMBLE = LineStyle("#d55e00", (2.4, 0.9), width=2.2)


def node_styles(nodes: Sequence[Node]) -> dict[Node, LineStyle]:
    """A style for every node: viridis over the modules, dash patterns over the groups, grey for the classifier.

    A single node is the network and looks like its last layer.
    """
    if len(nodes) == 1:
        return {nodes[0]: LAST_LAYER}
    modules = sorted({module for module, _ in nodes if isinstance(module, int)})
    low, high = _DARKEST_TO_LIGHTEST
    spread = max(len(modules) - 1, 1)
    viridis = matplotlib.colormaps["viridis"]
    hues = {m: to_hex(viridis(low + (high - low) * i / spread)) for i, m in enumerate(modules)}
    return {
        (module, group): LineStyle(hues[module] if isinstance(module, int) else _GREY, *_group_look(group))
        for module, group in nodes
    }


def _group_look(group: int) -> tuple[tuple[float, ...], float, float]:
    turn, pattern = divmod(group - 1, len(_DASHES))
    return _DASHES[pattern], 1.2, 0.6**turn


def run_style(index: int) -> LineStyle:
    """The style of one run of several: colours first, then dash patterns."""
    turn, colour = divmod(index, len(_RUN_COLOURS))
    return LineStyle(_RUN_COLOURS[colour], _DASHES[turn % len(_DASHES)], width=1.8)


def node_label(node: Node) -> str:
    """``module 2, group 1``, or ``classifier`` (with its group, if that is not the first)."""
    module, group = node
    if isinstance(module, int):
        return f"module {module}, group {group}"
    return module if group == 1 else f"{module}, group {group}"


def node_legend(record: RunRecord) -> list[tuple[str, LineStyle]]:
    """What colours, dash patterns and strong lines mean in the plots of one run; empty for a single node."""
    if len(record.nodes) < 2:
        return []
    styles = node_styles(record.nodes)
    by_module = {module: styles[module, group].colour for module, group in reversed(record.nodes)}
    groups = sorted({group for _, group in record.nodes})
    entries = [
        (f"module {module}" if isinstance(module, int) else module, LineStyle(colour, width=2))
        for module, colour in reversed(by_module.items())
    ]
    if len(groups) > 1:
        entries += [(f"group {group}", LineStyle("#333333", *_group_look(group))) for group in groups]
    entries.append(("last layer", LAST_LAYER))
    ensemble = any(event.get("ensemble") is not None for event in record.evaluations)
    return [*entries, ("ensemble", ENSEMBLE)] if ensemble or not record.evaluations else entries
