"""``locallearn embed DIR FOLDER --out FILE``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from locallearn.cli.console import say
from locallearn.cli.early import check_run, working
from locallearn.cli.options import CheckpointName, parse
from locallearn.errors import UsageError


@dataclass(frozen=True)
class EmbedOptions:
    """Options of ``embed``."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DIR")]
    """Run folder."""
    folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FOLDER")]
    """Folder of images (searched with its sub-folders); they are resized to the network's input."""
    out: str
    """File to write: .parquet with columns path and features, or .npz with arrays of these names."""
    module: int | Literal["last"] = "last"
    """Module whose features are written, from 1, or the last."""
    pool: int = 1
    """Average feature maps to this side [positions]; 1 is global average pooling."""
    overwrite: bool = False
    """Replace the file."""
    checkpoint: CheckpointName = "last"
    device: str | None = None
    """Device, cpu or cuda[:N]; by default the one that the run was trained on."""
    data_root: str | None = None
    """Folder that holds the run's data set (for its normalisation), where it has moved."""
    json: bool = False
    """Print what was written as JSON."""


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(EmbedOptions, arguments, "embed", "Write the features of a folder of images by a run's network.")
    check_run(options.run)
    if not Path(options.folder).is_dir():
        raise UsageError(f"FOLDER: {options.folder} is not a folder")
    with working("reading the run and its images", options.json):
        from locallearn.training.embed import embed
        from locallearn.training.finished import open_run

        opened = open_run(options.run, options.checkpoint, device=options.device, root=options.data_root)
        done = embed(opened, Path(options.folder), Path(options.out), options.module, options.pool, options.overwrite)
    if options.json:
        print(json.dumps({**done, "run": options.run, "pool": options.pool}, indent=2))
        return 0
    place = f"the end of module {done['module']} (block {done['block']})"
    say(f"{done['file']}: {done['features']} features of {done['images']:,} images, from {place}")
    return 0
