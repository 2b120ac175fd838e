"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from locallearn.report.compare import MIB, columns, comparison_rows
from locallearn.report.records import read_runs

_SHOWN = (
    *("run", "K", "G", "last layer [%]", "last layer or kNN [%]", "last module, kNN [%]", "ensemble [%]"),
    *("images/s", "activations [MiB]", "peak RSS [MiB]"),
)
"""What fits a narrow terminal; the report has every column."""

_HEADS = {"activations [MiB]": "activa-\ntions [MiB]"}
"""Heads whose longest word is wider than their figures."""


_MOST_MODULES = 5
"""Columns of modules that fit a terminal of 80."""


def summary_table(runs: Sequence[Path]) -> Table:
    """One row a run: accuracy, speed and memory side by side; the figures of the report."""
    table = Table(title="Test accuracy, training speed and memory", box=box.SIMPLE_HEAD)  # narrow
    records = read_runs(runs)
    shown = [column for column in columns(records) if column.title in _SHOWN]
    for column in shown:
        title = _HEADS.get(column.title, column.title)
        table.add_column(title, overflow="fold", justify="right" if column.numeric else "left")
    protocols = {record.protocol for record in records} - {"classifier"}
    if protocols:  # the others' last layer is their classifier
        table.caption = f"Accuracy without an ensemble: {'; '.join(sorted(protocols))}"
    for row in comparison_rows(records):
        table.add_row(*(column.show(row) for column in shown))
    return table


def parameters_text(summary: dict[str, Any]) -> str:
    """How many parameters train, and how many of them are left once auxiliary heads are gone."""
    trained, deployed = summary["parameters"], summary["deployed_parameters"]
    heads = f", {trained:,} in training with auxiliary heads" if trained != deployed else ""
    return f"parameters: {deployed:,} deployed{heads}"


def accuracy_text(found: dict[str, Any]) -> str:
    """Accuracy of the last layer and of the ensemble, or of the last module and the protocol that it is of."""
    if found["ensemble"] is None:
        return f"last module {found['last_layer']:.2%} ({found['protocol']})"
    return f"last layer {found['last_layer']:.2%}, ensemble {found['ensemble']:.2%}"


def node_title(protocol: str | None) -> str:
    """What a table of the nodes' accuracies shows; records of old runs name no protocol."""
    by = f", {protocol}" if protocol not in (None, "classifier") else ""
    return f"Test accuracy of every node [%]{by}"


def node_table(nodes: Sequence[dict[str, Any]], title: str) -> Table:
    """Accuracy [%] of every node that has a classifier: a column a module, a row a group; of many the other way."""
    modules = list(dict.fromkeys(node["module"] for node in nodes))
    accuracy = {(node["module"], node["group"]): node.get("accuracy") for node in nodes}
    table = Table(title=title)
    table.add_column("group", justify="right")
    groups = range(1, max(node["group"] for node in nodes) + 1)
    if len(modules) > len(groups) and len(modules) > _MOST_MODULES:  # what does not fit side by side goes below
        table = Table(title=title)
        table.add_column("module", justify="right")
        for group in groups:
            table.add_column(f"group {group}", justify="right")
        for module in modules:
            table.add_row(str(module), *(_cell(accuracy.get((module, group))) for group in groups))
        return table
    for module in modules:
        table.add_column(f"module {module}" if isinstance(module, int) else module, justify="right")
    for group in groups:
        table.add_row(str(group), *(_cell(accuracy.get((module, group))) for module in modules))
    return table


def _cell(accuracy: float | None) -> str:
    return "" if accuracy is None else f"{100 * accuracy:.2f}"


def process_table(processes: Sequence[dict[str, Any]]) -> Table:
    """How each process of a distributed run has fared: a row a process, since the run was started or resumed."""
    table = Table(title="Processes", box=box.SIMPLE_HEAD)
    table.add_column("process", justify="right")
    table.add_column("nodes", overflow="fold")
    for title in ("waiting\n[%]", "sent\n[MiB]", "memory\n[MiB]", "images/s"):
        table.add_column(title, justify="right")
    for row in processes:
        memory = row.get("peak_device_bytes", row["peak_rss_bytes"])
        table.add_row(
            str(row["process"]),
            row["nodes"].partition(" (rank")[0],
            f"{100 * row['waiting']:.1f}",
            f"{row['sent_bytes'] / MIB:,.1f}",
            f"{memory / MIB:,.1f}",
            f"{row['images_per_second']:,.0f}",
        )
    return table
