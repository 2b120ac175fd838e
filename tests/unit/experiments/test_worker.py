import json
import os
import signal

import pytest

from locallearn.errors import InterruptedRunError, LocalLearnError
from locallearn.experiments import worker
from locallearn.experiments.protocols import Study
from locallearn.experiments.results import read_record
from locallearn.experiments.worker import Request, train_cell
from locallearn.training import runs
from locallearn.training.observer import Quiet

STUDY = Study("quick", epochs=2, train_limit=256)
CELL = "digits-resnet8-gn-dgl-k2-g2"


@pytest.fixture
def request_(tmp_path):
    run, record = tmp_path / "run", tmp_path / "record-seed1.json"
    study = {"protocol": "quick", "epochs": 2, "train_limit": 256}
    return Request(CELL, study, 1, str(run), str(record), device="cpu", threads=1)


class StopAt(Quiet):
    def __init__(self, step):
        self.at = step

    def on_step(self, step):
        if step == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_cell_that_is_stopped_goes_on_and_leaves_its_record(request_, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(worker.runs, "train", lambda config, run: _train(config, run, StopAt(3)))
        with pytest.raises(InterruptedRunError, match="interrupted at step 3"):
            train_cell(request_)
    assert not (tmp_path / "record-seed1.json").exists()
    train_cell(request_)
    record = read_record(tmp_path / "record-seed1.json")
    assert (record["cell"], record["seed"], record["digest"]) == (CELL, 1, STUDY.digest(CELL))
    assert [point["epoch"] for point in record["curve"]] == [1, 2]
    assert record["curve"][-1]["ensemble"] == record["accuracy"]["ensemble"]
    assert record["config"]["train"]["precision"] == "bf16"
    assert len(record["nodes"]) == 5
    events = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(e["event"], e["step"]) for e in events if e["event"] in ("start", "resume")] == [
        ("start", 0),
        ("resume", 3),
    ]
    (tmp_path / "record-seed1.json").unlink()  # killed after the run's end and before the record
    train_cell(request_)
    assert {**read_record(tmp_path / "record-seed1.json"), "finished": 0} == {**record, "finished": 0}


_train = runs.train


def test_what_a_kill_left_of_a_folder_is_no_obstacle(request_, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.toml.4711.tmp").write_text("half")
    seen = []
    monkeypatch.setattr(worker.runs, "train", lambda config, run: seen.append(list(run.iterdir())) or {"digest": ""})
    with pytest.raises(LocalLearnError, match=f"is of another configuration than {CELL}; move it away"):
        train_cell(request_)  # and a run of another configuration leaves no record
    assert seen == [[]]
    assert not (tmp_path / "record-seed1.json").exists()
