"""What ``locallearn plan`` prints."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from locallearn.cli import houses
from locallearn.cli.console import Terminal
from locallearn.config import RunConfig
from locallearn.costs.alternatives import Alternative
from locallearn.costs.footprint import bytes_text
from locallearn.costs.planner import Candidate, Plan
from locallearn.report.units import time_text


def to_json(plan: Plan, others: Sequence[Alternative], memory: int) -> dict[str, Any]:
    """Plain values, as ``--json`` prints them."""
    return {
        "memory": memory,
        "proposal": {**_row(plan.proposal), "nodes": _nodes(plan.proposal)} if plan.fits else None,
        "fits": [_row(one) for one in plan.fits],
        "refused": [dataclasses.asdict(one) for one in plan.refused],
        "alternatives": [{**dataclasses.asdict(one), "fits": one.memory <= memory} for one in others],
    }


def _row(one: Candidate) -> dict[str, Any]:
    return {
        "depth": one.config.depth,
        "width": one.config.width[0],
        "head": one.config.objective.head,
        "cuts": list(one.ends),
        "devices": one.devices,
        "memory": one.memory,
        "makespan": one.makespan,
        "wire_bytes": one.wire_bytes,
        "published_accuracy": _published(one.config),
        "head_shares": [module.head_macs / module.macs for module in one.cost.modules],
    }


def _published(config: RunConfig) -> float | None:
    """The thesis's accuracy [%] of this network, where it has one."""
    published = houses.part("thesis", "published")
    return published.published_accuracy(config) if published else None


def _nodes(one: Candidate) -> list[dict[str, Any]]:
    """A row a module: what each of its nodes holds and sends; one row where all share a device."""
    if one.devices == 1:
        return [{"module": None, **_footprint(one, 0), "sent_bytes": 0}]
    return [
        {"module": k + 1, **_footprint(one, k), "sent_bytes": one.sent_bytes(k)} for k in range(len(one.footprints))
    ]


def _footprint(one: Candidate, k: int) -> dict[str, int]:
    return {**dataclasses.asdict(one.footprints[k]), "memory": one.footprints[k].total}


def show(values: dict[str, Any], n: int, timed: bool, everything: bool = False) -> None:
    """Print the plans, the proposal's nodes, the usual ways and the command that trains what is recommended.

    Args:
        values: as ``--json`` prints them.
        n: how many plans.
        timed: whether times are seconds.
        everything: also print all plans, all usual ways, and what is not proposed.
    """
    console = Terminal()
    one_device = next(a["makespan"] for a in values["alternatives"] if a["name"] == "backpropagation")

    def text(makespan: float) -> str:
        step = makespan / values["batches"]
        return time_text(step) if timed else f"{makespan / one_device:.3f}"

    unit = "time a step" if timed else "time (e2e = 1)"
    if values["proposal"] is not None:
        console.print(_plans(values, len(values["fits"]) if everything else n, unit, text))
        console.print(_node_table(values["proposal"]))
    console.print(_others(values, unit, text, everything))
    if everything:
        _refused(console, values["refused"])
    else:
        left = len(values["fits"]) - n
        more = f"{left} more plans fit, and " if left > 0 else ""
        console.print(f"{more}{len(values['refused'])} are not proposed: --all shows them and why", highlight=False)
    if "measured" in values:
        _measured(console, values)
    for line in values["advice"]:
        console.print(line, highlight=False)
    if values["command"] is not None:
        console.print(values["command"], highlight=False, soft_wrap=True)


