"""``locallearn pack SOURCE TARGET``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from locallearn.cli.console import Terminal
from locallearn.cli.early import working
from locallearn.cli.options import check_at_least, parse


@dataclass(frozen=True)
class PackOptions:
    """Options of ``pack``."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """Folder with train/CLASS/*.jpg and test/CLASS/*.jpg (or val), with train*.parquet and test*.parquet, or with
    train*.tar and test*.tar."""
    target: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TARGET")]
    """Folder to make; one that was begun and interrupted is finished."""
    shorter_side: int | None = None
    """Make images whose shorter side is longer that small, as JPEG of quality 95 [pixels]; by default files stay as
    they are."""
    skip_damaged: bool = False
    """Leave out images that cannot be decoded, instead of refusing them."""
    shard_mib: int = 1024
    """Size from which a new file is begun [MiB]."""
    json: bool = False
    """Print what was written as JSON."""

    def __post_init__(self) -> None:
        check_at_least(self, shorter_side=4, shard_mib=1)


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(PackOptions, arguments, "pack", "Pack images, so that a set larger than memory can be read.")
    with working("importing torch", options.json):
        from locallearn.data.packing import pack
    from rich.progress import Progress

    console = Terminal(stderr=True)
    with Progress(console=console, transient=True, disable=options.json or not console.is_terminal) as progress:
        task = progress.add_task("packing")
        packed = pack(
            options.source,
            options.target,
            options.shorter_side,
            options.skip_damaged,
            options.shard_mib << 20,
            lambda done, total: progress.update(task, completed=done, total=total),
        )
    if options.json:
        print(json.dumps(packed, indent=2))
        return 0
    for split in ("train", "test"):
        part = packed[split]
        left_out = f", {part['left_out']:,} left out" if part["left_out"] else ""
        print(f"{split}: {part['images']:,} images in {part['bytes'] / 2**20:,.1f} MiB{left_out}")
    print(f"train with: --data.name packed --data.root {options.target}")
    return 0
