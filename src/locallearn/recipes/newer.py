"""Recipes of methods of the field since 2023: a method of the package with a head or a loss of theirs.

``auglocal`` alone is the recipe of the digits, ``resnet32-auglocal`` that of CIFAR-10, as for any method. Optimizer
and schedule stay those of the recipe that a variant is made of.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from locallearn.config import RunConfig
from locallearn.nn.backbones import build_backbone


@dataclasses.dataclass(frozen=True)
class Variant:
    """A recipe made of another.

    Attributes:
        method: whose recipe it begins with.
        paper: what it is and where it was published.
        change: makes its configuration of that recipe's.
    """

    method: str
    paper: str
    change: Callable[[RunConfig], RunConfig]


def _with(**objective: object) -> Callable[[RunConfig], RunConfig]:
    """Other settings of the objective; its loss is the method's own where it is not among them."""

    def change(config: RunConfig) -> RunConfig:
        settings: dict[str, object] = {"loss": None, **objective}
        return dataclasses.replace(config, objective=dataclasses.replace(config.objective, **settings))  # type: ignore[arg-type]

    return change


def _set(**settings: object) -> Callable[[RunConfig], RunConfig]:
    """Other settings of the run."""
    return lambda config: dataclasses.replace(_with()(config), **settings)  # type: ignore[arg-type]


def _layerwise(**objective: object) -> Callable[[RunConfig], RunConfig]:
    """The same with every block a module."""

    def change(config: RunConfig) -> RunConfig:
        blocks = len(build_backbone(config.model, 3, 32).blocks)
        return dataclasses.replace(_with(**objective)(config), depth=blocks, cuts=("layerwise",))

    return change


VARIANTS = {
    "auglocal": Variant(
        "dgl",
        "Heads that are copies of the backbone's later layers (AugLocal, Ma et al., 2024).",
        _with(head="auglocal"),
    ),
    "gn-auglocal": Variant("gn-dgl", "The same with width groups.", _with(head="auglocal")),
    "hpff": Variant(
        "dgl",
        "Heads on patches, whose outputs are averaged (HPFF, Su et al., 2024); its pairs of modules are left out.",
        _with(head="patches"),
    ),
    "man": Variant(
        "dgl",
        "Heads behind a moving average of the next module's first block (MAN, Su et al., 2024).",
        _with(head="momentum"),
    ),
    "scpl": Variant(
        "dgl",
        "Supervised contrastive losses at temperature 0.1 (SCPL, Wang et al., 2022).",
        _with(loss="supervised-contrastive", head="0c2f"),
    ),
    "trgl": Variant(
        "dgl",
        "A penalty on how far blocks move the features (TRGL, Karkar et al., 2023), in all modules but the last.",
        _with(loss="transport"),
    ),
    "contsup": Variant(
        "dgl",
        "The image beside every module's features, through an adapter (ContSup, Yu et al., 2023; its mode E).",
        _set(context="image"),
    ),
    "interlocking": Variant(
        "dgl",
        "Losses that reach one module below (interlocking backpropagation, Gomez et al., 2022, N = 2): not local.",
        _set(overlap=1),
    ),
    "drtp": Variant(
        "dgl",
        "Labels by fixed random weights as every block's error (DRTP, Frenkel et al., 2021): a baseline.",
        _layerwise(loss="random-targets", diversity_weight=0.0),
    ),
    "mono-forward": Variant(
        "dgl",
        "Every block a module with one linear layer on its features (Mono-Forward, Gong et al., 2025).",
        _layerwise(head="flat"),
    ),
}
"""Recipes by name."""
