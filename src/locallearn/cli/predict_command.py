"""``locallearn predict DIR FOLDER``."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from locallearn.cli.early import check_run, working
from locallearn.cli.options import CheckpointName, parse
from locallearn.errors import UsageError, printable
from locallearn.files import write_atomically


@dataclass(frozen=True)
class PredictOptions:
    """Options of ``predict``."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DIR")]
    """Run folder."""
    folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FOLDER")]
    """Folder of images (searched with its sub-folders); they are resized to the network's input."""
    output: str | None = None
    """File to write; by default the screen."""
    checkpoint: CheckpointName = "last"
    device: str | None = None
    """Device, cpu or cuda[:N]; by default the one that the run was trained on."""
    data_root: str | None = None
    """Folder that holds the run's data set (its class names are needed), where it has moved."""
    json: bool = False
    """Write JSON instead of CSV."""


COLUMNS: tuple[str, ...] = ("image", "last_layer", "last_layer_probability", "ensemble", "ensemble_probability")


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(PredictOptions, arguments, "predict", "Classify a folder of images with a run.")
    check_run(options.run)
    if not Path(options.folder).is_dir():
        raise UsageError(f"FOLDER: {options.folder} is not a folder")
    with working("reading the run and classifying", options.json):
        from locallearn.training.finished import open_run

        opened = open_run(options.run, options.checkpoint, device=options.device, root=options.data_root)
        rows = opened.predict(Path(options.folder))
    if options.json:
        text = json.dumps(rows, indent=2) + "\n"
    else:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        text = buffer.getvalue()
    if options.output:
        write_atomically(Path(options.output), text)
    else:
        sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    return 0
