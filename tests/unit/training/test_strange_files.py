"""A run's folder from elsewhere may hold anything under the names of a run's files."""

import json
import os
import signal

import pytest
import torch
from torch import nn

import locallearn as ll
from locallearn.errors import UsageError
from locallearn.report.records import read_run
from locallearn.training.events import DamagedRecordError, read_events, read_summary
from locallearn.training.history import History
from locallearn.training.observer import Quiet

READERS = {"metrics.jsonl": read_events, "summary.json": read_summary, "history.json": History}


@pytest.fixture(autouse=True)
def _in_time():
    """Nobody waits for the other end of a pipe."""

    def late(*_):
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def _put(path, what):
    path.unlink(missing_ok=True)
    if what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    else:
        path.write_text(("a = " if path.suffix == ".toml" else "") + "[" * 20_000)


@pytest.mark.parametrize("what", ["pipe", "device"])
@pytest.mark.parametrize("name", READERS)
def test_pipes_and_devices_are_not_opened(tmp_path, name, what):
    _put(tmp_path / name, what)
    with pytest.raises((UsageError, DamagedRecordError), match=f"{name}.*(it is no file)"):
        READERS[name](tmp_path / name)


@pytest.mark.parametrize("what", ["pipe", "device", "deep"])
@pytest.mark.parametrize("name", ["config.toml", "metrics.jsonl", "summary.json", "probe.json"])
def test_reports_name_what_is_no_record(tmp_path, name, what):
    (tmp_path / "config.toml").write_text("")
    (tmp_path / "metrics.jsonl").write_text("")
    _put(tmp_path / name, what)
    with pytest.raises(UsageError, match=name) as refused:
        read_run(tmp_path)
    assert "\n" not in str(refused.value)


class _Told(Quiet):
    def __init__(self):
        self.told = []

    def on_warning(self, message):
        self.told.append(message)


@pytest.mark.parametrize("content", ["[" * 20_000, "[]", "{}", ""])
def test_a_trainer_names_a_damaged_summary_and_writes_it_anew(tmp_path, content):
    torch.manual_seed(0)
    batch, told = (torch.rand(4, 8), torch.arange(4)), _Told()
    network = ll.split(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), depth=2, example=batch)
    trainer = ll.Trainer(network, run=tmp_path / "run", observer=told)
    before = trainer.fit([batch])
    (tmp_path / "run" / "summary.json").write_text(content)
    after = trainer.fit([batch])
    assert "summary.json" in told.told[0]
    assert after["digest"] == before["digest"] == read_summary(tmp_path / "run" / "summary.json")["digest"]


@pytest.mark.parametrize("place", [0, -1, 2**62, 10**400, True, "1", None])
def test_nodes_that_are_none_are_damage(tmp_path, place):
    node = {"module": 1, "group": place, "loss": 1.0}
    event = {"event": "train", "epoch": 1, "step": 1, "seconds": 1.0, "nodes": [node]}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(event) + "\n")
    summary = {"status": "finished", "digest": "0", "steps": 1, "accuracy": {}, "nodes": [node]}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "config.toml").write_text("")
    assert [line.problem for line in read_events(tmp_path / "metrics.jsonl")] == ["an event whose nodes are none"]
    with pytest.raises(DamagedRecordError, match=r"not a summary of a run \(no nodes\)"):
        read_summary(tmp_path / "summary.json")
    with pytest.raises(UsageError, match=r"metrics\.jsonl line 1: nodes\.0\.group"):
        read_run(tmp_path)


def test_a_setting_that_is_nested_without_end_is_one_line(tmp_path):
    (tmp_path / "config.toml").write_text("a" + ".a" * 3000 + " = 1")
    (tmp_path / "metrics.jsonl").write_text("")
    shown = r"(a dict of too many levels|\{'a': .* \.\.\.)"  # some interpreters show so many
    with pytest.raises(UsageError, match=rf"a: {shown} is not (known|valid)") as refused:
        read_run(tmp_path)
    assert len(str(refused.value)) < 600
