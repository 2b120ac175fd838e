"""Sequential training: each module is trained as if those before it had always been what they became."""

import dataclasses
import json

import pytest
import torch

import small
from locallearn.config import CheckpointConfig, ScheduleConfig, SequentialConfig, digest
from locallearn.core.assembly import build_network
from locallearn.core.local_step import LocalStep, autocast
from locallearn.data.datasets import load
from locallearn.data.store import ImageStore
from locallearn.report.compare import comparison_rows
from locallearn.report.records import read_runs
from locallearn.runtime import sequential as runtime
from locallearn.runtime.feature_cache import FeatureCache
from locallearn.training import runs, stage_by_stage
from locallearn.training.checkpoint import load as load_checkpoint
from locallearn.training.finished import open_run
from locallearn.training.observer import Quiet
from locallearn.training.optim import build_optimizer, learning_rate
from locallearn.training.record import RunFolder
from locallearn.training.setup import image_shape, resolve


def config_of(cache="none", **changes):
    settings = {k: changes.pop(k) for k in ("cache_dtype", "cache_epochs", "cache_gib") if k in changes}
    return small.config(runtime="sequential", sequential=SequentialConfig(cache=cache, **settings), **changes)


def weights(run):
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    return {k: v for k, v in load_checkpoint(newest).tensors.items() if k.startswith("network/")}


def different(run, other, prefix="network/"):
    a, b = weights(run), weights(other)
    assert a.keys() == b.keys()
    return [key for key in a if key.startswith(prefix) and not torch.equal(a[key], b[key])]


def events(run, kind):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [event for event in lines if event["event"] == kind]


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_one_module_is_inline_training(tmp_path, cache):
    one = {"method": "dgl", "depth": 1, "width": (1,)}
    inline = runs.train(small.config(**one), tmp_path / "inline")
    alone = runs.train(config_of(cache, **one), tmp_path / "sequential")
    assert different(tmp_path / "inline", tmp_path / "sequential") == []
    assert alone["accuracy"] == inline["accuracy"]
    assert alone["memory"]["activation_bytes"] == inline["memory"]["activation_bytes"]


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_the_first_module_is_that_of_inline_training_and_later_ones_are_not(tmp_path, cache):
    runs.train(small.config(), tmp_path / "inline")
    runs.train(config_of(cache), tmp_path / "sequential")
    found = different(tmp_path / "inline", tmp_path / "sequential")
    assert found
    assert not [key for key in found if key.startswith("network/stages.0.")]


def by_hand(config):
    """The same in a plain loop: module by module, the ones before it in eval mode."""
    dataset = load(config.data)
    config = resolve(config, dataset)
    network = build_network(config, image_shape(dataset)).to(memory_format=torch.channels_last)
    store = ImageStore(dataset.train, dataset, config.augment, "cpu", config.seed, True)
    batch_size = config.train.batch_size
    steps = store.steps(batch_size)
    for k, module in enumerate(network):
        step = LocalStep(module, build_optimizer(config.optimizer, module.parameters()), "fp32", 0.0, config.seed)
        for epoch in range(config.train.epochs):
            for i, batch in enumerate(store.epoch(epoch, batch_size), start=epoch * steps):
                x = batch.images
                with torch.no_grad(), autocast(x.device, "fp32"):
                    for frozen in list(network)[:k]:
                        x = frozen.eval()(x)
                for group in step.optimizer.param_groups:
                    group["lr"] = learning_rate(config, i, steps)
                step(x, batch, i)
        module.eval()
    return {f"network/{key}": value for key, value in network.state_dict().items()}


def test_it_is_a_plain_loop_over_modules(tmp_path):
    config = config_of(depth=3)
    runs.train(config, tmp_path / "run")
    found, expected = weights(tmp_path / "run"), by_hand(config)
    assert found.keys() == expected.keys()
    assert [key for key in found if not torch.equal(found[key], expected[key])] == []


def test_frozen_modules_in_train_mode_are_caught(tmp_path, monkeypatch):
    """The sibling: batch statistics in the frozen modules give other weights."""
    config = config_of(depth=3)
    monkeypatch.setattr(runtime.LocalModule, "eval", lambda self: self)
    runs.train(config, tmp_path / "run")
    monkeypatch.undo()
    found, expected = weights(tmp_path / "run"), by_hand(config)
    assert any(not torch.equal(found[key], expected[key]) for key in found)


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_an_exact_cache_of_all_epochs_changes_nothing(tmp_path, cache):
    runs.train(config_of(depth=3), tmp_path / "none")
    runs.train(config_of(cache, depth=3, cache_dtype="fp32", cache_epochs=2), tmp_path / "cached")
    assert different(tmp_path / "none", tmp_path / "cached") == []
    assert not (tmp_path / "cached" / "features").exists()


