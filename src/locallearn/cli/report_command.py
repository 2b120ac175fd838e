"""``locallearn report DIR...``: of runs, or of a folder of results of ``locallearn reproduce``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from locallearn.cli import houses
from locallearn.cli.console import say
from locallearn.cli.early import working
from locallearn.cli.options import check_ending, parse
from locallearn.errors import UsageError


@dataclass(frozen=True)
class ReportOptions:
    """Options of ``report``."""

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="DIR")]
    """Run folders; several are compared in one table. Or one folder of results of `locallearn reproduce`."""
    output: str | None = None
    """HTML file to write; by default report.html in the only folder, or report.html here for several."""
    markdown: str | None = None
    """Of results: also write the tables to this file, as Markdown, and the curves as SVG beside it."""
    figures: str | None = None
    """Of runs: also write every picture to this folder, as SVG and PDF."""
    csv: str | None = None
    """Of runs: also write the figures of the comparison to this file, as CSV, a row a run."""


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(ReportOptions, arguments, "report", "Write one HTML report of runs, or of results.")
    folders = [Path(run) for run in options.runs]
    check_ending("--output", options.output, ".html", ".htm")
    check_ending("--markdown", options.markdown, ".md")
    check_ending("--csv", options.csv, ".csv")
    output = Path(options.output) if options.output else (folders[0] if len(folders) == 1 else Path()) / "report.html"
    if len(folders) == 1 and _is_results(folders[0]):
        if options.figures or options.csv:
            raise UsageError("--figures and --csv: of runs; results of a study have --markdown")
        with working("reading the results and drawing"):
            _report_results(folders[0], output, options.markdown)
        return 0
    if options.markdown:
        raise UsageError("--markdown: needs exactly one folder of results, as locallearn reproduce makes it")
    with working("importing matplotlib and drawing"):
        from locallearn.report.figures import save
        from locallearn.report.html import write_report
        from locallearn.report.page import write_page
        from locallearn.report.records import read_runs
        from locallearn.report.seeds import to_csv

        say(write_report(folders, output))
        if options.csv:
            say(write_page(to_csv(read_runs(folders)), Path(options.csv)))
        if options.figures:
            paths = save(read_runs(folders), Path(options.figures))
            say(f"{options.figures}: {len(paths)} files")
    return 0


def _is_results(folder: Path) -> bool:
    """Whether this folder holds records of one study, or of several in sub-folders."""
    patterns = ("*-seed*.json", "*/*-seed*.json")
    return not (folder / "config.toml").exists() and any(any(folder.glob(pattern)) for pattern in patterns)


def _report_results(folder: Path, output: Path, markdown: str | None) -> None:
    study = houses.part("thesis", "studies")  # imports torch, which the report of runs does without
    if study is None:
        raise UsageError(f"{folder}: results of a study need locallearn.thesis, which is not installed")
    studies = study.read_studies(folder)
    say(study.write_html(studies, output))
    if markdown:
        say(study.write_markdown(studies, Path(markdown)))
