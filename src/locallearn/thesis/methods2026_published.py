"""Each method with its authors' own settings, and GN-DGL with newer heads: ``methods-2026-published``, ``-groups``.

Settings are those of the public code that goes with the papers, for ResNet-32 on CIFAR-10 in 16 modules. Those
train with SGD with Nesterov momentum, rate 0.8 after 10 epochs of warm-up, cosine, batch 1024 and weight decay 1e-4,
which is the thesis's recipe too; what differs is the number of epochs, the loss and the head. Protocols change the
number of epochs of these cells and nothing else; ``--protocol paper`` keeps that as well.

SCPL's authors train ResNet-18 in four modules, with Adam; end to end has a cell with the same settings. No cells have
TRGL (on CIFAR-10 a Swin-Tiny, and wide ResNets of ten blocks) and Mono-Forward (perceptrons, and convolutional
networks of its own), whose papers train no network on CIFAR-10 that is here.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from locallearn.config import OptimizerConfig, RunConfig, ScheduleConfig
from locallearn.plan.cuts import GN_DEPTHS
from locallearn.recipes.named import recipe
from locallearn.thesis.layout import Row, Table, Value
from locallearn.thesis.methods2026 import AS_PUBLISHED, COLUMNS, HEADS, NOTE, configs, cost_row
from locallearn.thesis.methods2026 import name_of as methods2026_name

EPOCHS = 400
"""Epochs of AugLocal's comparison (Ma et al., 2024), of MAN and of HPFF (Su et al., 2024) [epochs]."""

CONTSUP_EPOCHS = 160
"""Epochs of ContSup (Yu et al., 2023), as of the thesis [epochs]. Its mode E with them is the cell of
``methods-2026`` with ``--protocol paper``, which the table shares."""

INFOPRO_OF_MAN: dict[str, Any] = {
    "loss": "infopro",
    "infopro_loss": "cross-entropy",
    "infopro_weights": (5.0, 0.5, 0.0, 0.0),
    "head_width": 128,
}
"""What MAN's and HPFF's scripts put their heads on: InfoPro with cross entropy, weights that fall to 0."""


def _settings() -> dict[str, tuple[str, RunConfig]]:
    """Label and configuration by the end of a cell's name."""
    infopro = {"infopro_loss": "cross-entropy", "infopro_weights": (5.0, 0.05, 0.2, 0.5)}
    man = {**INFOPRO_OF_MAN, "head": "momentum", "head_options": {"of": "2c2f", "momentum": 0.995}}
    patches = {**INFOPRO_OF_MAN, "head": "patches", "head_options": {"of": "2c2f"}}
    auglocal = configs()[AS_PUBLISHED]
    return {
        "e2e": ("End to end", _of("e2e", depth=1)),
        "dgl-k16": ("DGL (2020), as AugLocal's code trains it", _of("dgl", {"head": "mlp-sr"})),
        "predsim-k16": ("predsim (2019), likewise", _of("predsim", {"predsim_weight": 0.99})),
        "infopro-k16": ("InfoPro (2021), likewise", _of("infopro", infopro)),
        "auglocal-k14": ("AugLocal (2024), the last three layers one module", _longer(auglocal, EPOCHS)),
        "man-k16": ("MAN (2024), on InfoPro's loss", _of("dgl", man)),
        "hpff-k16": ("HPFF (2024), on InfoPro's loss, overlapping pairs: not local", _of("dgl", patches, overlap=1)),
        "contsup-r1-k16": ("ContSup (2023), mode R1", _longer(_of("contsup", context="before"), CONTSUP_EPOCHS)),
    }


def _of(method: str, objective: dict[str, Any] | None = None, depth: int = 16, **changes: Any) -> RunConfig:
    base, sgd = recipe(f"resnet32-{method}"), recipe("resnet32-dgl")
    settings = dataclasses.replace(base.objective, **(objective or {}))
    changes |= {"optimizer": sgd.optimizer, "schedule": sgd.schedule, "train": sgd.train}
    return _longer(dataclasses.replace(base, depth=depth, objective=settings, **changes), EPOCHS)


def _longer(config: RunConfig, epochs: int) -> RunConfig:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=epochs))


SCPL_EPOCHS, SCPL_BATCH = 200, 1024
"""Epochs and batch of SCPL's later public code [epochs, images]."""


def _scpl() -> dict[str, tuple[str, RunConfig]]:
    """SCPL on ResNet-18, and end to end with its settings: Adam, a cosine, and crops and flips ("basic").

    Modules end where its stages do. The public code lets the rate fall to 1e-5, has leaky ReLUs, and trains its last
    stage with the contrastive loss, too, before a linear classifier on detached features.
    """
    base = recipe("resnet18-dgl")
    base = dataclasses.replace(
        base,
        optimizer=OptimizerConfig(name="adam", learning_rate=1e-3, weight_decay=0.0),
        schedule=ScheduleConfig(name="cosine", unit="step"),
        train=dataclasses.replace(base.train, epochs=SCPL_EPOCHS, batch_size=SCPL_BATCH),
    )
    contrastive: dict[str, Any] = {
        "loss": "supervised-contrastive",
        "options": {"temperature": 0.1, "projection": 1024},
        "head": "flat",
        "head_options": {"hidden": 512},
    }
    scpl = dataclasses.replace(base.objective, **contrastive)
    return {
        "e2e": ("ResNet-18, end to end, as SCPL's code trains it", dataclasses.replace(base, method="e2e", depth=1)),
        "scpl-k4": (
            "ResNet-18, SCPL (2022), K = 4",
            dataclasses.replace(base, depth=4, cuts=("1.1", "2.1", "3.1"), objective=scpl),
        ),
    }


def name_of(end: str, model: str = "resnet32") -> str:
    """Name of a cell: ``cifar10-resnet32-published-man-k16``."""
    return f"cifar10-{model}-published-{end}"


def published_configs() -> dict[str, RunConfig]:
    """The configuration of every cell by name."""
    found = {name_of(end): config for end, (_, config) in _settings().items()}
    return found | {name_of(end, "resnet18"): config for end, (_, config) in _scpl().items()}


TABLE = Table(
    "methods-2026-published",
    "Methods since 2019 with their authors' own settings, CIFAR-10 (ResNet-32 but where it is named)",
    "Method",
    tuple(COLUMNS),
    (
        *(cost_row(label, name_of(end)) for end, (label, _) in _settings().items()),
        cost_row("ContSup (2023), mode E", methods2026_name("contsup", 16)),
        *(cost_row(label, name_of(end, "resnet18")) for end, (label, _) in _scpl().items()),
    ),
    NOTE,
)
"""The second table: what each method reaches as its authors train it."""


def _grouped_row(width: int, depth: int) -> Row:
    ends = [f"gn-dgl-k{depth}-g{width}", *(f"gn-{short}-k{depth}-g{width}" for short, _ in HEADS.values())]
    cells = [f"cifar10-resnet32-{end}" for end in ends]
    fields = ("ensemble", "training_speedup")
    return Row(f"K = {depth}, G = {width}", tuple(Value(cell, field) for cell in cells for field in fields))


GROUPS_TABLE = Table(
    "methods-2026-groups",
    "GN-DGL with the heads of Table 3.4, and with newer ones, ResNet-32, CIFAR-10",
    "Nodes",
    tuple(f"{heads} {what}" for heads in ("1c2f", *HEADS) for what in ("accuracy [%]", "speed-up")),
    tuple(_grouped_row(width, depth) for width, depths in GN_DEPTHS.items() for depth in depths),
)
"""K x G nodes: the accuracy of the ensemble, as Table 3.4 has it, and the training speed-up."""
