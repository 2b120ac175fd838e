"""Training images that are held out choose the best checkpoint; the test images do so only where none are."""

import dataclasses
import json

import pytest
import torch

import small
from locallearn.config import CheckpointConfig, DataConfig, RunConfig, digest
from locallearn.data.datasets import Dataset, datasets, load
from locallearn.report.compare import comparison_rows
from locallearn.report.records import read_run
from locallearn.training import runs
from locallearn.training.checkpoint import load as load_checkpoint
from locallearn.training.finished import open_run

DATA = DataConfig(train_limit=160, test_limit=60, validation=0.2)


def test_the_same_share_of_every_class_is_held_out_in_every_run():
    whole, split = load(DataConfig()), load(DataConfig(validation=0.1))
    assert split.validation is not None
    assert len(split.validation.labels) == round(0.1 * len(whole.train.labels))
    assert len(split.train.labels) + len(split.validation.labels) == len(whole.train.labels)
    counts, held = whole.train.labels.bincount(), split.validation.labels.bincount()
    assert ((held - 0.1 * counts).abs() < 1).all()
    together = torch.cat([split.train.images, split.validation.images]).flatten(1)
    assert sorted(together.tolist()) == sorted(whole.train.images.flatten(1).tolist())
    again = load(DataConfig(validation=0.1))
    assert torch.equal(again.validation.images, split.validation.images)
    assert load(DataConfig()).validation is None


@pytest.mark.parametrize(("limit", "share", "held"), [(10, 0.01, 1), (10, 0.99, 8), (3, 0.1, 1), (2, 0.5, 0)])
def test_at_least_one_image_is_held_out_and_two_are_trained_on(limit, share, held):
    dataset = load(DataConfig(train_limit=limit, validation=share))
    assert len(dataset.train.labels) == limit - held
    assert (0 if dataset.validation is None else len(dataset.validation.labels)) == held


def test_a_share_that_is_held_out_is_another_training_and_none_is_what_it_was():
    base = RunConfig()
    assert digest(dataclasses.replace(base, data=DataConfig(validation=0.0))) == digest(base)
    assert digest(dataclasses.replace(base, data=DataConfig(validation=0.1))) != digest(base)


def evaluations(run):
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [event for event in events if event["event"] == "evaluate"]


@pytest.mark.parametrize("runtime", ["inline", "asynchronous"])
def test_held_out_images_choose_the_best_checkpoint(tmp_path, runtime):
    config = small.config(data=DATA, runtime=runtime, train=dataclasses.replace(small.TRAIN, epochs=4))
    accuracy = runs.train(config, tmp_path / "run")["accuracy"]
    told = evaluations(tmp_path / "run")
    assert [event["validation"]["images"] for event in told] == [32] * len(told)
    best = max(told, key=lambda event: event["validation"]["last_layer"])
    assert (accuracy["best_epoch"], accuracy["best_last_layer"]) == (best["epoch"], best["last_layer"])
    assert accuracy["validation"] == told[-1]["validation"]
    opened = open_run(tmp_path / "run", "best")
    assert opened.step == best["step"]
    assert opened.evaluate().last_layer == best["last_layer"]
    assert comparison_rows([read_run(tmp_path / "run")])[0]["best_epoch"] == best["epoch"]
    (tmp_path / "run" / "summary.json").unlink()  # as a run that was killed
    assert comparison_rows([read_run(tmp_path / "run")])[0]["best_epoch"] == best["epoch"]


def test_without_them_the_test_images_do_and_the_record_is_as_it_was(tmp_path):
    accuracy = runs.train(small.config(), tmp_path / "run")["accuracy"]
    told = evaluations(tmp_path / "run")
    assert accuracy["best_last_layer"] == max(event["last_layer"] for event in told)
    assert "validation" not in accuracy
    assert all("validation" not in event for event in told)


def test_neighbours_of_held_out_images_choose_too(tmp_path):
    config = small.config("simclr", 1, (1,), data=DATA)
    accuracy = runs.train(config, tmp_path / "run")["accuracy"]
    assert accuracy["validation"]["images"] == 32
    assert accuracy["protocol"].startswith("kNN")
    assert "128 training images" in accuracy["protocol"]


def test_a_resume_keeps_the_best_of_before(tmp_path):
    config = small.config(data=DATA, checkpoint=CheckpointConfig(every_steps=2))
    whole = runs.train(config, tmp_path / "whole")
    with pytest.raises(small.Killed):
        runs.train(config, tmp_path / "killed", small.KillAt(6))
    assert runs.resume(tmp_path / "killed")["accuracy"] == whole["accuracy"]
    best = [load_checkpoint(tmp_path / name / "checkpoints" / "best.safetensors") for name in ("whole", "killed")]
    assert best[0].progress["step"] == best[1].progress["step"]


def test_a_reader_may_hold_out_its_own():
    own = load(DataConfig(train_limit=20))

    @datasets.register("with-validation")
    def read(config: DataConfig) -> Dataset:
        return dataclasses.replace(own, name="with-validation", validation=own.test.first(5))

    dataset = load(DataConfig(name="with-validation", validation=0.5))
    assert len(dataset.train.labels) == 20
    assert torch.equal(dataset.validation.labels, own.test.labels[:5])
