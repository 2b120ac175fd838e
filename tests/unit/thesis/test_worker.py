import dataclasses
import json
import os
import signal

import pytest
import torch

from locallearn.config import DataConfig, ProbeConfig
from locallearn.data.datasets import ImageSet, load
from locallearn.errors import InterruptedRunError, LocalLearnError
from locallearn.thesis import worker
from locallearn.thesis.cell_records import read_record
from locallearn.thesis.cell_scores import held_out, last_heads
from locallearn.thesis.matrix import cells
from locallearn.thesis.protocols import Study
from locallearn.thesis.worker import Request, train_cell
from locallearn.training import runs
from locallearn.training.checkpoint import CheckpointFolder, step_of
from locallearn.training.evaluate import evaluate
from locallearn.training.finished import open_run
from locallearn.training.observer import Quiet
from locallearn.training.probe import probe

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
    with open(tmp_path / "run" / "metrics.jsonl", "ab") as file:
        file.write(b'\xff\n[1]\n{"event": "evaluate", "step": 9, "epoch": 9, "nodes": []}\n')
    train_cell(request_)
    assert {**read_record(tmp_path / "record-seed1.json"), "finished": 0} == {**record, "finished": 0}


def test_modules_at_once_leave_the_record_of_modules_in_turn(request_, tmp_path):
    train_cell(request_)
    at_once = {"run": str(tmp_path / "at-once"), "record": str(tmp_path / "at-once-seed1.json")}
    train_cell(dataclasses.replace(request_, **at_once, runtime="threads", threads=2))  # one for each module
    inline, threads = (read_record(tmp_path / name) for name in ("record-seed1.json", "at-once-seed1.json"))
    assert (threads["config"].get("runtime"), inline["config"].get("runtime")) == ("threads", "inline")
    for name in ("digest", "accuracy", "nodes", "curve"):
        assert threads[name] == inline[name]


def test_held_out_images_are_the_last_training_images(request_):
    train_cell(request_)  # on the first 256
    opened = open_run(request_.run)
    images = load(DataConfig()).train
    unseen = ImageSet(images.images[-100:], images.labels[-100:])
    expected = evaluate(opened.network, opened.store(unseen).ordered(100), "bf16").last_layer
    assert held_out(opened, 100) == pytest.approx(expected, abs=1e-9)
    assert held_out(opened, 100) != held_out(opened, 700)


def test_the_heads_of_the_last_module_are_averaged(request_, tmp_path):
    train_cell(request_)
    record = read_record(tmp_path / "record-seed1.json")
    opened = open_run(request_.run)
    (batch,) = opened.store(opened.dataset.test).ordered(1000)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        one, two = opened.network.all_logits(batch.images)[1].float().softmax(-1)
    expected = (one + two).argmax(-1).eq(batch.labels).float().mean().item()
    assert record["accuracy"]["last_heads"] == pytest.approx(expected, abs=0.01)  # batches of 500 round alike
    assert last_heads(opened) == record["accuracy"]["last_heads"]


_train = runs.train


def test_a_run_of_another_configuration_leaves_no_record(request_, tmp_path, monkeypatch):
    monkeypatch.setattr(worker.runs, "train", lambda config, run: {"digest": ""})
    with pytest.raises(LocalLearnError, match=f"is of another configuration than {CELL}; move it away"):
        train_cell(request_)
    assert not (tmp_path / "record-seed1.json").exists()


def test_probes_over_epochs_are_of_the_checkpoints_that_were_kept(tmp_path, monkeypatch):
    cell = "digits-resnet8-dgssl-k4"
    known = cells()[cell]
    kept = dataclasses.replace(known.config.checkpoint, keep_epochs=100)
    changed = dataclasses.replace(known, config=dataclasses.replace(known.config, checkpoint=kept))
    monkeypatch.setitem(cells(), cell, changed)
    study, run = Study("quick", epochs=4, train_limit=256), tmp_path / "run"
    request = Request(cell, dataclasses.asdict(study), 0, str(run), str(tmp_path / "r-seed0.json"), "cpu")
    assert study.config(cell, 0).checkpoint.keep_epochs == 1  # a quarter of the epochs, where 100 are too many
    request = dataclasses.replace(request, root=None, device="cpu", threads=1)
    monkeypatch.setattr(Study, "probe", ProbeConfig(epochs=2))
    train_cell(request)
    record = read_record(tmp_path / "r-seed0.json")
    assert [point["epoch"] for point in record["probes"]] == [1, 2, 3, 4]
    assert [step_of(path) for path in CheckpointFolder(run / "checkpoints", 1).paths()] == [2, 4, 6, 8]
    last = dataclasses.replace(study.probe, depth="last")
    for point, step in zip(record["probes"], ("2", "4", "6", "8"), strict=True):
        assert probe(open_run(run, step, "cpu"), last)["points"][-1]["accuracy"] == point["accuracy"]
    assert record["accuracy"]["linear_probe"] == record["probe"]["points"][-1]["accuracy"]
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [event["nodes"][-1]["loss"] for event in events if event["event"] == "train"]
    assert [point["loss"] for point in record["curve"]] == losses
