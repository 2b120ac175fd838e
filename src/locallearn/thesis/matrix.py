"""The cells of the thesis's Chapters 3 and 4: every network that its tables and figures need, each under one name.

A cell belongs to no table: Tables 3.4, 3.5 and 3.6 and Fig. 3.5 share theirs. Its configuration is the thesis's own
recipe; a protocol (``locallearn.thesis.protocols``) decides how long and with which optimizer it trains.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

from locallearn.config import AugmentConfig, ObjectiveConfig, RunConfig
from locallearn.core.image_shape import ImageShape
from locallearn.plan.cuts import GN_DEPTHS
from locallearn.recipes.named import recipe
from locallearn.thesis import ablations, chapter4, methods2026, methods2026_published, sweep

IMAGES = {
    "cifar10": ImageShape(3, 32, 10),
    "cifar100": ImageShape(3, 32, 100),
    "imagenet32": ImageShape(3, 32, 1000),
    "digits": ImageShape(1, 8, 10),
}
"""What the networks of each data set are built for."""

AUGMENT = {
    "cifar10": AugmentConfig(crop_padding=4, padding_mode="reflect", flip=0.5),
    "cifar100": AugmentConfig(crop_padding=4, padding_mode="reflect", flip=0.5),
    "imagenet32": AugmentConfig(crop_padding=4, padding_mode="constant", flip=0.5),
    "digits": AugmentConfig(crop_padding=1, padding_mode="constant", flip=0.0),
}
"""The data sets' own customs, written out: a cell's digest must be known before its data are read."""

DEPTHS = (2, 4, 8, 16)
"""K of DGL and InfoPro."""

VGG_GROUPS = (2, 4, 6, 8, 10)
"""G of Table 3.1; the first three convolutions have (G, 2G, G) groups."""


@dataclass(frozen=True)
class Cell:
    """One network of a table or figure.

    Attributes:
        name: data set, model and method, with K and G where the method has them.
        config: the thesis's recipe, seed 0.
        own_optimizer: whether protocols leave its optimizer as it is.
        own_training: whether they leave all but the number of epochs as it is.
    """

    name: str
    config: RunConfig
    own_optimizer: bool = False
    own_training: bool = False

    @property
    def image(self) -> ImageShape:
        """What the network is built for."""
        return IMAGES[self.config.data.name]


def resnet_name(data: str, model: str, method: str, depth: int = 1, width: int = 1) -> str:
    """Name of a cell of Sec. 3.3.2: ``cifar10-resnet32-gn-dgl-k2-g2``."""
    k = f"-k{depth}" if method in ("dgl", "infopro", "gn-dgl") else ""
    g = f"-g{width}" if method in ("gn-dgl", "single-thread") else ""
    return f"{data}-{model}-{method}{k}{g}"


def vgg_name(model: str, split: int = 1, extra: str = "") -> str:
    """Name of a cell of Sec. 3.3.1: ``cifar10-vgg6a-gn-dgl-6group`` (``split`` 1 is DGL)."""
    return f"cifar10-{model}-dgl" if split == 1 else f"cifar10-{model}-gn-dgl-{split}group{extra}"


def resnet_points(infopro: bool = True) -> list[tuple[str, int, int]]:
    """(method, K, G) of every network in one panel of Figs. 3.5 to 3.7."""
    local = [("dgl", k, 1) for k in DEPTHS] + [("infopro", k, 1) for k in DEPTHS if infopro]
    grouped = [("gn-dgl", k, g) for g, depths in GN_DEPTHS.items() for k in depths]
    return [("e2e", 1, 1), *local, *grouped, *(("single-thread", 1, g) for g in GN_DEPTHS)]


@functools.cache
def cells() -> dict[str, Cell]:
    """Every cell by name."""
    found = [*_resnet_cells(), *_vgg_cells(), *_digits_cells()]
    found += [Cell(name, _on_data(config, "cifar10"), own_optimizer=True) for name, config in sweep.configs().items()]
    more = ablations.configs() | methods2026.grouped_configs() | methods2026.configs()
    found += [Cell(name, _on_data(config, "cifar10")) for name, config in more.items()]
    own = methods2026_published.published_configs()
    found += [Cell(name, _on_data(config, "cifar10"), own_training=True) for name, config in own.items()]
    vits = methods2026.vit_configs()
    found += [Cell(name, _on_data(config, "cifar10"), own_optimizer=True) for name, config in vits.items()]
    found += [Cell(name, _settled(config)) for name, config in chapter4.configs().items()]
    return {cell.name: cell for cell in found}


def _resnet_cells() -> list[Cell]:
    return [
        _cell(resnet_name(data, model, method, depth, width), data, f"{model}-{method}", depth, width)
        for data in ("cifar10", "cifar100", "imagenet32")
        for model in ("resnet32", "resnet32x2")
        for method, depth, width in resnet_points(infopro=data != "imagenet32")
    ]


def _vgg_cells() -> list[Cell]:
    naive = ObjectiveConfig(loss="predsim", stop_gradient=False, diversity_weight=0.0)
    diverse = dataclasses.replace(naive, diversity_weight=0.5)
    shared = dataclasses.replace(diverse, stop_gradient=True)
    cells = [_vgg_cell(model, 1, naive) for model in ("vgg6a", "vgg6ax2", "vgg6ax3")]
    cells += [_vgg_cell("vgg6a", split, naive) for split in VGG_GROUPS]
    cells += [_vgg_cell(model, 6, naive) for model in ("vgg6ax2", "vgg6ax3")]
    cells += [_vgg_cell("vgg6a", 6, diverse, "-diversity"), _vgg_cell("vgg6a", 6, shared, "-diversity-stop-gradient")]
    return cells


def _vgg_cell(model: str, split: int, objective: ObjectiveConfig, extra: str = "") -> Cell:
    base = f"{model}-dgl" if split == 1 else f"{model}-{split}group-gn-dgl"
    cell = _cell(vgg_name(model, split, extra), "cifar10", base)
    return dataclasses.replace(cell, config=dataclasses.replace(cell.config, objective=objective))


def _digits_cells() -> list[Cell]:
    points = (("e2e", 1, 1), ("dgl", 4, 1), ("gn-dgl", 2, 2))
    return [_cell(resnet_name("digits", "resnet8", m, k, g), "digits", m, k, g) for m, k, g in points]


def _cell(name: str, data: str, base: str, depth: int | None = None, width: int | None = None) -> Cell:
    """The recipe ``base`` on a data set."""
    config = recipe(base)
    changed = dataclasses.replace(
        config,
        depth=depth or config.depth,
        width=(width,) if width else config.width,
    )
    return Cell(name, _on_data(changed, data))


def _on_data(config: RunConfig, data: str) -> RunConfig:
    named = dataclasses.replace(config.data, name=data)
    return _settled(dataclasses.replace(config, data=named, augment=AUGMENT[data]))


def _settled(config: RunConfig) -> RunConfig:
    """With everything decided that a cell's digest depends on."""
    return dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, precision="fp32", channels_last=True),
        # often enough that a kill costs minutes; records hold the last evaluation, so no best one is kept
        checkpoint=dataclasses.replace(config.checkpoint, every_steps=200, keep_last=1, keep_best=False),
    )
