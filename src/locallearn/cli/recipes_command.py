"""``locallearn recipes``: what can be trained by name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from locallearn.cli.console import Terminal
from locallearn.cli.options import parse
from locallearn.config import to_toml
from locallearn.recipes.common import METHODS
from locallearn.recipes.named import families, recipe, recipe_names
from locallearn.recipes.newer import VARIANTS


@dataclass(frozen=True)
class RecipesOptions:
    """Options of ``recipes``."""

    show: str | None = None
    """Print this recipe's configuration as TOML."""
    json: bool = False
    """Print all names as a JSON list."""


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(RecipesOptions, arguments, "recipes", "List the recipes, or show one.")
    if options.show:
        print(to_toml(recipe(options.show)), end="")
    elif options.json:
        print(json.dumps(recipe_names()))
    else:
        _show(Terminal())
    return 0


def _show(console: Terminal) -> None:
    """A row a method, a column a family of models; recipes are named by both."""
    from locallearn.core.methods import methods

    table = Table(title="METHOD trains on the digits, MODEL-METHOD on CIFAR-10", box=box.SIMPLE_HEAD)
    for title in ("method", "K x G"):
        table.add_column(title, no_wrap=True)
    names = families()
    for family in names:
        table.add_column(family, justify="center")
    table.add_column("what it is")
    listed = set(recipe_names())
    what = {name: str(methods.get(name).__doc__).splitlines()[0] for name in METHODS}
    what |= {name: variant.paper for name, variant in VARIANTS.items()}
    for name, text in what.items():
        depth, width = METHODS[VARIANTS[name].method if name in VARIANTS else name]
        fits = ["yes" if listed & {f"{model}-{name}" for model in models} else "" for models in names.values()]
        table.add_row(name, f"{depth} x {width}", *fits, text.rstrip("."))
    console.print(table)
    for family, models in names.items():
        console.print(Text(family, "bold"), " ", ", ".join(models), highlight=False)
    console.print(
        "\nAny model also takes a width factor (resnet32x2-gn-dgl); vgg6a-6group-gn-dgl has the thesis's 6-Group.\n"
        "VGGs are cut after every block; small models are trained on the digits, too.\n"
        "locallearn recipes --show NAME prints all settings of a recipe.",
        highlight=False,
    )
