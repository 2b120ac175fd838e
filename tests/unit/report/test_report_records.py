"""Run folders are read whole or refused with one line that names the file."""

import json
import math
from pathlib import Path

import pytest

from locallearn.errors import UsageError
from locallearn.report.records import read_run, read_runs, series


def refusal(path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        read_run(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def add_line(path: Path, line: str) -> None:
    with (path / "metrics.jsonl").open("a") as file:
        file.write(line)


def test_a_finished_run_is_read_as_written(make_run):
    path = make_run("dgl-k4", method="dgl", depth=4, seed=3)
    record = read_run(path)
    written = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert record.name == "dgl-k4"
    assert (record.config.method, record.config.depth, record.config.seed) == ("dgl", 4, 3)
    assert record.train == [event for event in written if event["event"] == "train"]
    assert record.evaluations == [event for event in written if event["event"] == "evaluate"]
    assert record.summary == json.loads((path / "summary.json").read_text())
    assert (record.status, record.started, record.resumes) == ("finished", "2026-11-22T19:00:00Z", 0)


def test_nodes_come_in_order_with_the_classifier_last(make_run):
    path = make_run(depth=2, groups=2)
    assert read_run(path).nodes == ((1, 1), (1, 2), (2, 1), (2, 2), ("classifier", 1))


def test_a_run_without_a_summary_is_not_finished(make_run):
    record = read_run(make_run(done=4, status=None))
    assert (record.status, record.summary, len(record.train)) == ("not finished", None, 4)


def test_a_line_that_was_cut_off_is_left_out(make_run):
    path = make_run(done=2, status=None)
    add_line(path, '{"event":"train","epoch":3,"st')
    assert [event["epoch"] for event in read_run(path).train] == [1, 2]


def test_a_broken_line_in_the_middle_is_refused(make_run):
    path = make_run(done=1, status=None)
    add_line(path, '{"event":"train","epoch":3,"st\n{"event":"later"}\n')
    assert "metrics.jsonl line 4: not JSON" in refusal(path)


def test_a_cut_line_before_a_resume_is_left_out_and_repeated_epochs_count_once(make_run):
    path = make_run(done=3, status=None)
    again = json.loads((path / "metrics.jsonl").read_text().splitlines()[3])
    assert (again["event"], again["epoch"]) == ("train", 2)
    again["learning_rate"] = 0.625
    add_line(path, '{"event":"tra\n{"event":"resume","time":"2026-11-22T20:00:00Z","step":12}\n' + json.dumps(again))
    record = read_run(path)
    assert [event["epoch"] for event in record.train] == [1, 2]  # epoch 3 was after step 12, and is to come again
    assert [event["epoch"] for event in record.evaluations] == [1]
    assert record.train[1]["learning_rate"] == 0.625
    assert record.resumes == 1


def test_unknown_events_are_ignored(make_run):
    path = make_run(done=1, status=None)
    add_line(path, '{"event":"probe","value":[1,2]}\n')
    assert len(read_run(path).train) == 1


def test_a_summary_older_than_the_metrics_is_not_used(make_run):
    path = make_run(done=2, status="interrupted")
    assert read_run(path).status == "interrupted"
    line = json.loads((path / "metrics.jsonl").read_text().splitlines()[3])
    add_line(path, json.dumps({**line, "epoch": 3, "step": 36}) + "\n")
    assert read_run(path).status == "not finished"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("garbage\n", "line 4: not JSON"),
        ("garbage", "line 4: not JSON"),
        ("[1, 2]\n", "line 4: not an event"),
        ('{"epoch": 3}\n', "line 4: not an event"),
        ('{"event": "train", "epoch": 3}\n', "line 4: step: Field required"),
        ('{"event": "evaluate", "epoch": "three", "step": 1}\n', "line 4: epoch: Input should be a valid integer"),
        (
            '{"event":"train","epoch":2,"step":24,"nodes":[{"module":"x","group":1}]}\n',
            "line 4: nodes.0.module",
        ),
    ],
)
def test_a_damaged_event_is_refused_in_one_line(make_run, line, told):
    path = make_run(done=1, status=None)
    add_line(path, line)
    assert told in refusal(path)


def test_damaged_summaries_and_configurations_are_refused_in_one_line(make_run):
    path = make_run()
    (path / "summary.json").write_text("{")
    assert "summary.json: not JSON" in refusal(path)
    (path / "summary.json").write_text("[]")
    assert "summary.json: the whole: " in refusal(path)
    (path / "summary.json").write_text('{"status": "great"}')
    assert "summary.json: status: " in refusal(path)
    (path / "config.toml").write_text("depth = -1")
    assert "config.toml: depth: -1 is not valid" in refusal(path)
    (path / "config.toml").write_bytes(b"\xff\x00 = [")
    assert "config.toml: " in refusal(path)


def test_what_is_not_a_run_is_refused_in_one_line(make_run, tmp_path):
    assert "no such folder" in refusal(tmp_path / "nowhere")
    (tmp_path / "bare").mkdir()
    assert "no config.toml there" in refusal(tmp_path / "bare")
    path = make_run()
    assert "no such folder" in refusal(path / "config.toml")
    (path / "metrics.jsonl").unlink()
    assert "no metrics.jsonl there" in refusal(path)


def test_runs_of_one_name_are_told_apart_and_each_is_read_once(make_run):
    first, second = make_run("a/run"), make_run("b/run")
    assert [record.name for record in read_runs([first, second, first])] == ["a/run", "b/run"]
    assert [record.name for record in read_runs([first])] == ["run"]
    with pytest.raises(UsageError, match="no run folder is given"):
        read_runs([])


def test_a_series_has_nan_where_a_value_is_missing():
    events = [{"a": 1, "nodes": [{"module": 1, "group": 1, "loss": 2.5}]}, {"a": None, "nodes": []}]
    assert series(events, "a")[0] == 1.0
    assert series(events, "loss", (1, 1))[0] == 2.5
    assert math.isnan(series(events, "a")[1])
    assert math.isnan(series(events, "loss", (1, 1))[1])
