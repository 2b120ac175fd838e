"""What ``train`` and ``verify`` have in common: a configuration from a recipe, a file and short forms of options."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from locallearn import plugins
from locallearn.cli.options import recipe_name, value_of
from locallearn.config import RunConfig, from_dict, to_dict
from locallearn.errors import ConfigError, UsageError
from locallearn.recipes.named import recipe

SHORT = {
    "--data": "--data.name",
    "--data-root": "--data.root",
    "--download": "--data.download",
    "--image-size": "--data.image-size",
    "--loss": "--objective.loss",
    "--head": "--objective.head",
    "--optimizer": "--optimizer.name",
    "--lr": "--optimizer.learning-rate",
    "--learning-rate": "--optimizer.learning-rate",
    "--momentum": "--optimizer.momentum",
    "--weight-decay": "--optimizer.weight-decay",
    "--schedule": "--schedule.name",
    "--warmup-epochs": "--schedule.warmup-epochs",
    "--epochs": "--train.epochs",
    "--batch-size": "--train.batch-size",
    "--device": "--train.device",
    "--precision": "--train.precision",
    "--threads": "--train.threads",
}
"""Short forms of options of a configuration, and what each stands for."""

SHOWN = (
    "--model",
    "--depth",
    "--width",
    "--head",
    "--data",
    "--data-root",
    "--epochs",
    "--batch-size",
    "--lr",
    "--seed",
    "--device",
    "--runtime",
)
"""The options of a configuration that people change most; ``--help`` shows them."""


def start(arguments: Sequence[str], command: str, example: str) -> tuple[str | None, RunConfig, list[str]]:
    """What the arguments begin with: the recipe and the file (``--config``) that options then change.

    Args:
        arguments: what follows the command's name.
        command: the command's name.
        example: of a call, for the message where neither is there.

    Returns:
        A name for the run (the recipe's, or the file's; None where only help is asked for), the configuration, and
        the arguments that are left.

    Raises:
        UsageError: no such recipe, or the file is not there, not a configuration, or names plugins not loaded.
    """
    file = value_of("--config", arguments)
    given = arguments[0] if arguments and not arguments[0].startswith("-") else None
    if given is None and file is None:
        recipe_name(arguments, command, example)  # refuses
    config = recipe(given or "gn-dgl") if given or file is None else RunConfig()
    if file is not None:
        config = _changed_by(config, Path(file))
    unknown = [plugin for plugin in config.plugins if str(Path(plugin).resolve()) not in plugins.loaded()]
    if unknown:
        raise UsageError(f"--config: {file} names the plugin {unknown[0]}; name it with --plugin if you trust it")
    name = given or (Path(file).stem if file is not None else None)
    return name, dataclasses.replace(config, plugins=plugins.loaded()), list(arguments[1:] if given else arguments)


def _changed_by(config: RunConfig, file: Path) -> RunConfig:
    """The configuration with the settings of a TOML file.

    Raises:
        UsageError: it is not there, not TOML, or holds what is no setting.
    """
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--config: {file} cannot be read: {error}") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"--config: {file} is not TOML: {error}") from None
    try:
        return from_dict(_merged(to_dict(config), values))
    except ConfigError as error:
        raise UsageError(f"--config: {file}: {error}") from None


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries, of which the second one wins."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(value, dict) and isinstance(below, dict) else value
    return merged
