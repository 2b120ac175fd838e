"""All methods at the same protocol, same seeds and same data: ``methods-2026``, two tables and a figure.

A method is a recipe of the package (``dgl``) or one made of it (``locallearn.recipes.newer``). At K = 16 every block
of ResNet-32 is a module. Cells that the thesis's tables have already are shared with them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from locallearn.config import RunConfig
from locallearn.plan.cuts import GN_DEPTHS
from locallearn.recipes.named import recipe
from locallearn.thesis.layout import CurvePanel, Curves, Line, Row, Table, Value

DEPTHS = (4, 16)
"""K of the table of ResNet-32."""

FIGURE_DEPTHS = (2, 4, 8, 16)
"""K of the figure."""

SHARED = {"DGL (2020)": "dgl", "InfoPro (2021)": "infopro"}
"""Methods whose cells are those of the thesis's tables, by their label."""

OURS = {
    "AugLocal (2024)": "auglocal",
    "MAN (2024)": "man",
    "HPFF's patches (2024)": "hpff",
    "ContSup (2023)": "contsup",
    "SCPL (2022)": "scpl",
    "TRGL (2023)": "trgl",
    "predsim (2019)": "predsim",
    "Interlocking (2022), not local": "interlocking",
}
"""Methods that have cells of their own, by their label."""

DRAWN = ("dgl", "infopro", "auglocal", "man", "hpff", "contsup", "scpl")
"""Methods of the figure."""

ON_VIT = {
    "DGL (2020)": "dgl",
    **{label: name for label, name in OURS.items() if name != "predsim"},
}
"""Methods of vit-tiny at K = 4, by their label."""

COLUMNS = {
    "Accuracy [%]": "last_layer",
    "Largest node [million MACs]": "largest_node",
    "Activations [MiB]": "activations",
    "Parameters [thousand]": "parameters",
    "A step in training [ms]": "step",
    "Traffic a step [MiB]": "traffic",
}
"""What the tables show, by its heading."""

NOTE = (
    "Accuracy: of the last layer on the test images. Largest node: multiply-accumulates (MACs) of one image in a "
    "forward pass of the node that computes most, its auxiliary head included; a node is what one device would train "
    "(one group of one module). Activations: the most that a step keeps at once for its backward passes, all modules "
    "in turn in one process. Parameters: of network and heads together. A step: mean time over the training, on the "
    "machine that trained. Traffic: what all nodes send each other in a step if each has a device of its own. K is "
    "the number of modules, G of groups in a module. The number in brackets is that of seeds."
)
"""What the columns are."""


def name_of(method: str, depth: int, model: str = "resnet32") -> str:
    """Name of a cell: ``cifar10-resnet32-auglocal-k16``."""
    return f"cifar10-{model}-{method}-k{depth}"


AS_PUBLISHED = "cifar10-resnet32-auglocal-k14-published"
"""AugLocal with its authors' K = 16: the last d + 1 layers are one module."""

HEADS = {"AugLocal's": ("auglocal", "auglocal"), "MAN's": ("man", "momentum")}
"""Heads that GN-DGL is given, by label: in a cell's name, and as an option."""

GROUPED = {
    f"GN-DGL with {owner} heads, K = {depth}, G = 2": (short, depth)
    for owner, (short, _) in HEADS.items()
    for depth in DEPTHS
}
"""Modules of two groups with the newer heads, by label: the head in a cell's name, and K."""

LAYERWISE = "cifar10-resnet32-mono-forward-k16"
"""Mono-Forward, which is layerwise."""

E2E, VIT_E2E = "cifar10-resnet32-e2e", "cifar10-vit-tiny-e2e"
"""End to end; the first is the thesis's own cell."""


