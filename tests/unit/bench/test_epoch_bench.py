"""Epochs that ``bench epoch`` times are those of a training."""

import dataclasses

import pytest
import torch

from locallearn.bench.epoch import Epochs, bench_epoch, copy_bandwidth, random_images
from locallearn.bench.epoch_command import EpochOptions, table
from locallearn.bench.step import Setting, step_config
from locallearn.config import TrainConfig
from locallearn.core.image_shape import ImageShape
from locallearn.training.configured import Training
from locallearn.training.observer import Quiet
from locallearn.training.record import RunFolder

SETTING = Setting(ImageShape(3, 8, 5), 16, torch.device("cpu"), "fp32", 2, 1)
CELL = ("gn-dgl", 2, 2)


def weights(training):
    return torch.cat([p.detach().flatten() for p in training.network.parameters()])


def two_epochs(folder, change=lambda training: None):
    """What two timed epochs train, and what a training does with the same configuration."""
    data = random_images(SETTING.image, 40)
    train = TrainConfig(batch_size=16, device="cpu", precision="fp32", threads=1)
    timed = Epochs(dataclasses.replace(step_config("tiny-resnet", *CELL), train=train), data, str(folder))
    change(timed.training)
    timed.next()
    timed.next()
    folder.mkdir()
    config = dataclasses.replace(timed.config, train=dataclasses.replace(timed.config.train, epochs=2))
    training = Training(config, data, RunFolder(folder), Quiet())
    training.run()
    return timed, training


@pytest.fixture(autouse=True)
def constant_rate(monkeypatch):
    """The schedule would tell two epochs of a hundred from two of two."""
    monkeypatch.setattr("locallearn.training.loop.rates", lambda *_: lambda step: 0.1)


def test_what_is_timed_is_what_train_does(tmp_path):
    timed, training = two_epochs(tmp_path / "run")
    assert torch.equal(weights(timed.training), weights(training))
    assert timed.training.step == training.step == 6
    assert len(timed.host_seconds) == 2
    assert all(0 < seconds < 60 for seconds in timed.host_seconds)


def test_images_that_are_not_augmented_are_noticed(tmp_path):
    def plain(training):
        training.train_store._augment = None

    timed, training = two_epochs(tmp_path / "run", plain)
    assert not torch.equal(weights(timed.training), weights(training))


def test_bandwidth_counts_what_is_read_and_what_is_written(monkeypatch):
    from locallearn.bench import epoch, timing

    monkeypatch.setattr(epoch, "COPIED", 1000)
    monkeypatch.setattr(epoch, "interleaved", lambda things, *_: {name: timing.Timing((2.0,)) for name in things})
    assert copy_bandwidth(torch.device("cpu"), 1) == 1000.0


def test_compiled_backpropagation_competes_on_the_same_batches(monkeypatch):
    """Traced as it is when it is compiled, without waiting for a compiler."""
    from locallearn.bench import epoch
    from locallearn.bench.compiled import compiled_backprop

    seen = []

    def opponent(model, setting):
        made = compiled_backprop(model, setting, backend="eager")
        assert made.network is not None
        step = made.network.step
        made.network.step = lambda batch: seen.append(batch.images) or step(batch)
        return made

    monkeypatch.setattr(epoch, "compiled_backprop", opponent)
    measured = bench_epoch("tiny-resnet", [CELL], 40, SETTING, compiled=True)
    assert measured["compiled"]["images_per_second"] == pytest.approx(40 / measured["compiled"]["seconds"])
    assert sum(len(images) for images in seen) == 40 * (2 + SETTING.repeats)
    assert not torch.equal(seen[0], seen[-1])
    shown = table(measured, EpochOptions())
    assert "compiled: first step" in str(shown.caption)
    assert list(shown.columns[0].cells)[-1] == "compiled"


def test_a_table_of_a_gpu_tells_what_the_host_needs(capsys):
    measured = bench_epoch("tiny-resnet", [CELL], 40, SETTING)
    assert "host" not in [str(column.header).split(",")[0] for column in table(measured, EpochOptions()).columns]
    measured["rows"][0]["host_seconds"] = 1.25
    columns = {
        str(column.header).split(",")[0]: list(column.cells) for column in table(measured, EpochOptions()).columns
    }
    assert columns["host"] == ["1.25"]