def test_fewer_kept_epochs_change_later_modules_only(tmp_path):
    runs.train(config_of(), tmp_path / "none")
    runs.train(config_of("memory", cache_dtype="fp32", cache_epochs=1), tmp_path / "cached")
    found = different(tmp_path / "none", tmp_path / "cached")
    assert found
    assert not [key for key in found if key.startswith("network/stages.0.")]


@pytest.mark.parametrize("dtype", ["bf16", "uint8"])
def test_weights_do_not_depend_on_what_fits(tmp_path, dtype):
    runs.train(config_of("memory", depth=3, cache_dtype=dtype), tmp_path / "all")
    runs.train(config_of("memory", depth=3, cache_dtype=dtype, cache_gib=3e-4), tmp_path / "some")
    runs.train(config_of("disk", depth=3, cache_dtype=dtype, cache_gib=1e-9), tmp_path / "nothing")
    assert different(tmp_path / "all", tmp_path / "some") == []
    assert different(tmp_path / "all", tmp_path / "nothing") == []


def test_kept_features_spare_the_frozen_modules(tmp_path, monkeypatch):
    """The first module is called for its own training and evaluation, and once more for each kept batch."""
    calls = {}

    def counted(self, features, batch=None):
        if torch.is_grad_enabled() is False and features.shape[0] == 32:  # evaluation has batches of 60
            calls[self.name] = calls.get(self.name, 0) + 1
        return self.blocks(features)

    monkeypatch.setattr(runtime.LocalModule, "forward", counted)
    runs.train(config_of(depth=3), tmp_path / "none")  # modules 1, 2, 3 and the classifier, 10 steps each
    assert calls == {"1": 30, "2": 20, "3": 10}
    calls.clear()
    runs.train(config_of("memory", depth=3, cache_epochs=1), tmp_path / "cached")  # of 5 batches
    assert calls == {"1": 5, "2": 5, "3": 5}


@pytest.mark.parametrize(
    ("cache", "step"),
    [("none", 1), ("none", 10), ("none", 13), ("none", 29), ("disk", 11), ("disk", 13), ("disk", 25)],
)
def test_killed_between_and_within_modules(tmp_path, uninterrupted, cache, step):
    """Two modules and the classifier, ten steps each."""
    whole, summary = uninterrupted[cache]
    with pytest.raises(small.Killed):
        runs.train(config_of(cache), tmp_path / "killed", small.KillAt(step))
    resumed = runs.resume(tmp_path / "killed")
    assert_same_end(whole, tmp_path / "killed", summary, resumed)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    torch.set_num_threads(1)
    found = {}
    for cache in ("none", "disk"):
        run = tmp_path_factory.mktemp(cache) / "whole"
        found[cache] = run, runs.train(config_of(cache), run)
    return found


def assert_same_end(run, other, summary, other_summary):
    assert different(run, other) == []
    for key in ("accuracy", "nodes", "steps"):
        assert summary[key] == other_summary[key]
    for kind in ("train", "evaluate"):
        figures = [[(e["step"], e["epoch"], e["module"], e["nodes"]) for e in events(r, kind)] for r in (run, other)]
        assert figures[0] == figures[1]
    assert not (other / "features").exists()


def test_a_resume_that_forgets_momentum_is_caught(tmp_path, uninterrupted, monkeypatch):
    """The sibling."""
    whole, summary = uninterrupted["none"]
    with pytest.raises(small.Killed):
        runs.train(config_of(), tmp_path / "killed", small.KillAt(13))
    monkeypatch.setattr("locallearn.training.checkpoint.load_optimizer", lambda *_: None)
    resumed = runs.resume(tmp_path / "killed")
    with pytest.raises(AssertionError):
        assert_same_end(whole, tmp_path / "killed", summary, resumed)


def test_the_record_tells_which_module_trains(uninterrupted):
    run, summary = uninterrupted["none"]
    expected = [(1, 1), (2, 1), (3, 2), (4, 2), (5, "classifier"), (6, "classifier")]
    assert [(e["epoch"], e["module"]) for e in events(run, "train")] == expected
    for event in events(run, "train"):
        assert {node["module"] for node in event["nodes"]} == {event["module"]}
    evaluations = events(run, "evaluate")
    assert [("last_layer" in e, len(e["nodes"])) for e in evaluations] == [(False, 2)] * 2 + [(False, 4)] * 2 + [
        (True, 5)
    ] * 2
    assert summary["accuracy"]["last_layer"] == evaluations[-1]["last_layer"]
    assert summary["steps"] == 30
    assert open_run(run).evaluate().last_layer == summary["accuracy"]["last_layer"]
    row = comparison_rows(read_runs([run]))[0]
    assert (row["epochs"], row["planned_epochs"], row["last_layer"]) == (6, 6, summary["accuracy"]["last_layer"])


