"""``locallearn train RECIPE [--option value ...] --run DIR`` and ``locallearn train --resume DIR``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from locallearn import plugins
from locallearn.cli.options import parse
from locallearn.cli.progress import LiveProgress
from locallearn.cli.tables import node_table, node_title, summary_table
from locallearn.config import RunConfig
from locallearn.errors import UsageError
from locallearn.experiments.recipes import recipe
from locallearn.report.html import write_report
from locallearn.training import runs


@dataclass(frozen=True)
class TrainOptions:
    """Options of ``train``: the configuration of the run, and where it goes."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    run: str | None = None
    """Folder of the run; by default runs/RECIPE-seedN."""
    overwrite: bool = False
    """Replace the run in that folder."""
    json: bool = False
    """Print the summary as JSON and no progress."""


@dataclass(frozen=True)
class ResumeOptions:
    """Options of ``train --resume``; everything else is in the run's config.toml."""

    resume: str
    """Folder of the run to continue."""
    device: str | None = None
    """Continue on another device, cpu or cuda[:N]."""
    threads: int | None = None
    """Continue with another number of CPU threads."""
    data_root: str | None = None
    """Folder that holds the data, where it has moved."""
    json: bool = False
    """Print the summary as JSON and no progress."""


USAGE = """Train a recipe as K x G nodes: locallearn train RECIPE [--option value ...] --run DIR.

RECIPE is a method (e2e, dgl, gn-dgl, single-thread) for the embedded digits, or MODEL-METHOD such as
resnet32-gn-dgl; `locallearn recipes` lists them. Continue a run with: locallearn train --resume DIR."""


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    if any(argument.split("=")[0] == "--resume" for argument in arguments):
        options = parse(ResumeOptions, arguments, "train", "Continue a run.")
        folder = Path(options.resume)
        with LiveProgress(quiet=options.json) as progress:
            summary = runs.resume(
                folder, progress, device=options.device, threads=options.threads, root=options.data_root
            )
        return _finish(folder, summary, options.json)
    name = arguments[0] if arguments and not arguments[0].startswith("-") else None
    if name is None and not {"-h", "--help"} & set(arguments):
        raise UsageError("train: RECIPE is missing; for example: locallearn train gn-dgl --run runs/first")
    default = TrainOptions(dataclasses.replace(recipe(name or "gn-dgl"), plugins=plugins.loaded()))
    options = parse(TrainOptions, arguments[1:] if name else arguments, f"train {name or 'RECIPE'}", USAGE, default)
    folder = Path(options.run or f"runs/{name}-seed{options.config.seed}")
    with LiveProgress(quiet=options.json) as progress:
        summary = runs.train(options.config, folder, progress, options.overwrite)
    return _finish(folder, summary, options.json)


def _finish(folder: Path, summary: dict[str, Any], as_json: bool) -> int:
    report = write_report([folder], folder / "report.html")
    if as_json:
        print(json.dumps(summary, indent=2))
        return 0
    console = Console()
    console.print(summary_table([folder]))
    console.print(node_table(summary["nodes"], node_title(summary["accuracy"].get("protocol"))))
    console.print(f"run: {folder}   report: {report}")
    return 0
