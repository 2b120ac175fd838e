import dataclasses
import json

import pytest
import torch

import small
from locallearn.config import (
    CheckpointConfig,
    DataConfig,
    MeshConfig,
    OptimizerConfig,
    ScheduleConfig,
    from_toml,
)
from locallearn.data.datasets import load as load_data
from locallearn.errors import ConfigError, DivergedError, InterruptedRunError, UsageError
from locallearn.training import runs, setup
from locallearn.training.checkpoint import BEST, load
from locallearn.training.configured import Training
from locallearn.training.finished import open_run
from locallearn.training.observer import Quiet
from locallearn.training.record import RunFolder
from locallearn.training.setup import resolve


def events(run, kind=None):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [event for event in lines if kind in (None, event["event"])]


def training_of(config, run, observer):
    """A training before its first step, for observers that reach into it."""
    dataset, folder = load_data(config.data), RunFolder(run)
    resolved = resolve(config, dataset)
    training = runs.build(resolved, dataset, folder, observer)
    assert isinstance(training, Training)
    folder.create(resolved)
    observer.training = training
    return training


def test_more_replicas_than_images_in_the_last_batch_are_refused(tmp_path):
    images = len(load_data(small.config().data).train.labels)
    train = dataclasses.replace(small.TRAIN, batch_size=images - 3)
    spread = {"runtime": "distributed", "train": train}
    fits, refused = (small.config(**spread, mesh=MeshConfig(data=replicas)) for replicas in (3, 4))
    with pytest.raises(
        ConfigError, match=r"mesh.data: 4 is not valid; expected at most 3, the images of the last batch"
    ):
        training_of(refused, tmp_path / "refused", Quiet())
    training_of(fits, tmp_path / "fits", Quiet())


def test_a_run_folder_holds_everything(tmp_path):
    run = tmp_path / "run"
    summary = runs.train(small.config(), run)
    assert json.loads((run / "summary.json").read_text()) == summary
    config = from_toml((run / "config.toml").read_text())
    assert config.train.device == "cpu"
    assert config.train.channels_last is True
    assert config.augment.crop_padding == 1  # the data set's own custom, written out
    assert [e["event"] for e in events(run)] == ["start", "train", "evaluate", "train", "evaluate"]
    assert [e["step"] for e in events(run)] == [0, 5, 5, 10, 10]
    assert summary["steps"] == 10
    assert len(summary["nodes"]) == 5
    assert summary["nodes"][-1]["module"] == "classifier"
    assert summary["accuracy"]["last_layer"] == summary["nodes"][-1]["accuracy"]
    assert summary["memory"]["activation_bytes"] > 0
    assert summary["data_source"]
    assert list((run / "tensorboard").iterdir())
    assert load(run / "checkpoints" / BEST).progress["step"] in (5, 10)
    node = events(run, "train")[0]["nodes"][0]
    assert node["loss"] == pytest.approx(node["terms"]["cross_entropy"] + 0.5 * node["terms"]["diversity"])


def test_training_learns(tmp_path):
    train = dataclasses.replace(small.TRAIN, epochs=8)
    data = DataConfig(train_limit=640, test_limit=100)
    cosine = ScheduleConfig(name="cosine")  # a constant rate ends anywhere, by how a processor rounds
    summary = runs.train(small.config(train=train, data=data, schedule=cosine), tmp_path / "run")
    assert summary["accuracy"]["last_layer"] > 0.4
    assert summary["accuracy"]["ensemble"] > 0.7
    losses = [e["nodes"][0]["loss"] for e in events(tmp_path / "run", "train")]
    assert losses[-1] < 0.8 * losses[0]


