"""``locallearn reproduce`` and ``locallearn report`` of its results, with real workers on a few digits."""

import io
import json
import os
import signal
import time
from pathlib import Path

import pytest
import small_results
from rich.console import Console

from locallearn.cli.main import main
from locallearn.thesis.catalogue import LAYOUTS
from locallearn.thesis.cell_records import record_path, write_record
from locallearn.thesis.estimate import Estimates
from locallearn.thesis.protocols import Study
from locallearn.thesis.queue_display import QueueDisplay
from locallearn.thesis.reproduce import ReproduceOptions, plan
from locallearn.thesis.studies import print_study, study_data
from programs import Program

SHORT = ["--epochs", "3", "--train-limit", "256", "--threads", "1"]
CELLS = ["digits-resnet8-e2e", "digits-resnet8-dgl-k4", "digits-resnet8-gn-dgl-k2-g2"]
STUDY = Study("quick", epochs=3, train_limit=256)


def reproduce(folder, *arguments):
    return Program(["-m", "locallearn", "reproduce", "digits", *SHORT, *arguments], folder=folder)


def wait_for(condition, process):
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def events(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_killed_and_called_again_by_two_at_once(tmp_path):
    """One cell is finished, kill -9 comes in the second; then two calls share the rest and both see the end."""
    results, runs = tmp_path / "results" / STUDY.name, tmp_path / "runs" / "reproduce" / STUDY.name
    records = [record_path(tmp_path / "results", STUDY, cell, 0) for cell in CELLS]
    write_record(records[0], small_results.record(CELLS[0], last_layer=12.34, study=STUDY))
    finished = records[0].read_bytes()
    first = reproduce(tmp_path)
    second = runs / f"{CELLS[1]}-seed0-{STUDY.digest(CELLS[1])}"
    wait_for((second / "metrics.jsonl").exists, first)
    first.kill()
    first.communicate()
    two = [reproduce(tmp_path, "--json") for _ in "ab"]
    outputs = [process.communicate(timeout=200) for process in two]
    assert [process.returncode for process in two] == [0, 0], outputs
    for output, _ in outputs:
        found = json.loads(output)
        assert sorted(found["finished"]) == sorted(f"{cell} seed 0" for cell in CELLS)
        assert (found["study"], found["failed"], found["left"], found["left_out"]) == (STUDY.name, [], [], [])
        measured = [value["measured"] for value in found["tables"][0]["rows"][0][1:]]
        accuracies = [json.loads(path.read_text())["accuracy"] for path in records]
        keys = ("last_layer", "last_layer", "ensemble")
        assert measured == [f"{100 * a[key]:.2f}" for a, key in zip(accuracies, keys, strict=True)]
        assert measured[0] == "12.34"
    assert records[0].read_bytes() == finished
    assert sorted(path.name for path in results.iterdir()) == sorted(path.name for path in records)
    trained = {path.parent.name: events(path.parent) for path in runs.glob("*/metrics.jsonl")}
    assert sorted(trained) == sorted(f"{cell}-seed0-{STUDY.digest(cell)}" for cell in CELLS[1:])
    for name, told in trained.items():
        assert [event["epoch"] for event in told if event["event"] == "train"] == [1, 2, 3]
        kinds = [event["event"] for event in told]
        begun = [kind for kind in kinds if kind in ("start", "resume")]
        assert begun[0] == "start"
        assert len(begun) <= 1 + (name == second.name)  # which was killed before its first step, or after it
    assert (tmp_path / "results" / "report.html").read_text().startswith("<!doctype html>")


def test_ctrl_c_leaves_what_is_unfinished_and_exits_with_1(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(QueueDisplay, "on_tick", lambda self, running: os.kill(os.getpid(), signal.SIGINT))
    assert main(["reproduce", "digits", *SHORT]) == 1
    out = capsys.readouterr().out
    assert "0 finished, 0 failed, 3 left" in out
    assert "the same command goes on with what is left" in out


def test_the_budget(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "digits", *SHORT, "--seeds", "2", "--budget", "0.000001", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["left"] == [f"{cell} seed {seed}" for seed in (0, 1) for cell in CELLS]  # seeds first
    assert (found["finished"], found["failed"], found["interrupted"]) == ([], [], False)
    assert not Path("results").exists()


def test_an_epoch_is_a_line_with_the_time_left(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (job,) = plan(ReproduceOptions(tables=("digits",)), STUDY, [CELLS[0]], 1)
    display = QueueDisplay(1, 0, Estimates(tmp_path))
    display.on_start(job)
    display.on_tick([job])  # nothing yet
    job.run.mkdir(parents=True)
    (job.run / "metrics.jsonl").write_text('{"event": "train", "epoch": 1, "seconds": 7.5}\n')
    QueueDisplay(1, 0, Estimates(tmp_path)).on_start(job)
    assert capsys.readouterr().err.splitlines() == [
        "1 cells to train",
        f"{CELLS[0]} seed 0: starts",
        "1 cells to train",
        f"{CELLS[0]} seed 0: goes on after epoch 1 of 3, about 15.0 s left",
    ]
    time.sleep(1.1)  # it looks once a second
    display.on_tick([job])
    assert capsys.readouterr().err == f"{CELLS[0]} seed 0: epoch 1 of 3 (7.5 s, about 15.0 s left)\n"


def test_list_tells_how_far_cells_are(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    study = Study("quick")
    write_record(record_path(Path("results"), study, CELLS[2], 0), small_results.record(CELLS[2]))
    run = Path("runs/reproduce/quick") / f"{CELLS[1]}-seed0-{study.digest(CELLS[1])}"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"event": "train", "epoch": 1, "seconds": 7.5}\n')
    assert main(["reproduce", "digits", "--list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"cell": CELLS[0], "seed": 0, "state": "not started", "seconds_left": None},
        {"cell": CELLS[1], "seed": 0, "state": "1 of 2 epochs done", "seconds_left": 7.5},
        {"cell": CELLS[2], "seed": 0, "state": "finished", "seconds_left": 0.0},
    ]
    assert main(["reproduce", "table-3.4", "digits", "--protocol", "paper", "--list"]) == 0
    assert capsys.readouterr().out.count("not started") == 24  # another protocol has other cells


def test_single_cells_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cells = ["cifar10-resnet32-gn-dgl-k2-g2", "cifar10-resnet32-single-thread-g2"]
    record = small_results.record(cells[0], last_layer=50.0, ensemble=60.0)
    write_record(record_path(Path("results"), Study("quick"), cells[0], 0), record)
    assert main(["reproduce", *cells, "--budget", "0.000001", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["finished"], found["left"]) == ([f"{cells[0]} seed 0"], [f"{cells[1]} seed 0"])
    (table,) = found["tables"]
    (first, value), (second, none) = table["rows"]
    assert [first, second] == cells
    assert (value["measured"], value["published"], none["measured"]) == ("60.00", "89.68", "–")


def test_a_failing_cell_is_one_line_and_exit_code_1(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("locallearn.thesis.asked.cells_of", lambda table: ["cifar10-resnet32-e2e"])
    assert main(["reproduce", "table-3.6", "--data.root", str(tmp_path / "nothing"), "--threads", "1"]) == 1
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if "failed" in line]
    assert len(lines) == 1
    assert lines[0].startswith("cifar10-resnet32-e2e seed 0: failed: ")
    assert "nothing" in lines[0]
    assert "0 finished, 1 failed, 0 left" in captured.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "TABLE is missing; for example: locallearn reproduce table-3.4 --list"),
        (["table-9"], "TABLE: 'table-9' is not known; expected a cell or one of table-3.1, "),
        (["digits", "--protocol", "fast"], "--protocol: 'fast' is not known; expected one of paper, quick"),
        (["digits", "--seeds", "0"], "--seeds: 0 is not valid; expected a whole number of at least 1"),
        (["digits", "--budget", "-1"], "--budget: -1.0 is not valid; expected seconds above 0"),
        (["digits", "--train-limit", "1"], "--train-limit: 1 is not valid"),
        (["sweep"], "--protocol: 'quick' does not fit cifar10-resnet32-e2e-rate0.1-decay0.0001; expected sweep"),
        (["digits", "--protocol", "sweep"], "'sweep' does not fit digits-resnet8-e2e; expected one other than sweep"),
        (["sweep", "--protocol", "sweep", "--train-limit", "45000"], "45000 is not valid; expected at most 20000"),
        (["digits", "--epoch", "1"], "Did you mean --epochs?"),
    ],
)
def test_wrong_calls(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_report_of_results(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    strange = Study("quick", epochs=4)
    for cell, accuracy in (("cifar10-resnet32-e2e", 91.0), ("cifar10-resnet32-dgl-k4", 87.0)):
        record = small_results.record(cell, last_layer=accuracy)
        write_record(record_path(Path("results"), Study("quick"), cell, 0), record)
    other = small_results.record("cifar10-resnet32-e2e", seed=1, last_layer=50.0, study=strange)
    write_record(Path("results/quick/cifar10-resnet32-e2e-seed1.json"), other)
    assert main(["report", "results", "--markdown", "docs/results.md"]) == 0
    assert capsys.readouterr().out.splitlines() == ["results/report.html", "docs/results.md"]
    text = Path("docs/results.md").read_text()
    assert "| 1 | **91.00** (1)<br>93.01 −2.01 | **1.000**<br>1 0.000 |" in text  # and not the mean with 50
    assert f"- cifar10-resnet32-e2e seed 1: left out, its digest is {other['digest']}" in text
    assert "**cannot tell**: At K*G = 4, GN-DGL (K = 2, G = 2) beats DGL (K = 4) at a smaller node" in text
    assert "Table 3.1" not in text  # nothing of it is measured
    assert "91.00" in Path("results/report.html").read_text()
    Path("results/quick/bad-seed0.json").write_text("{")
    assert main(["report", "results"]) == 0  # the others are there all the same
    page = Path("results/report.html").read_text()
    assert "bad-seed0.json" in page
    assert "91.00" in page


def test_markdown_is_for_results_only(tmp_path, capsys):
    assert main(["report", str(tmp_path), "--markdown", "x.md"]) == 2
    assert "--markdown: needs exactly one folder of results" in capsys.readouterr().err


@pytest.mark.parametrize("width", [60, 80, 120, 240])
def test_no_number_is_cut_off_on_a_narrow_terminal(width):
    names = ["table-3.1", "table-3.4", "table-3.6"]
    records = small_results.published_records([LAYOUTS[name] for name in names])
    console = Console(width=width, file=io.StringIO(), record=True)
    print_study(console, study_data(Study("quick"), names, records))
    text = console.export_text()
    assert "…" not in text
    assert all(number in text for number in ("92.25 0.00", "88.91 0.00", "23.072 0.000", "82.84 0.00"))


def test_claims_that_lack_cells_are_only_counted():
    """Of two cells the terminal has what they say; the report names what is missing."""
    names = ["cifar10-resnet32-gn-dgl-k2-g2", "cifar10-resnet32-dgl-k4"]
    records = [small_results.record(name, last_layer=80.0, ensemble=81.0) for name in names]
    console = Console(width=120, file=io.StringIO(), record=True)
    print_study(console, study_data(Study("quick"), names, records))
    text = console.export_text()
    assert "cannot tell: At K*G = 4, GN-DGL (K = 2, G = 2) beats DGL (K = 4) at a smaller node" in text
    assert "8 more of its comparisons need cells that are not trained yet" in text  # of Table 3.6's nine networks
    assert "1 claim needs cells that are not trained yet; the report names them" in text  # InfoPro beats DGL
    assert "missing" not in text


def test_the_runtime_reaches_the_workers():
    options = ReproduceOptions(tables=("digits",), runtime="threads")
    (job,) = plan(options, Study("quick"), ["digits-resnet8-gn-dgl-k2-g2"], 2)
    assert (job.request["runtime"], job.request["threads"]) == ("threads", 2)