def test_gradients_and_optimizer_state_are_one_modules(tmp_path):
    config = resolve(config_of(depth=3), load(small.config().data))
    folder = runs.RunFolder(tmp_path / "run")
    training = stage_by_stage.SequentialTraining(config, load(config.data), folder, Quiet())
    folder.create(config)
    training.run()
    for step, module in zip(training.nodes.steps.values(), training.modules, strict=True):
        holds = bool(step.optimizer.state) or any(p.grad is not None for p in module.parameters())
        assert holds == (module.name == "classifier")


def test_activations_are_those_of_the_largest_module(tmp_path):
    changes = {"method": "dgl", "width": (1,), "depth": 3}
    inline = runs.train(small.config(**changes), tmp_path / "inline")
    alone = runs.train(config_of(**changes), tmp_path / "sequential")
    assert alone["memory"]["activation_bytes"] == inline["memory"]["activation_bytes"]


def test_losses_that_need_pixels_or_have_no_classifier(tmp_path):
    config = config_of("memory", method="infopro", width=(1,), depth=3)
    summary = runs.train(config, tmp_path / "run")
    assert 0 < summary["accuracy"]["last_layer"] <= 1
    assert "accuracy" not in events(tmp_path / "run", "evaluate")[0]["nodes"][0]


def test_the_digest_names_sequential_training_and_leaves_inline_training_alone():
    inline = small.config()
    assert digest(inline) == digest(dataclasses.replace(inline, sequential=SequentialConfig(cache="memory")))
    assert digest(config_of()) != digest(inline)
    assert digest(config_of("memory")) != digest(config_of())
    assert digest(config_of("memory", cache_gib=2.0)) == digest(config_of("memory"))


def test_a_stop_leaves_no_features_behind(tmp_path):
    config = config_of("disk", checkpoint=CheckpointConfig(every_steps=1))
    seen = []

    class Look(small.KillAt):
        def on_step(self, step):
            seen.append((tmp_path / "run" / "features").exists())
            super().on_step(step)

    with pytest.raises(small.Killed):
        runs.train(config, tmp_path / "run", Look(12))
    assert seen[-1]
    assert not (tmp_path / "run" / "features").exists()


def test_the_frozen_modules_keep_the_cache_small(tmp_path, monkeypatch):
    largest = []
    put = FeatureCache.put

    def noted(self, key, level, kept):
        put(self, key, level, kept)
        largest.append(self.bytes)

    monkeypatch.setattr(FeatureCache, "put", noted)
    runs.train(config_of("memory", depth=3, cache_gib=1e-4), tmp_path / "run")
    assert 0 < max(largest) <= 1e-4 * 2**30


def test_every_module_records_its_own_rate(tmp_path):
    schedule = ScheduleConfig(name="milestones", milestones=(1,), factors=(0.1,))
    runs.train(config_of(schedule=schedule), tmp_path / "run")
    found = [(event["module"], event["learning_rate"]) for event in events(tmp_path / "run", "train")]
    assert found == [(m, pytest.approx(rate)) for m in (1, 2, "classifier") for rate in (0.1, 0.01)]


@pytest.mark.parametrize("step", [10, 13])  # at the end of the first module's training, and within the second's
def test_a_resumed_run_remembers_momentum_of_the_module_that_trains_alone(tmp_path, step):
    run = tmp_path / "run"
    with pytest.raises(small.Killed):
        runs.train(config_of(), run, small.KillAt(step + 1))
    config = RunFolder(run).config()
    training = runs.build(config, load(config.data), RunFolder(run))
    training.restore()
    remembered = [bool(each.optimizer.state) for each in training.nodes.steps.values()]
    assert training.step in (step, step - 1)
    assert remembered == [False, step != 10, False]


def test_kept_features_are_gone_before_the_summary_is_there(tmp_path, monkeypatch):
    seen = []
    write = RunFolder.write_summary

    def look(folder, summary):
        seen.append((folder.path / "features").exists())
        write(folder, summary)

    monkeypatch.setattr(RunFolder, "write_summary", look)
    runs.train(config_of("disk"), tmp_path / "run")
    assert seen == [False]