def _table(title: str, columns: Sequence[str], caption: str | None = None) -> Table:
    table = Table(title=title, caption=caption)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _plans(values: dict[str, Any], n: int, unit: str, text: Any) -> Table:
    rows = values["fits"][:n]
    columns = ["K", "G", "head", "cuts after", "devices", "memory", unit]
    known = any(row["published_accuracy"] is not None for row in rows)
    devices = f"{values['devices']} device{'s' if values['devices'] > 1 else ''}"
    title = f"Plans for {devices} of {bytes_text(values['memory'])}, best first"
    caption = "Ranked by time, then by K x G: accuracy falls as K and G grow"
    caption += " (Table 3.4: end to end 93.01 %)" if known else ""
    table = _table(title, [*columns, *(["thesis [%]"] if known else [])], caption)
    for row in rows:
        accuracy = row["published_accuracy"]
        cells = [
            str(row["depth"]),
            str(row["width"]),
            row["head"],
            " ".join(row["cuts"]) if row["depth"] <= 4 else "...",
            str(row["devices"]),
            bytes_text(row["memory"]),
            text(row["makespan"]),
        ]
        table.add_row(*cells, *(["" if accuracy is None else f"{accuracy:.2f}"] if known else []))
    return table


def _node_table(proposal: dict[str, Any]) -> Table:
    kinds = ("state", "activations", "working", "waiting")
    title = f"The proposal: K = {proposal['depth']}, G = {proposal['width']}; bytes of one device"
    table = _table(title, ["module", *kinds, "memory", "sent a step"], _heads(proposal["head_shares"]))
    for node in proposal["nodes"]:
        sizes = (bytes_text(node[kind]) for kind in (*kinds, "memory", "sent_bytes"))
        table.add_row("all" if node["module"] is None else str(node["module"]), *sizes)
    return table


def _heads(shares: Sequence[float]) -> str:
    """What of every module's multiply-accumulates its head has; least and most where there are many modules."""
    texts = [f"{100 * share:.0f}" for share in shares]
    several = ", ".join(texts) if len(texts) <= 8 else f"{100 * min(shares):.0f} to {100 * max(shares):.0f}"
    return f"Heads have {several} % of their modules' multiply-accumulates"


def _others(values: dict[str, Any], unit: str, text: Any, everything: bool) -> Table:
    columns = ["", "batch", "parts", "devices", "memory", "fits", "time"]
    table = _table(f"The usual ways, with end-to-end accuracy; {unit}", columns)
    for row in values["alternatives"] if everything else _one_of_each(values["alternatives"]):
        fits = "yes" if row["fits"] else "no"
        counts = (str(row[key]) for key in ("batch_size", "parts", "devices"))
        table.add_row(row["name"], *counts, bytes_text(row["memory"]), fits, text(row["makespan"]))
    return table


def _one_of_each(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each way the fastest that fits, or else the one that needs least memory."""
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        key = (not row["fits"], row["makespan"] if row["fits"] else row["memory"])
        before = best.get(row["name"])
        if before is None or key < (not before["fits"], before["makespan"] if before["fits"] else before["memory"]):
            best[row["name"]] = row
    return list(best.values())


def _refused(console: Terminal, refused: Sequence[dict[str, Any]]) -> None:
    """What was not proposed: one line for each reason, with every K x G that it holds for."""
    reasons: dict[str, list[str]] = {}
    for row in refused:
        what = f"{row['depth']}x{row['width']} on {row['devices']}"
        what += f" ({bytes_text(row['memory'])})" if row["memory"] and "memory" in row["reason"] else ""
        reasons.setdefault(row["reason"], []).append(what)
    for reason, which in reasons.items():
        console.print(f"not proposed, {reason}: KxG {', '.join(which)}", highlight=False)


def _measured(console: Terminal, values: dict[str, Any]) -> None:
    measured = values["measured"]
    title = f"One step here, {values['precision']}, all groups of a module in one process"
    table = _table(title, ["module", "predicted time", "time", "spread", "predicted memory", "memory"])
    for row in measured["modules"]:
        table.add_row(
            row["module"],
            time_text(row["predicted_seconds"]),
            time_text(row["seconds"]),
            f"{row['spread']:.0%}",
            bytes_text(row["predicted_bytes"]),
            bytes_text(row["bytes"]),
        )
    console.print(table)
    hardware = measured["hardware"]
    console.print(
        f"{hardware.get('gpu', hardware['cpu'])}, {hardware['threads']} threads, "
        f"torch {measured['versions']['torch']}; rate from the end-to-end step: "
        f"{measured['device_flops']:.3g} operations/s ({time_text(measured['e2e_seconds'])})",
        highlight=False,
    )
