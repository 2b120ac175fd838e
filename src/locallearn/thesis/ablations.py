"""Ablations of ResNet-32 with K = 4: GN-DGL with G = 2, and InfoPro.

One setting is changed at a time: where the thesis is silent, or code that its experiments grew out of differs, and
what its claims rest on.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from locallearn.config import RunConfig
from locallearn.recipes.named import recipe
from locallearn.thesis.layout import Row, Table, Value

LAST_HEADS = "last_heads"
"""Accuracy of the averaged heads of module K, which that code calls the last layer."""

_GROUPED = "cifar10-resnet32-gn-dgl-k4-g2"
_INFOPRO = "cifar10-resnet32-infopro-k4"
_VERSIONS: dict[str, tuple[str, dict[str, Any]]] = {
    f"{_GROUPED}-classifier-1c2f": ("its classifier has the head 1c2f", {"classifier_head": "1c2f"}),
    f"{_GROUPED}-variance-module": ("initial variance by all groups' channels", {"initial_variance": "module"}),
    f"{_GROUPED}-diversity-1": (
        "diversity penalty not detached (as twice the weight)",
        {"diversity_weight": 1.0},
    ),
    f"{_GROUPED}-all-three": (
        "these three together",
        {"classifier_head": "1c2f", "initial_variance": "module", "diversity_weight": 1.0},
    ),
    f"{_GROUPED}-temperature-1": ("diversity penalty at temperature 1", {"diversity_temperature": 1.0}),
    f"{_GROUPED}-diversity-0": ("no diversity penalty", {"diversity_weight": 0.0}),
    f"{_GROUPED}-naive": ("naive splitting: neither", {"diversity_weight": 0.0, "stop_gradient": False}),
    f"{_INFOPRO}-cross-entropy": ("cross entropy for the contrastive loss", {"infopro_loss": "cross-entropy"}),
    f"{_INFOPRO}-weights-1-1": ("equal weights of both terms", {"infopro_weights": (1.0, 1.0, 1.0, 1.0)}),
}
"""Cell: what is changed in words, and as settings."""


def configs() -> dict[str, RunConfig]:
    """The configuration of every version by the name of its cell."""
    return {name: _changed(name, settings) for name, (_, settings) in _VERSIONS.items()}


def _changed(name: str, settings: dict[str, Any]) -> RunConfig:
    base = recipe("resnet32-infopro" if name.startswith(_INFOPRO) else "resnet32-gn-dgl")
    width = (1,) if name.startswith(_INFOPRO) else (2,)
    of_run = {key: value for key, value in settings.items() if key == "initial_variance"}
    of_objective = {key: value for key, value in settings.items() if key not in of_run}
    objective = dataclasses.replace(base.objective, **of_objective)
    return dataclasses.replace(base, depth=4, width=width, objective=objective, **of_run)


def _row(name: str, label: str) -> Row:
    grouped = name.startswith(_GROUPED)
    heads = Value(name, LAST_HEADS) if grouped else None
    return Row(label, (Value(name, "last_layer"), heads, Value(name, "ensemble") if grouped else None))


TABLE = Table(
    "ablations",
    "GN-DGL with K = 4, G = 2 and InfoPro with K = 4 on ResNet-32, one setting changed at a time [%]",
    "Version",
    ("last layer", "heads of module 4", "ensemble"),
    (
        _row(_GROUPED, "GN-DGL"),
        *(_row(name, words) for name, (words, _) in _VERSIONS.items() if name.startswith(_GROUPED)),
        _row(_INFOPRO, "InfoPro"),
        *(_row(name, f"InfoPro, {words}") for name, (words, _) in _VERSIONS.items() if name.startswith(_INFOPRO)),
    ),
)
"""What they reach."""