def configs() -> dict[str, RunConfig]:
    """The configuration of every cell on ResNet-32 by name."""
    found = {
        name_of(method, depth): dataclasses.replace(recipe(f"resnet32-{method}"), depth=depth)
        for method in OURS.values()
        for depth in (FIGURE_DEPTHS if method in DRAWN else DEPTHS)
    }
    blocks = ("stem", *(f"{stage}.{block}" for stage in (1, 2, 3) for block in range(5)))
    found[AS_PUBLISHED] = dataclasses.replace(recipe("resnet32-auglocal"), depth=14, cuts=blocks[:13])
    found[LAYERWISE] = recipe("resnet32-mono-forward")
    grouped = grouped_configs()
    found |= {name: grouped[name] for name in (grouped_name(short, depth, 2) for short, depth in GROUPED.values())}
    return found


def grouped_name(head: str, depth: int, width: int) -> str:
    """Name of a cell: ``cifar10-resnet32-gn-auglocal-k4-g2``."""
    return f"cifar10-resnet32-gn-{head}-k{depth}-g{width}"


def grouped_configs() -> dict[str, RunConfig]:
    """GN-DGL with the newer heads at every K and G of Table 3.4."""
    base = recipe("resnet32-gn-auglocal")
    return {
        grouped_name(short, depth, width): dataclasses.replace(
            base, depth=depth, width=(width,), objective=dataclasses.replace(base.objective, head=head)
        )
        for short, head in HEADS.values()
        for width, depths in GN_DEPTHS.items()
        for depth in depths
    }


def vit_configs() -> dict[str, RunConfig]:
    """The configuration of every cell on vit-tiny by name; protocols leave its optimizer as it is."""
    found = {
        name_of(method, 4, "vit-tiny"): dataclasses.replace(recipe(f"vit-tiny-{method}"), depth=4)
        for method in ON_VIT.values()
    }
    return {VIT_E2E: recipe("vit-tiny-e2e"), **found}


def cost_row(label: str, cell: str) -> Row:
    """A cell's accuracy, and what it costs."""
    return Row(label, tuple(Value(cell, field) for field in COLUMNS.values()))


def _resnet_rows() -> Iterator[Row]:
    yield cost_row("End to end", E2E)
    for depth in DEPTHS:
        for label, method in {**SHARED, **OURS}.items():
            yield cost_row(f"{label}, K = {depth}", name_of(method, depth))
    yield cost_row("Mono-Forward (2025), K = 16", LAYERWISE)
    yield cost_row("AugLocal, the last three layers one module, K = 14", AS_PUBLISHED)
    for label, (short, depth) in GROUPED.items():
        yield cost_row(label, grouped_name(short, depth, 2))


def _line(label: str, method: str) -> Line:
    cells = tuple((depth, name_of(method, depth)) for depth in FIGURE_DEPTHS)
    return Line(cells[0][1], label, cells)


TABLE = Table(
    "methods-2026",
    "Methods since 2019 on ResNet-32, CIFAR-10",
    "Method",
    tuple(COLUMNS),
    tuple(_resnet_rows()),
    NOTE,
)
"""Test accuracy of the last layer, and what every method costs."""

VIT_TABLE = Table(
    "methods-2026-vit",
    "Methods since 2019 on vit-tiny, CIFAR-10, K = 4",
    "Method",
    tuple(COLUMNS),
    (
        cost_row("End to end", VIT_E2E),
        *(cost_row(label, name_of(method, 4, "vit-tiny")) for label, method in ON_VIT.items()),
    ),
    NOTE,
)
"""The same of a vision transformer."""

FIGURE = Curves(
    "methods-2026-depth",
    "Number of modules against accuracy",
    (
        CurvePanel(
            "ResNet-32, CIFAR-10",
            "modules",
            (
                Line(E2E, "End to end (K = 1)", tuple((depth, E2E) for depth in FIGURE_DEPTHS)),
                *(_line(label, method) for label, method in {**SHARED, **OURS}.items() if method in DRAWN),
            ),
        ),
    ),
)
"""K against accuracy, with the spread over seeds; end to end, which has no K, is a level."""
