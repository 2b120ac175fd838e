"""A configuration as dictionaries, as TOML and as a digest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
from typing import Any

import tomli_w
from pydantic import TypeAdapter, ValidationError

from locallearn.arguments import checked
from locallearn.config.run import EVERY_BATCH, RunConfig
from locallearn.errors import ConfigError
from locallearn.validation import explained

_ADAPTER = TypeAdapter(RunConfig)


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The configuration as plain nested dictionaries; what is ``None`` or holds nothing is left out."""
    return _without_none(dataclasses.asdict(config))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        items = {key: _without_none(item) for key, item in value.items()}
        return {key: item for key, item in items.items() if item is not None and item != {}}
    return list(value) if isinstance(value, tuple) else value


def from_dict(values: dict[str, Any]) -> RunConfig:
    """Build a configuration from plain nested dictionaries.

    Raises:
        ConfigError: an unknown key, a wrong type or a wrong value.
    """
    try:
        return _ADAPTER.validate_python(values)
    except ValidationError as error:
        raise explained(error) from None


@checked
def to_toml(config: RunConfig) -> str:
    """The configuration as TOML text; ``from_toml`` gives back an equal configuration."""
    return tomli_w.dumps(to_dict(config))


@checked
def from_toml(text: str) -> RunConfig:
    """Read TOML text that ``to_toml`` wrote, or that a user did.

    Raises:
        ConfigError: not TOML, an unknown key, a wrong type or a wrong value.
    """
    try:
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError("config", "text", f"TOML ({error})") from None
    return from_dict(values)


def digest(config: RunConfig) -> str:
    """Sixteen hexadecimal digits that name what is computed.

    Runs with equal digests and seeds train the same thing; where data and plugins lie, which devices and processes
    compute, where figures are shown, how neighbours are looked for in evaluation, how often checkpoints are written,
    settings of runtimes that are not used and the seed itself are left out. So is every setting at its default: a
    setting that a later version adds leaves the digests of earlier runs as they were. (Whoever changes a default must
    therefore rename its field.)
    """
    values = _changed(config)
    for key in (
        "seed",
        "init_from",  # init_weights says which weights they are
        "checkpoint",
        "plugins",
        "threads",
        "loggers",
        *({"asynchronous", "sequential"} - {config.runtime}),
    ):
        values.pop(key, None)
    if config.runtime in EVERY_BATCH:  # they train what the inline runtime trains
        values.pop("runtime", None)
    wire = values.pop("mesh", {}).get("wire")
    if wire is not None:  # features that are rounded on their way are other features
        values["mesh"] = {"wire": wire}
    for group, keys in {
        "data": ("root", "download", "memory_gib", "workers"),
        "train": ("device", "threads", "evaluate_batch_size", "knn_neighbours", "knn_temperature", "knn_bank"),
        "asynchronous": ("restarts",),
        "sequential": ("cache_gib",),
    }.items():
        for key in keys:
            values.get(group, {}).pop(key, None)
    # where the scorer lies; the run itself remembers which scorer it is
    values.get("objective", {}).get("modification", {}).pop("scorer_run", None)
    values = _without_empty(values)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _without_empty(values: dict[str, Any]) -> dict[str, Any]:
    """The same without parts that hold nothing."""
    parts = {key: _without_empty(value) if isinstance(value, dict) else value for key, value in values.items()}
    return {key: value for key, value in parts.items() if value != {}}


def _changed(part: Any) -> dict[str, Any]:
    """The settings of a configuration, or of a part of it, that are not at their defaults."""
    changed = {}
    default = type(part)()
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if dataclasses.is_dataclass(value):
            changed[field.name] = _changed(value)
        elif value != getattr(default, field.name):
            changed[field.name] = value
    return changed
