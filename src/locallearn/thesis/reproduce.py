"""Train what is missing of the thesis's tables, and draw them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from locallearn.cli.console import Terminal
from locallearn.thesis import cell_records, chapter4, claims
from locallearn.thesis import results_grids as drawing
from locallearn.thesis.estimate import Estimates
from locallearn.thesis.protocols import Study
from locallearn.thesis.queue import CellJob, Outcome, Queue, cores, default_jobs
from locallearn.thesis.queue_display import QueueDisplay, print_list
from locallearn.thesis.reproduce_command import ReproduceOptions
from locallearn.thesis.studies import print_study, read_studies, study_data, write_html
from locallearn.thesis.worker import Request


def reproduce(options: ReproduceOptions, study: Study, names: Sequence[str]) -> int:
    """Train these cells of a study, draw what the options ask for, and return the exit code."""
    parallel = options.jobs or default_jobs(options.device)
    jobs = plan(options, study, names, options.threads or max(1, cores() // parallel))
    estimates = Estimates(Path(options.runs))
    if options.list:
        return print_list(jobs, estimates, options.json)
    queue = Queue(jobs, parallel)
    with QueueDisplay(len(jobs), len(queue.outcome.finished), estimates, quiet=options.json) as queue.observer:
        outcome = queue.run(options.budget)
    return _finish(options, study, outcome)


def plan(options: ReproduceOptions, study: Study, names: Sequence[str], threads: int) -> list[CellJob]:
    """One job for each cell and seed, in order: seed by seed, cells as ``claims.in_order`` has them."""
    return [
        _job(options, study, cell, seed, threads) for seed in range(options.seeds) for cell in claims.in_order(names)
    ]


def _job(options: ReproduceOptions, study: Study, cell: str, seed: int, threads: int) -> CellJob:
    wanted = study.digest(cell)
    record = cell_records.record_path(Path(options.results), study, cell, seed)
    run, scorer = _run_folder(options, study, cell, seed), chapter4.scorer_of(cell)
    needed = _run_folder(options, study, scorer, seed) if scorer else None
    request = Request(
        cell=cell,
        study=dataclasses.asdict(study),
        seed=seed,
        run=str(run),
        record=str(record),
        root=options.data.root,
        download=options.data.download,
        device=options.device,
        threads=threads,
        runtime=options.runtime,
        scorer=str(needed) if needed else None,
    )
    return CellJob(
        f"{cell} seed {seed}",
        run,
        dataclasses.asdict(request),
        lambda: cell_records.is_finished(record, wanted, seed),
        lambda: needed is None or (needed / "summary.json").is_file(),
    )


def _run_folder(options: ReproduceOptions, study: Study, cell: str, seed: int) -> Path:
    """The digest in its name keeps a run apart from one of another configuration."""
    return Path(options.runs) / study.name / f"{cell}-seed{seed}-{study.digest(cell)}"


def _finish(options: ReproduceOptions, study: Study, outcome: Outcome) -> int:
    """Print the tables, write the report, and return the exit code."""
    folder = Path(options.results)
    problems: list[str] = []
    records = cell_records.read_records(folder / study.name, problems)
    data = study_data(study, list(dict.fromkeys(options.tables)), records, problems)
    report = write_html(read_studies(folder), folder / "report.html") if data["measured"] else None
    code = 1 if outcome.failed or outcome.interrupted else 0
    if options.json:
        print(json.dumps(_as_json(data, outcome), indent=2))
        return code
    console = Terminal()
    if not console.is_terminal:
        console.width = 240  # a file or a pipe is as wide as a table needs
    print_study(console, data)
    for job, message in outcome.failed:
        console.print(f"failed: {job.name}: {message}", style="red", soft_wrap=True)
    console.print(f"{len(outcome.finished)} finished, {len(outcome.failed)} failed, {len(outcome.left)} left")
    if outcome.left:
        console.print("the same command goes on with what is left")
    if report:
        console.print(f"report: {report}", soft_wrap=True)
    return code


def _as_json(data: drawing.StudyData, outcome: Outcome) -> dict[str, Any]:
    return {
        "study": data["name"],
        "finished": [job.name for job in outcome.finished],
        "failed": [{"job": job.name, "error": message} for job, message in outcome.failed],
        "left": [job.name for job in outcome.left],
        "interrupted": outcome.interrupted,
        "tables": [
            {
                "name": grid.name,
                "title": grid.title,
                "headings": grid.headings,
                "rows": [
                    [label, *(value if isinstance(value, str) else value._asdict() for value in values)]
                    for label, values in grid.rows
                ],
            }
            for grid in drawing.grids(data)
        ],
        "claims": data["claims"],
        "left_out": data["notes"],
    }
