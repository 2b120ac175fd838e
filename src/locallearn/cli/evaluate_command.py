"""``locallearn evaluate DIR``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from locallearn.cli.console import Terminal
from locallearn.cli.early import check_run, working
from locallearn.cli.options import CheckpointName, parse


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of ``evaluate``."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DIR")]
    """Run folder."""
    checkpoint: CheckpointName = "last"
    device: str | None = None
    """Device, cpu or cuda[:N]; by default the one that the run was trained on."""
    data_root: str | None = None
    """Folder that holds the data, where it has moved."""
    json: bool = False
    """Print JSON."""


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(EvaluateOptions, arguments, "evaluate", "Evaluate a run on all test images of its data set.")
    check_run(options.run)
    with working("reading the run and evaluating it", options.json):
        from locallearn.training.finished import open_run

        opened = open_run(options.run, options.checkpoint, device=options.device, root=options.data_root)
        result = opened.evaluate()
    if options.json:
        print(json.dumps({"step": opened.step, **dataclasses.asdict(result)}, indent=2))
        return 0
    from locallearn.cli.tables import accuracy_text, node_table, node_title

    console = Terminal()
    console.print(f"{options.run}, checkpoint of step {opened.step}, {result.images:,} test images", highlight=False)
    console.print(accuracy_text(dataclasses.asdict(result)), highlight=False)
    console.print(node_table(result.nodes, node_title(result.protocol)))
    return 0
