"""All methods at the same protocol, same seeds and same data: the table ``methods-2026``.

A method is a recipe of the package (``dgl``) or one made of it (``locallearn.recipes.newer``). At K = 16
every block of ResNet-32 is a module. Cells that the thesis's tables have already are shared with them.
"""

from __future__ import annotations

import dataclasses

from locallearn.config import RunConfig
from locallearn.recipes.named import recipe
from locallearn.thesis.layout import Row, Table, Value

DEPTHS = (4, 16)
"""K of the table's columns."""

SHARED = {"DGL (2020)": "dgl", "InfoPro (2021)": "infopro"}
"""Methods whose cells are those of the thesis's tables, by their label."""

OURS = {
    "AugLocal (2024)": "auglocal",
    "MAN (2024)": "man",
    "HPFF's patches (2024)": "hpff",
    "SCPL (2022)": "scpl",
    "TRGL (2023)": "trgl",
    "predsim (2019)": "predsim",
}
"""Methods that have cells of their own, by their label."""

FIELD = "last_layer"


def name_of(method: str, depth: int) -> str:
    """Name of a cell: ``cifar10-resnet32-auglocal-k16``."""
    return f"cifar10-resnet32-{method}-k{depth}"


AS_PUBLISHED = "cifar10-resnet32-auglocal-k14-published"
"""AugLocal with its authors' K = 16: the last d + 1 layers are one module."""

GROUPED = "cifar10-resnet32-gn-auglocal-k4-g2"
"""Four modules of two groups with AugLocal's heads."""

LAYERWISE = "cifar10-resnet32-mono-forward-k16"
"""Mono-Forward, which is layerwise."""


def configs() -> dict[str, RunConfig]:
    """The configuration of every cell by name."""
    found = {
        name_of(method, depth): dataclasses.replace(recipe(f"resnet32-{method}"), depth=depth)
        for method in OURS.values()
        for depth in DEPTHS
    }
    blocks = ("stem", *(f"{stage}.{block}" for stage in (1, 2, 3) for block in range(5)))
    published = dataclasses.replace(recipe("resnet32-auglocal"), depth=14, cuts=blocks[:13])
    alone = {
        AS_PUBLISHED: published,
        GROUPED: recipe("resnet32-gn-auglocal"),
        LAYERWISE: recipe("resnet32-mono-forward"),
    }
    return found | alone


def _row(label: str, method: str) -> Row:
    accuracies = (Value(name_of(method, depth), FIELD) for depth in DEPTHS)
    speedups = (Value(name_of(method, depth), "training_speedup") for depth in DEPTHS)
    return Row(label, (*accuracies, *speedups))


def _single(label: str, cell: str, column: int) -> Row:
    """A row of one cell, in the column of its number of nodes."""
    values: list[Value | None] = [None] * (2 * len(DEPTHS))
    values[column], values[column + len(DEPTHS)] = Value(cell, FIELD), Value(cell, "training_speedup")
    return Row(label, tuple(values))


TABLE = Table(
    "methods-2026",
    "Methods since 2019 on ResNet-32, CIFAR-10: test accuracy of the last layer [%] and training speed-up",
    "Method",
    (*(f"K = {k}" for k in DEPTHS), *(f"Speed-up, K = {k}" for k in DEPTHS)),
    (
        _single("End to end", "cifar10-resnet32-e2e", 0),
        *(_row(label, method) for label, method in {**SHARED, **OURS}.items()),
        _single("Mono-Forward (2025)", LAYERWISE, 1),
        _single("AugLocal, the last three layers one module (K = 14)", AS_PUBLISHED, 1),
        _single("GN-DGL with AugLocal's heads, K = 4, G = 2", GROUPED, 0),
    ),
)
"""Accuracy and training speed-up of every method. Activation memory, parameters and traffic of a cell are counted by
``locallearn cost``."""
