"""The command that trains what ``locallearn plan`` recommends."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from typing import Any

from locallearn.config import ImageSize, ObjectiveConfig, RunConfig, sides
from locallearn.core.methods import methods
from locallearn.costs.alternatives import Alternative
from locallearn.errors import UsageError
from locallearn.recipes.named import recipe


@dataclass(frozen=True)
class Images:
    """What the plan is for, as on its command line."""

    size: ImageSize
    channels: int
    classes: int


def of_candidate(config: RunConfig, devices: int, images: Images) -> list[str]:
    """Arguments that train a K x G network, on one device or on a device a node."""
    width = config.width[0]
    arguments = ["--depth", str(config.depth), "--width", str(width), "--head", config.objective.head]
    if config.cuts != ("auto",):
        arguments += ["--cuts", *config.cuts]
    if devices > 1:
        arguments += ["--runtime", "distributed", "--processes", str(devices)]
        arguments += ["--mesh.depth", str(config.depth), "--mesh.width", str(width)]
    size = config.train.batch_size
    found = [*arguments, "--batch-size", str(size), *_settings(config, config.method, size)]
    return _command(config, config.method, [*found, *_objective(config)], images)


def of_alternative(config: RunConfig, one: Alternative, images: Images) -> list[str] | None:
    """Arguments that train end to end in one of the usual ways; None where this package does not."""
    if one.name not in ("backpropagation", "accumulation", "smaller-batch", "data-parallel"):
        return None
    parts = one.parts if one.name == "accumulation" else 1
    arguments = ["--batch-size", str(-(-one.batch_size // parts))]
    if parts > 1:
        arguments += ["--train.accumulate", str(parts)]
    if one.name == "data-parallel":
        arguments += ["--runtime", "distributed", "--processes", str(one.devices), "--mesh.data", str(one.devices)]
    return _command(config, "e2e", [*arguments, *_settings(config, "e2e", one.batch_size)], images)


def _command(config: RunConfig, method: str, arguments: list[str], images: Images) -> list[str]:
    found = ["locallearn", "train", f"{config.model}-{method}", *arguments]
    if (images.size, images.channels, images.classes) != (32, 3, 10):
        found += ["--data", "folder", "--data-root", "DIR", "--image-size", *map(str, sides(images.size)[:1])]
    return found


def _settings(config: RunConfig, method: str, batch_size: int) -> list[str]:
    """Precision and optimizer, with a rate for the images that an update follows, where they are not the recipe's."""
    found = ["--precision", str(config.train.precision)]
    try:
        base = recipe(f"{config.model}-{method}")
    except UsageError:  # a method that a plugin registered has the recipe of the digits
        return found
    if config.optimizer.name != base.optimizer.name:
        rate = 1e-3 if config.optimizer.name == "adam" else 0.1
        return [*found, "--optimizer", config.optimizer.name, "--lr", f"{rate:g}"]
    if config.optimizer.name == "sgd" and batch_size != base.train.batch_size:  # Goyal et al. (2017)
        found += ["--lr", f"{base.optimizer.learning_rate * batch_size / base.train.batch_size:g}"]
    return found


def _objective(config: RunConfig) -> list[str]:
    """The local loss and its settings, where they are not the recipe's."""
    try:
        base = recipe(f"{config.model}-{config.method}").objective
    except UsageError:
        base = ObjectiveConfig()
    given = config.objective
    if given.loss is None and base.loss is not None:  # the plan has the method's own loss
        given = dataclasses.replace(given, loss=methods.build(config.method, config).modules[0].objective.loss)
    return _changed("--objective", dataclasses.replace(base, head=given.head), given)


def _changed(option: str, base: Any, given: Any) -> list[str]:
    """Options that make the settings ``given`` of ``base``."""
    found = []
    for field in dataclasses.fields(given):
        value, name = getattr(given, field.name), field.name.replace("_", "-")
        if value is None or value == getattr(base, field.name, None):
            continue
        if dataclasses.is_dataclass(value):
            found += _changed(f"{option}.{name}", getattr(base, field.name, None), value)
        elif isinstance(value, bool):
            found.append(f"{option}.{name if value else f'no-{name}'}")
        else:
            found += [f"{option}.{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return found


def text(arguments: list[str]) -> str:
    """As a line for a shell."""
    return shlex.join(arguments)
