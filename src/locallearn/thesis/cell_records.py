"""Results: one JSON file for each cell and seed, and which of them may be put together."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from locallearn.config import RunConfig, digest, from_dict, to_dict
from locallearn.costs.nodes import Cost
from locallearn.errors import ConfigError, UsageError
from locallearn.files import make_folder, write_atomically
from locallearn.thesis.protocols import Study
from locallearn.training.record import now

Record = dict[str, Any]
"""A result as its file holds it; ``make_record`` lists the fields."""


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Accuracy(_Model):
    last_layer: float
    ensemble: float | None


class _Macs(_Model):
    e2e: int
    largest_node: int
    inference: int


class _Curve(_Model):
    epoch: int
    last_layer: float
    ensemble: float | None


class _Study(_Model):
    protocol: str
    epochs: int | None = None
    train_limit: int | None = None


class _Schema(_Model):
    """What tables, figures and claims need; the rest of a record is for its readers."""

    cell: str
    study: _Study
    seed: int
    digest: str
    data_source: str
    accuracy: _Accuracy
    macs: _Macs
    curve: list[_Curve]
    config: dict[str, Any]


def record_path(results: Path, study: Study, cell: str, seed: int) -> Path:
    """``results/quick/cifar10-resnet32-e2e-seed0.json``."""
    return results / study.name / f"{cell}-seed{seed}.json"


def make_record(
    cell: str, study: Study, config: RunConfig, summary: dict[str, Any], curve: list[dict[str, Any]], cost: Cost
) -> Record:
    """Everything about one trained cell; places on this machine are left out.

    Args:
        cell: the cell's name.
        study: what it was trained for.
        config: what was trained.
        summary: the run's ``summary.json``.
        curve: epoch, last_layer, ensemble and training loss of every evaluation.
        cost: what its nodes compute.
    """
    modification = dataclasses.replace(config.objective.modification, scorer_run=None)
    objective = dataclasses.replace(config.objective, modification=modification)
    data = dataclasses.replace(config.data, root=None, download=False)
    places = dataclasses.replace(config, data=data, objective=objective)
    kept = ("nodes", "seconds", "images_per_second", "memory", "parameters", "hardware", "versions", "commit")
    return {
        "cell": cell,
        "study": {key: value for key, value in dataclasses.asdict(study).items() if value is not None},
        "seed": config.seed,
        "digest": digest(config),
        "finished": now(),
        "data_source": summary["data_source"],
        "accuracy": {key: summary["accuracy"][key] for key in ("last_layer", "ensemble", "protocol")},
        "macs": {"e2e": cost.e2e_macs, "largest_node": cost.max_node_macs, "inference": cost.inference_macs},
        "training_speedup": cost.training_speedup,
        "inference_speedup": cost.inference_speedup,
        "traffic_bytes": cost.traffic_bytes,
        **{key: summary[key] for key in kept},
        "curve": curve,
        "config": to_dict(places),
    }


def write_record(path: Path, record: Record) -> None:
    """Write a record atomically. One of another configuration under the same name is kept, with its digest in it.

    What was there and is no record is kept too, as ``NAME.json.damaged``.
    """
    make_folder(path.parent)
    if path.is_file():
        try:
            old = read_record(path)
        except UsageError:
            path.rename(path.with_name(f"{path.name}.damaged"))
            old = record
        if old["digest"] != record["digest"]:
            path.rename(path.with_name(f"{path.stem}-{old['digest']}.json"))
    write_atomically(path, json.dumps(record, indent=1) + "\n")


def read_record(path: Path) -> Record:
    """Read one record.

    Its digest is computed again from the configuration in it, so that a setting that was added to the program since,
    and whose default is what the program did before, does not make an old record a stranger.

    Raises:
        UsageError: it is not a record.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        _Schema.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise UsageError(f"{path}: not a result of reproduce ({field}: {first['msg']})") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not a result of reproduce ({error})") from None
    with contextlib.suppress(ConfigError):  # a setting of then is gone: the digest of then says what was trained
        record["digest"] = digest(from_dict(record["config"]))
    return record


def read_records(folder: Path, problems: list[str] | None = None) -> list[Record]:
    """Every record in a folder, by file name; none where there is no folder.

    Args:
        folder: where they are.
        problems: is told of files that are no records, which are left out; without it the first one is an error.

    Raises:
        UsageError: a file is not a record.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(read_record(path))
        except UsageError as error:
            if problems is None:
                raise
            problems.append(str(error))
    return found


def is_finished(path: Path, wanted: str, seed: int) -> bool:
    """Whether this file holds the record of the configuration with digest ``wanted`` and this seed."""
    try:
        record = read_record(path)
    except UsageError:
        return False
    return (record["digest"], record["seed"]) == (wanted, seed)


def comparable(records: Iterable[Record], digests: Mapping[str, str]) -> tuple[dict[str, list[Record]], list[str]]:
    """Records that may be averaged, by cell and in the order of their seeds, and one line for each left out.

    A cell's records are put together only where they were trained from one configuration on the same data.

    Args:
        records: any records.
        digests: digest of every cell as this program would train it now.
    """
    kept: dict[str, dict[int, Record]] = {}
    notes = []
    for record in records:
        cell, wanted = record["cell"], digests.get(record["cell"])
        if record["digest"] != wanted:
            now_is = f"the cell's is now {wanted}" if wanted else "there is no such cell now"
            notes.append(f"{cell} seed {record['seed']}: left out, its digest is {record['digest']} and {now_is}")
            continue
        seeds = kept.setdefault(cell, {})
        sources = {other["data_source"] for other in seeds.values()} | {record["data_source"]}
        if len(sources) > 1:
            notes.append(
                f"{cell} seed {record['seed']}: left out, it was trained on {record['data_source']} and seeds before "
                f"it on {next(iter(sources - {record['data_source']}))}"
            )
            continue
        seeds[record["seed"]] = record
    return {cell: [seeds[seed] for seed in sorted(seeds)] for cell, seeds in kept.items()}, notes
