"""The sweep that chose rate and weight decay of protocol ``standard``.

It trains end to end alone, so that no local method is favoured, and is scored on training images that are held out,
so that the test images stay unseen.
"""

from __future__ import annotations

import dataclasses

from locallearn.config import OptimizerConfig, RunConfig
from locallearn.recipes.named import recipe
from locallearn.thesis.layout import Row, Table, Value

RATES = (0.1, 0.2, 0.4)
DECAYS = (1e-4, 5e-4)

FIELD = "held_out"
"""Accuracy of the last layer on the last ``HELD_OUT`` training images."""

EPOCHS = 4
IMAGES = 20_000
"""The first so many training images are trained on."""
HELD_OUT = 5_000


def name_of(rate: float, decay: float) -> str:
    """Name of a cell: ``cifar10-resnet32-e2e-rate0.2-decay0.0005``."""
    return f"cifar10-resnet32-e2e-rate{rate:g}-decay{decay:g}"


def configs() -> dict[str, RunConfig]:
    """The configuration of every cell by name; protocols leave its optimizer as it is."""
    base = recipe("resnet32-e2e")
    return {
        name_of(rate, decay): dataclasses.replace(
            base, optimizer=OptimizerConfig(learning_rate=rate, weight_decay=decay)
        )
        for rate in RATES
        for decay in DECAYS
    }


TABLE = Table(
    "sweep",
    f"ResNet-32 end to end on {IMAGES:,} training images: accuracy on {HELD_OUT:,} others [%]",
    "Weight decay",
    tuple(f"rate {rate:g}" for rate in RATES),
    tuple(Row(f"{decay:g}", tuple(Value(name_of(rate, decay), FIELD) for rate in RATES)) for decay in DECAYS),
)
"""What the sweep found."""
