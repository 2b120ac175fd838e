"""``locallearn report DIR...``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from locallearn.cli.options import parse
from locallearn.report.html import write_report


@dataclass(frozen=True)
class ReportOptions:
    """Options of ``report``."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Run folders; several are compared in one table."""
    output: str | None = None
    """HTML file to write; by default report.html in the only run folder, or report.html here for several."""


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(ReportOptions, arguments, "report", "Write one self-contained HTML report of runs.")
    runs = [Path(run) for run in options.runs]
    output = Path(options.output) if options.output else (runs[0] if len(runs) == 1 else Path()) / "report.html"
    print(write_report(runs, output))
    return 0