def test_a_taken_folder_is_not_touched(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UsageError, match="is there already"):
        runs.train(small.config(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_what_cannot_be_built_leaves_no_folder(tmp_path):
    with pytest.raises(ConfigError, match="width: 3 is not valid; expected a divisor"):
        runs.train(small.config(width=(3,)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_divergence_names_module_and_step_and_leaves_the_last_good_checkpoint(tmp_path):
    class Poison(Quiet):
        def on_step(self, step):
            if step == 7:
                with torch.no_grad():
                    next(self.training.network.stages[1].parameters()).fill_(float("nan"))

    run = tmp_path / "run"
    training = training_of(small.config(), run, Poison())
    with pytest.raises(DivergedError) as caught:
        training.run()
    message = str(caught.value)
    assert "module 2, group 1" in message
    assert "at step 8 (epoch 2)" in message
    last = sorted((run / "checkpoints").glob("step-*"))[-1]
    assert str(last) in message
    kept = load(last)
    assert kept.progress["step"] == 6
    assert all(t.isfinite().all() for t in kept.tensors.values())


def test_a_huge_learning_rate_stops_with_one_line(tmp_path):
    config = small.config(optimizer=OptimizerConfig(learning_rate=1e30))
    with pytest.raises(DivergedError, match="module 1, group 1 became NaN or infinite at step"):
        runs.train(config, tmp_path / "run")


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    """The last step of an epoch can spoil the weights after its loss was still finite."""

    class Poison(Quiet):
        def on_step(self, step):
            if step == 5:
                with torch.no_grad():
                    next(self.training.network.stages[0].parameters()).fill_(float("inf"))

    config = small.config(checkpoint=CheckpointConfig(), train=dataclasses.replace(small.TRAIN, evaluate_every=0))
    training = training_of(config, tmp_path / "run", Poison())
    with pytest.raises(DivergedError, match="the weights of module 1 .* at step 5.*no checkpoint yet"):
        training.run()
    assert list((tmp_path / "run").rglob("*.safetensors")) == []


def test_a_stop_request_ends_between_steps_with_a_checkpoint(tmp_path):
    class Stop(Quiet):
        def on_step(self, step):
            if step == 3:
                self.training.stop.requested = True

    run = tmp_path / "run"
    training = training_of(small.config(checkpoint=CheckpointConfig()), run, Stop())
    with pytest.raises(InterruptedRunError, match="interrupted at step 3; continue with: locallearn train --resume"):
        training.run()
    assert runs.resume(run)["steps"] == 10
    assert [e["step"] for e in events(run, "resume")] == [3]


@pytest.mark.parametrize("step", [5, 10])
def test_a_stop_request_at_the_end_of_an_epoch_loses_none_of_it(tmp_path, step):
    class Stop(Quiet):
        def on_step(self, now):
            self.training.stop.requested = now == step

    run = tmp_path / "run"
    training = training_of(small.config(checkpoint=CheckpointConfig()), run, Stop())
    if step == 5:
        with pytest.raises(InterruptedRunError, match="interrupted at step 5"):
            training.run()
    else:
        training.run()  # nothing is left to stop
    assert runs.resume(run)["steps"] == 10
    assert [e["epoch"] for e in events(run, "train")] == [1, 2]
    assert [e["epoch"] for e in events(run, "evaluate")] == [1, 2]


def test_a_missing_gpu_is_one_line():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ConfigError, match="train.device: 'cuda' is not valid; expected cpu, or one of the 0 GPUs"):
        runs.train(small.config(train=dataclasses.replace(small.TRAIN, device="cuda")), "never")


def test_epochs_without_evaluation(tmp_path):
    train = dataclasses.replace(small.TRAIN, evaluate_every=0)
    runs.train(small.config(train=train), tmp_path / "run")
    assert [e["epoch"] for e in events(tmp_path / "run", "evaluate")] == [2]


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "infopro", "width": (1,)},
        {"method": "predsim"},
        {"method": "predsim", "model": "tiny-vgg", "depth": 4},
    ],
    ids=["infopro", "predsim", "predsim-layerwise"],
)
def test_methods_with_other_losses_train_to_the_end(tmp_path, changes):
    """A contrastive InfoPro module has no classifier: its nodes have no accuracy, and nothing breaks."""
    config = small.config(**changes)
    summary = runs.train(config, tmp_path / "run")
    assert 0 <= summary["accuracy"]["last_layer"] <= 1
    without = [node for node in summary["nodes"] if "accuracy" not in node]
    assert len(without) == (1 if config.method == "infopro" else 0)
    assert all("loss" in node for node in summary["nodes"])
    open_run(tmp_path / "run").evaluate()


@pytest.mark.parametrize(("supported", "slow", "wanted"), [(1, 0, "bf16"), (1, 1, "fp32"), (0, 0, "fp32")])
def test_bf16_is_the_default_where_it_is_faster(supported, slow, wanted, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bool(supported))
    monkeypatch.setattr(setup, "slow_in_bf16", lambda: bool(slow))
    assert setup.default_precision(torch.device("cpu")) == wanted


def test_updates_of_several_batches_are_the_same_inline_and_on_threads_and_after_a_kill(tmp_path):
    train = dataclasses.replace(small.TRAIN, accumulate=2)
    config = small.config("dgl", 2, (1,), train=train, checkpoint=CheckpointConfig(every_steps=1))
    inline = runs.train(config, tmp_path / "inline")
    threads = runs.train(dataclasses.replace(config, runtime="threads"), tmp_path / "threads")
    with pytest.raises(small.Killed):
        runs.train(config, tmp_path / "killed", small.KillAt(8))
    killed = runs.resume(tmp_path / "killed")
    plain = runs.train(small.config("dgl", 2, (1,)), tmp_path / "plain")
    assert inline["nodes"] == threads["nodes"] == killed["nodes"] != plain["nodes"]
    steps = {int(path.name[5:14]) for path in (tmp_path / "inline" / "checkpoints").glob("step-*")}
    assert steps == {9, 10}  # of 5 an epoch (2 + 2 + 1): none lies between two batches of an update


def test_runtimes_that_do_not_accumulate_say_so():
    with pytest.raises(ConfigError, match="accumulate: 2 is not valid; expected 1 with runtime sequential"):
        small.config(runtime="sequential", train=dataclasses.replace(small.TRAIN, accumulate=2))
