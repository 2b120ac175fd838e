"""Damaged records of an asynchronous run are named, and what is whole is used."""

import dataclasses

import pytest

import small
from locallearn.data import datasets
from locallearn.errors import CheckpointError
from locallearn.training import checkpoint as checkpoints
from locallearn.training.async_job import AsyncJob, module_folder
from locallearn.training.async_module import ModuleTraining
from locallearn.training.asynchronous import AsynchronousTraining
from locallearn.training.record import RunFolder
from locallearn.training.setup import resolve
from locallearn.training.stop import StopRequest

ASKED = dataclasses.replace(small.config(), runtime="asynchronous")
DATA = datasets.load(ASKED.data)
CONFIG = resolve(ASKED, DATA)
EVENT = {"event": "train", "step": 5, "epoch": 1, "nodes": [], "images": 160, "seconds": 2.0, "activation_bytes": 7}


class Told(small.Quiet):
    def __init__(self):
        self.warnings = []

    def on_warning(self, text):
        self.warnings.append(text)


def test_events_of_another_shape_are_named_and_the_others_count(tmp_path):
    folder, told = RunFolder(tmp_path / "run"), Told()
    folder.path.mkdir()
    for event in (
        {"event": "start", "step": 0},
        EVENT,
        {"event": "train", "step": 10, "epoch": 2, "nodes": [], "seconds": 1.0},
        {"event": "evaluate", "step": 5, "epoch": 1, "nodes": []},
    ):
        folder.append(event)
    with open(folder.path / "metrics.jsonl", "ab") as file:
        file.write(b"\xff\xfe[1]\n")
    training = AsynchronousTraining(CONFIG, DATA, folder, told)
    training.restore()
    assert training.epoch == 1
    assert (training.progress["images"], training.progress["train_seconds"]) == (160, 2.0)
    for kind in ("start", "train", "evaluate"):
        assert any(f"a damaged {kind} event is not used" in text for text in told.warnings)
    assert len(told.warnings) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"digest": None},
        {"step": "3"},
        {"clock": None},
        {"epochs": {}},
        {"pace": []},
    ],
)
def test_a_checkpoint_that_says_something_else_is_named(change, tmp_path):
    job = AsyncJob(CONFIG, DATA, tmp_path, tmp_path, 0)
    training = ModuleTraining(job, lambda _: None, StopRequest())
    training.write_checkpoint()
    (path,) = module_folder(tmp_path, training.module.name).glob("step-*")
    kept = checkpoints.load(path)
    checkpoints.save(path, checkpoints.Checkpoint(kept.tensors, {**kept.progress, **change}))
    with pytest.raises(CheckpointError, match=f"is damaged: it says nothing of {next(iter(change))}"):
        ModuleTraining(job, lambda _: None, StopRequest()).restore()
