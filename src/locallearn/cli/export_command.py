"""``locallearn export DIR``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from locallearn.cli.console import say
from locallearn.cli.early import check_run, working
from locallearn.cli.options import CheckpointName, parse

Format = Literal["safetensors", "torch-export", "onnx"]


@dataclass(frozen=True)
class ExportOptions:
    """Options of ``export``."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DIR")]
    """Run folder."""
    output: str | None = None
    """Folder to write to; by default DIR/export."""
    formats: tuple[Format, ...] | None = None
    """What to write; by default all, onnx where its packages are installed."""
    ensemble: bool = False
    """Keep the auxiliary heads and write the layerwise ensemble, which gives class probabilities."""
    checkpoint: CheckpointName = "last"
    data_root: str | None = None
    """Folder that holds the run's data set (for its normalisation and class names), where it has moved."""


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    description = "Write a run's network without auxiliary heads: pixels in [0, 1] in, scores out."
    options = parse(ExportOptions, arguments, "export", description)
    check_run(options.run)
    folder = Path(options.output) if options.output else Path(options.run) / "export"
    with working("reading the run and writing its network"):
        from locallearn.training import export_files
        from locallearn.training.export import accuracy, export, exported
        from locallearn.training.finished import open_run

        formats = options.formats or get_args(Format)
        left_out = options.formats is None and not export_files.can_write_onnx()
        if left_out:
            formats = tuple(name for name in formats if name != "onnx")
        opened = open_run(options.run, options.checkpoint, device="cpu", root=options.data_root)
        paths = export(opened, folder, formats, options.ensemble)
        found = accuracy(exported(opened, options.ensemble), opened) if opened.network.has_classifier else None
    for path in paths:
        say(path)
    if left_out:
        print("ONNX is left out, for its packages are missing: pip install 'locallearn[onnx]'", file=sys.stderr)
    if found is not None:
        print(f"test accuracy of what was exported: {found:.2%}", file=sys.stderr)
    return 0
