"""``probe.json``: what was measured of a run's depths, and how."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from locallearn.config import ProbeConfig
from locallearn.errors import UsageError
from locallearn.files import write_atomically
from locallearn.training import provenance, record


@dataclass(frozen=True)
class Probed:
    """What was probed.

    Attributes:
        data: name of the data.
        train: how many training examples.
        test: how many test examples.
        precision: of the network's computation.
        device: where it was computed.
        held: how features were held.
        known: what else the protocol tells.
    """

    data: str
    train: int
    test: int
    precision: str
    device: str
    held: str
    known: dict[str, Any] = field(default_factory=dict)


def make_record(probed: Probed, config: ProbeConfig, points: list[dict[str, Any]]) -> dict[str, Any]:
    """The record of a probe; ``protocol`` has every setting, ``protocol_text`` says it in one line."""
    data = {
        "data": probed.data,
        "train_images": probed.train,
        "test_images": probed.test,
        **probed.known,
        "precision": probed.precision,
        "features": probed.held,
    }
    settings = dataclasses.asdict(config) | {"learning_rate": config.initial_rate}
    return {
        "protocol": settings | data,
        "protocol_text": protocol_text(probed, config),
        "points": points,
        "time": record.now(),
        **provenance.facts_of(probed.device),
    }


def protocol_text(probed: Probed, config: ProbeConfig) -> str:
    """The protocol in one line; runs of different methods and seeds that are probed alike have the same."""
    head = "linear probe" if config.head == "linear" else f"MLP probe of {config.hidden} hidden units"
    augment = {"none": "no augmentation", "standard": "crop and flip", "run": "the run's own augmentation"}
    inputs = "global average" if config.pool == 1 else f"average to {config.pool} x {config.pool}"
    scaled = ", standardised" if config.standardise else ""
    coarse = ", held in bf16" if probed.held == "held in bf16" else ""
    return (
        f"{head} on {inputs}{scaled}{coarse}; {config.epochs} epochs of {config.optimizer}, rate "
        f"{config.initial_rate:g} {config.schedule}, batch {config.batch_size}, decay {config.weight_decay:g}, "
        f"{augment[config.augment]}; {probed.data}, {probed.train:,} training and {probed.test:,} test images; "
        f"seed {config.seed}"
    )


def record_path(run: Path, name: str | None, overwrite: bool) -> Path:
    """Where the record goes: ``probe.json`` or ``probe-NAME.json`` in the run folder.

    Raises:
        UsageError: the name is not a plain word, or the file is there and ``overwrite`` was not asked for.
    """
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UsageError(f"--name: {name!r} is not valid; expected letters, digits, dots, dashes and underscores")
    path = run / ("probe.json" if name is None else f"probe-{name}.json")
    if path.exists() and not overwrite:
        raise UsageError(f"{path} is there already; replace it with --overwrite, or give this one a --name")
    return path


def write_record(path: Path, found: dict[str, Any]) -> None:
    """Write a record under a temporary name and rename it."""
    write_atomically(path, json.dumps(found, indent=2) + "\n")
