"""``locallearn probe DIR``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.progress import Progress
from rich.table import Table

from locallearn.cli.console import Terminal
from locallearn.cli.early import check_run, working
from locallearn.cli.options import CheckpointName, parse
from locallearn.config import ProbeConfig


@dataclass(frozen=True)
class ProbeOptions:
    """Options of ``probe``."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DIR")]
    """Run folder."""
    config: Annotated[ProbeConfig, tyro.conf.arg(name="")] = field(default_factory=ProbeConfig)
    name: str | None = None
    """Write DIR/probe-NAME.json; by default DIR/probe.json."""
    overwrite: bool = False
    """Replace a record of that name."""
    checkpoint: CheckpointName = "last"
    device: str | None = None
    """Device, cpu or cuda[:N]; by default the one that the run was trained on."""
    data_root: str | None = None
    """Folder that holds the data, where it has moved."""
    json: bool = False
    """Print the record as JSON and no progress."""


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    description = "Train classifiers on the frozen features of a run, at every depth in one pass, and test them."
    options = parse(ProbeOptions, arguments, "probe", description)
    check_run(options.run)
    with working("reading the run", options.json):
        from locallearn.training.finished import open_run
        from locallearn.training.probe import probe
        from locallearn.training.probe_record import record_path, write_record

        opened = open_run(options.run, options.checkpoint, device=options.device, root=options.data_root)
    path = record_path(Path(options.run), options.name, options.overwrite)
    with Progress(console=Terminal(stderr=True), transient=True, disable=options.json) as progress:
        found = probe(opened, options.config, _shown(progress, options.config.epochs))
    found["protocol"]["checkpoint"] = options.checkpoint
    write_record(path, found)
    if options.json:
        print(json.dumps({"file": str(path), **found}, indent=2))
        return 0
    console = Terminal()
    console.print(_table(found))
    console.print(f"{found['protocol_text']}; run seed {opened.config.seed}", highlight=False)
    passes = f"{found['forward_passes']} forward passes of the network, {found['seconds']:.1f} s"
    console.print(f"{passes}   record: {path}", highlight=False)
    return 0


def _shown(progress: Progress, epochs: int) -> Callable[[int, float], None]:
    task = progress.add_task("probes", total=epochs)

    def on_epoch(epoch: int, loss: float) -> None:
        progress.update(task, completed=epoch, description=f"probes, training loss {loss:.3f}")

    return on_epoch


def _table(found: dict[str, Any]) -> Table:
    table = Table(title="Accuracy of probes over depth [%]")
    for title in ("depth", "block", "module", "features", "training", "test"):
        table.add_column(title, justify="left" if title == "block" else "right")
    for point in found["points"]:
        accuracies = (f"{100 * point[key]:.2f}" for key in ("train_accuracy", "accuracy"))
        texts = (point["depth"], point["block"], point["module"], point["features"])
        table.add_row(*(str(text) for text in texts), *accuracies, end_section=point["ends_module"])
    return table
