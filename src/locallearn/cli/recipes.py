"""``locallearn recipes``: what can be trained by name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from locallearn.cli.options import parse
from locallearn.config import to_toml
from locallearn.experiments.recipes import recipe, recipe_names


@dataclass(frozen=True)
class RecipesOptions:
    """Options of ``recipes``."""

    show: str | None = None
    """Print this recipe's configuration as TOML."""
    json: bool = False
    """Print the names as a JSON list."""


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(RecipesOptions, arguments, "recipes", "List the recipes, or show one.")
    if options.show:
        print(to_toml(recipe(options.show)), end="")
    elif options.json:
        print(json.dumps(recipe_names()))
    else:
        print("\n".join(recipe_names()))
    return 0
