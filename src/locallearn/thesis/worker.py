"""The process that trains one cell: ``python -m locallearn.thesis.worker`` with a request on standard input.

It keeps reading after the request. When its queue dies, however that happens, standard input ends, and training stops
between two steps with a checkpoint: no cell is trained without somebody waiting for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from locallearn.config import RunConfig, RuntimeName
from locallearn.core.methods import CROSS_ENTROPY, methods
from locallearn.costs.nodes import cost
from locallearn.errors import LocalLearnError
from locallearn.thesis import ablations, cell_scores, chapter4, sweep
from locallearn.thesis.cell_records import make_record, write_record
from locallearn.thesis.matrix import cells
from locallearn.thesis.protocols import Study
from locallearn.training import runs
from locallearn.training.events import read_events
from locallearn.training.finished import open_run
from locallearn.training.probe import probe
from locallearn.training.record import RunFolder


@dataclasses.dataclass(frozen=True)
class Request:
    """What a worker is asked to do.

    Attributes:
        cell: name of the cell.
        study: fields of ``Study``.
        seed: the seed.
        run: folder of the run; it is continued where it is there.
        record: file of the result.
        root: folder that holds the data.
        download: fetch the data if they are not there.
        device: device to train on.
        threads: CPU threads.
        runtime: one that trains what the inline runtime trains.
        scorer: folder of the run that scores pairs.
    """

    cell: str
    study: dict[str, Any]
    seed: int
    run: str
    record: str
    root: str | None = None
    download: bool = False
    device: str | None = None
    threads: int | None = None
    runtime: RuntimeName = "inline"
    scorer: str | None = None


def train_cell(request: Request) -> None:
    """Train a cell, or continue it, and file its record.

    Raises:
        LocalLearnError: as ``ll.train``.
    """
    study, run = Study(**request.study), Path(request.run)
    wanted = study.config(request.cell, request.seed)
    if (run / "config.toml").is_file():
        place = {"device": request.device, "threads": request.threads, "root": request.root}
        summary = runs.resume(run, **place, runtime=request.runtime)
    else:
        summary = runs.train(_placed(wanted, request), run)
    if summary["digest"] != study.digest(request.cell):
        raise LocalLearnError(f"{run} is of another configuration than {request.cell}; move it away")
    counted = cost(wanted, cells()[request.cell].image)
    record = make_record(request.cell, study, RunFolder(run).config(), summary, _curve(run), counted)
    if chapter4.is_self_supervised(wanted):
        record |= _probed(run, study, request)
        record["accuracy"][chapter4.FIELD] = record["probe"]["points"][-1]["accuracy"]
    record["accuracy"] |= _more_accuracies(run, study, request)
    write_record(Path(request.record), record)


def _more_accuracies(run: Path, study: Study, request: Request) -> dict[str, float]:
    """What tables show beside the accuracies of every evaluation."""
    config = study.config(request.cell, request.seed)
    found = {}
    opened = open_run(run, device=request.device, root=request.root)
    if study.held_out:
        found[sweep.FIELD] = cell_scores.held_out(opened, study.held_out)
    if methods.build(config.method, config).decoupled_classifier and config.objective.loss in (None, CROSS_ENTROPY):
        found[ablations.LAST_HEADS] = cell_scores.last_heads(opened)
    return found


def _probed(run: Path, study: Study, request: Request) -> dict[str, Any]:
    """Linear probes of all blocks at the end, and of the last one at every checkpoint that was kept (Fig. A.4)."""
    place: dict[str, Any] = {"device": request.device, "root": request.root}
    opened = open_run(run, **place)
    found: dict[str, Any] = {"probe": probe(opened, study.probe)}
    every = opened.config.checkpoint.keep_epochs
    if every:
        epochs = range(every, opened.config.train.epochs + 1, every)
        at_the_end = dataclasses.replace(study.probe, depth="last")
        per_epoch = opened.step // opened.config.train.epochs
        found["probes"] = []
        for epoch in epochs:
            record = probe(open_run(run, str(epoch * per_epoch), **place), at_the_end)
            found["probes"].append({"epoch": epoch, "accuracy": record["points"][-1]["accuracy"]})
    return found


def _placed(config: RunConfig, request: Request) -> RunConfig:
    """The configuration with what depends on this machine."""
    data = dataclasses.replace(config.data, root=request.root, download=request.download)
    train = dataclasses.replace(config.train, device=request.device, threads=request.threads)
    config = dataclasses.replace(config, data=data, train=train, runtime=request.runtime)
    if request.scorer is None:
        return config
    modification = dataclasses.replace(config.objective.modification, scorer_run=request.scorer)
    return dataclasses.replace(config, objective=dataclasses.replace(config.objective, modification=modification))


def _curve(run: Path) -> list[dict[str, Any]]:
    """Epoch, last layer and ensemble of every evaluation, and the last node's training loss in that epoch."""
    lines = read_events(run / "metrics.jsonl")
    for line in lines:
        if line.problem:
            print(f"{run / 'metrics.jsonl'}:{line.number}: {line.problem}; left out of the curve", file=sys.stderr)
    events = [line.event for line in lines if line.event is not None]
    losses: dict[int, float] = {}
    for event in events:
        if event["event"] == "train":
            with contextlib.suppress(LookupError, TypeError):  # a node without a loss
                losses[event["epoch"]] = event["nodes"][-1]["loss"]
    keys = ("epoch", "last_layer", "ensemble")
    return [
        {**{key: event[key] for key in keys}, "loss": losses[event["epoch"]]}
        for event in events
        if event["event"] == "evaluate" and event.keys() >= set(keys) and event["epoch"] in losses
    ]


def _stop_with_the_queue() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    """Do what the request on standard input asks, and return the exit code."""
    request = Request(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_stop_with_the_queue, daemon=True).start()
    try:
        train_cell(request)
    except LocalLearnError as error:
        print("locallearn: " + " ".join(str(error).split()), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
