"""``locallearn demo``: the main job on the embedded digits, with end-to-end training and DGL beside it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from locallearn.cli.console import Terminal
from locallearn.cli.early import working
from locallearn.cli.options import parse
from locallearn.errors import UsageError
from locallearn.recipes.named import recipe


@dataclass(frozen=True)
class DemoOptions:
    """Options of ``demo``."""

    run: str | None = None
    """Folder for the runs and the report; by default runs/demo, or runs/demo-2 and so on where that is taken."""
    seed: int = 0
    """Seed of every run."""
    json: bool = False
    """Print the summaries as JSON and no progress."""


METHODS = ("e2e", "dgl", "gn-dgl")


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(
        DemoOptions,
        arguments,
        "demo",
        "Train e2e, DGL (K=4) and GN-DGL (K=4, G=2) on scikit-learn's digits, compare them, write a report.",
    )
    folder = Path(options.run) if options.run else _free(Path("runs/demo"))
    if folder.exists():
        raise UsageError(f"--run: {folder} is there already; name another folder")
    with working("importing torch", options.json):
        from locallearn.cli.progress import LiveProgress
        from locallearn.training import runs

    folders = [folder / method for method in METHODS]
    summaries = []
    with LiveProgress(quiet=options.json) as progress:
        for method, run_folder in zip(METHODS, folders, strict=True):
            found = recipe(method)
            everything = dataclasses.replace(found.data, validation=0.0)  # last epochs are compared, not best ones
            config = dataclasses.replace(found, seed=options.seed, data=everything)
            summaries.append(runs.train(config, run_folder, progress))
    from locallearn.cli.tables import summary_table
    from locallearn.report.html import write_report

    report = write_report(folders, folder / "report.html")
    if options.json:
        print(json.dumps(summaries, indent=2))
        return 0
    console = Terminal()
    console.print(summary_table(folders))
    console.print(f"report: {report}")
    return 0


def _free(folder: Path) -> Path:
    """The folder, or the first of folder-2, folder-3, ... that is not there."""
    candidate, n = folder, 1
    while candidate.exists():
        n += 1
        candidate = folder.with_name(f"{folder.name}-{n}")
    return candidate
