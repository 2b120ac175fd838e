"""The figures of runs side by side: one source for the command line's table, its JSON and the HTML report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from locallearn.report.records import RunRecord, series

Measured = Mapping[str, Sequence[Mapping[str, Any]]]
"""Records of every cell, one a seed, of one configuration each."""

MISSING = "–"
MIB = 1 << 20


@dataclass(frozen=True)
class Column:
    """A column of the comparison: its title (with the unit) and how it shows a row of ``comparison_rows``."""

    title: str
    show: Callable[[dict[str, Any]], str]
    numeric: bool = True


def comparison_rows(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """One dictionary a run, plain JSON values, ``None`` where a run does not tell (nothing is averaged over runs).

    Accuracies are fractions in [0, 1], memory is in bytes, time in seconds. What a run without a summary can
    still tell comes from its metrics: the last and the best evaluation, images/s and time of its epochs so far.
    """
    return [_row(record) for record in records]


def _row(record: RunRecord) -> dict[str, Any]:
    config, summary = record.config, record.summary or {}
    memory = summary.get("memory") or {}
    return {
        "name": record.name,
        "status": record.status,
        "method": config.method,
        "model": config.model,
        "data": config.data.name,
        "train_limit": config.data.train_limit,
        "depth": config.depth,
        "width": list(config.groups),
        "seed": config.seed,
        "epochs": record.train[-1]["epoch"] if record.train else 0,
        "planned_epochs": config.train.epochs * _phases(record),
        **_accuracies(record),
        **_speed(record),
        "activation_bytes": memory.get("activation_bytes"),
        "peak_rss_bytes": memory.get("peak_rss_bytes"),
        "peak_device_bytes": memory.get("peak_device_bytes"),
        "parameters": summary.get("parameters"),
        "deployed_parameters": summary.get("deployed_parameters"),
    }


def _phases(record: RunRecord) -> int:
    """How often a run goes through its epochs: the sequential runtime does once for every module."""
    return len({module for module, _ in record.nodes}) or 1 if record.config.runtime == "sequential" else 1


def _accuracies(record: RunRecord) -> dict[str, Any]:
    keys = ("last_layer", "ensemble", "best_last_layer", "best_epoch")
    if record.summary and record.summary.get("accuracy"):
        return {key: record.summary["accuracy"].get(key) for key in keys}
    told = [event for event in record.evaluations if event.get("last_layer") is not None]
    if not told:
        return dict.fromkeys(keys)
    best = max(told, key=_choosing)
    values = (told[-1]["last_layer"], told[-1].get("ensemble"), best["last_layer"], best["epoch"])
    return dict(zip(keys, values, strict=True))


def _choosing(event: dict[str, Any]) -> float:
    """The accuracy that the best checkpoint is chosen by."""
    found = (event.get("validation") or event).get("last_layer")
    return -math.inf if found is None else found


def _speed(record: RunRecord) -> dict[str, float | None]:
    summary = record.summary or {}
    times, rates = series(record.train, "seconds"), series(record.train, "images_per_second")
    known = [(time, rate) for time, rate in zip(times, rates, strict=True) if math.isfinite(time * rate)]
    seconds = sum(time for time, _ in known)
    images = sum(time * rate for time, rate in known)
    return {
        "images_per_second": summary.get("images_per_second", images / seconds if seconds else None),
        "seconds": summary.get("seconds", seconds if known else None),
    }


def percent(value: float | None) -> str:
    """A fraction as a percentage with two decimals, without the sign (``0.6134`` is ``61.34``)."""
    return number(None if value is None else 100 * value, 2)


def number(value: float | None, digits: int = 0) -> str:
    """A number with thousands separators; a dash where there is none."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def loss_text(value: float | None) -> str:
    """A loss with four decimals; one that has run away, in powers of ten."""
    runaway = value is not None and math.isfinite(value) and abs(value) >= 1e4
    return f"{value:.2e}" if runaway else number(value, 4)


def mebibytes(value: float | None) -> str:
    """Bytes as MiB with one decimal, without the unit."""
    return number(None if value is None else value / MIB, 1)


def duration(seconds: float | None) -> str:
    """A time in the two units that tell most: ``12.3 s``, ``4 min 05 s``, ``2 h 13 min``."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def width_text(width: Sequence[int]) -> str:
    """G once where every module has the same, else one number for each module."""
    return str(width[0]) if len(set(width)) == 1 else ", ".join(map(str, width))


def data_text(row: dict[str, Any]) -> str:
    """The data set, and how many training images where a run uses only the first of them."""
    return row["data"] + (f" (first {row['train_limit']:,})" if row["train_limit"] else "")


def epochs_text(row: dict[str, Any]) -> str:
    """Epochs done, and of how many where some are missing."""
    done, planned = row["epochs"], row["planned_epochs"]
    return str(done) if done == planned else f"{done} of {planned}"


def best_text(row: dict[str, Any]) -> str:
    """The best accuracy of the last layer and, in brackets, its epoch."""
    value = percent(row["best_last_layer"])
    return value if row["best_epoch"] is None else f"{value} ({row['best_epoch']})"


COLUMNS: tuple[Column, ...] = (
    Column("run", lambda row: row["name"], numeric=False),
    Column("status", lambda row: row["status"], numeric=False),
    Column("method", lambda row: row["method"], numeric=False),
    Column("model", lambda row: row["model"], numeric=False),
    Column("data", data_text, numeric=False),
    Column("K", lambda row: str(row["depth"])),
    Column("G", lambda row: width_text(row["width"])),
    Column("seed", lambda row: str(row["seed"])),
    Column("epochs", epochs_text),
    Column("last layer [%]", lambda row: percent(row["last_layer"])),
    Column("ensemble [%]", lambda row: percent(row["ensemble"])),
    Column("best (epoch) [%]", best_text),
    Column("images/s", lambda row: number(row["images_per_second"])),
    Column("activations [MiB]", lambda row: mebibytes(row["activation_bytes"])),
    Column("peak RSS [MiB]", lambda row: mebibytes(row["peak_rss_bytes"])),
    Column("parameters", lambda row: number(row["parameters"])),
    Column("deployed parameters", lambda row: number(row["deployed_parameters"])),
    Column("training time", lambda row: duration(row["seconds"])),
)
"""The comparison table. ``[column.show(row) for column in COLUMNS]`` is a row as text."""


def classifies(record: RunRecord) -> bool:
    """Whether a run's last layer is a classifier, and not looked up by neighbours."""
    return record.protocol == "classifier"


def columns(records: Sequence[RunRecord]) -> tuple[Column, ...]:
    """The columns of ``COLUMNS``, which say where accuracies are those of neighbours."""
    kinds = {classifies(record) for record in records}
    if kinds == {True}:
        return COLUMNS
    title = "last layer or kNN [%]" if True in kinds else "last module, kNN [%]"
    return tuple(replace(one, title=title) if one.title == "last layer [%]" else one for one in COLUMNS)
