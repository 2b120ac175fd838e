"""Modules that train at the same time on several threads train what one after the other does, bit for bit."""

import dataclasses
import json
import threading

import pytest
import torch

import same_training
import small
from distributed.compare import figures, last_checkpoint
from locallearn.config import (
    CheckpointConfig,
    OptimizerConfig,
    ThreadsConfig,
    digest,
    from_toml,
    to_toml,
)
from locallearn.core.local_step import LocalStep
from locallearn.core.module import Stage
from locallearn.data.store import Batch
from locallearn.errors import ConfigError, DivergedError
from locallearn.losses.objectives import LocalLoss, Objective
from locallearn.runtime.inline import InlineRuntime
from locallearn.runtime.threads import ThreadsRuntime
from locallearn.training import runs
from same_training import GENTLE, differences

CASES = {
    **same_training.CASES,
    "dropout": small.config("gn-dgl", 2, (2,), model="tiny-vgg", dropout=0.2, optimizer=GENTLE),
}


def on_threads(config, threads=2, at_once=None):
    """The same with several modules at once, each with one thread."""
    train = dataclasses.replace(config.train, threads=threads)
    return dataclasses.replace(config, runtime="threads", train=train, threads=ThreadsConfig(at_once))


@pytest.mark.parametrize("name", CASES)
def test_they_train_what_one_after_the_other_does(tmp_path, name):
    config = CASES[name]
    threads = config.depth if config.depth > 2 else 2  # a module has one thread: several add up in another order
    at_once = on_threads(config, threads, threads) if config.depth > 1 else on_threads(config, 1)
    runs.train(config, tmp_path / "inline")
    summary = runs.train(at_once, tmp_path / "threads")
    assert summary["steps"] == 10
    assert differences(last_checkpoint(tmp_path / "threads"), last_checkpoint(tmp_path / "inline")) == []
    assert figures(tmp_path / "threads") == figures(tmp_path / "inline")


def _of_the_batch_before(monkeypatch):
    """A module sees the labels of another batch."""
    call = LocalStep.__call__

    def mixed(self, features, batch, index=0, rate=None, hand_on=None):
        if hand_on and features is not batch.images:  # on threads, after the first module
            batch = Batch(batch.images, batch.labels.roll(1), batch.pixels, batch.step)
        return call(self, features, batch, index, rate, hand_on)

    monkeypatch.setattr(LocalStep, "__call__", mixed)


def _after_the_update(monkeypatch):
    """Features are handed on that were computed after the module's update."""
    call = LocalStep.__call__

    def late(self, features, batch, index=0, rate=None, hand_on=None):
        out, loss = call(self, features, batch, index, rate)
        with torch.no_grad():
            (hand_on or (lambda _: None))(self.module(features))
        return out, loss

    monkeypatch.setattr(LocalStep, "__call__", late)


def _rate_of_the_step_before(monkeypatch):
    """A learning rate comes a step late."""
    call = LocalStep.__call__

    def late(self, features, batch, index=0, rate=None, hand_on=None):
        before, self.rate = getattr(self, "rate", rate), rate
        return call(self, features, batch, index, before, hand_on)

    monkeypatch.setattr(LocalStep, "__call__", late)


@pytest.mark.parametrize("fault", [_of_the_batch_before, _after_the_update, _rate_of_the_step_before])
def test_planted_errors_are_seen(tmp_path, monkeypatch, fault):
    config = CASES["dgl"]
    runs.train(config, tmp_path / "inline")
    fault(monkeypatch)
    runs.train(on_threads(config), tmp_path / "threads")
    assert differences(last_checkpoint(tmp_path / "threads"), last_checkpoint(tmp_path / "inline")) != []


@pytest.mark.parametrize("step", [3, 5, 6])
def test_a_killed_run_resumes_to_the_same_end(tmp_path, step):
    config = on_threads(CASES["dgl"])
    whole = runs.train(config, tmp_path / "whole")
    with pytest.raises(small.Killed):
        runs.train(config, tmp_path / "killed", small.KillAt(step))
    assert not [thread for thread in threading.enumerate() if "_work" in thread.name]
    resumed = runs.resume(tmp_path / "killed")
    assert resumed["accuracy"] == whole["accuracy"]
    assert differences(last_checkpoint(tmp_path / "killed"), last_checkpoint(tmp_path / "whole")) == []


@pytest.mark.parametrize(("first", "then"), [("inline", "threads"), ("threads", "inline")])
def test_a_run_goes_on_with_the_other_runtime(tmp_path, first, then):
    plain = CASES["gn-dgl"]
    configs = {"inline": plain, "threads": on_threads(plain, 2)}
    runs.train(plain, tmp_path / "whole")
    with pytest.raises(small.Killed):
        runs.train(configs[first], tmp_path / "run", small.KillAt(5))
    runs.resume(tmp_path / "run", runtime=then, threads=configs[then].train.threads)
    assert differences(last_checkpoint(tmp_path / "run"), last_checkpoint(tmp_path / "whole")) == []


def test_what_is_trained_has_the_digest_of_inline_and_survives_toml():
    threads = on_threads(CASES["dgl"], 4, 2)
    assert digest(threads) == digest(CASES["dgl"])
    assert from_toml(to_toml(threads)) == threads


def test_activations_of_as_many_modules_are_held_as_train_at_once(tmp_path):
    config = dataclasses.replace(CASES["gn-dgl"], checkpoint=CheckpointConfig())
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=1))
    peaks = {}
    for at_once in (1, 2, 3):
        summary = runs.train(on_threads(config, 3, at_once), tmp_path / str(at_once))
        peaks[at_once] = summary["memory"]["activation_bytes"]
    assert peaks[1] == runs.train(config, tmp_path / "inline")["memory"]["activation_bytes"]
    assert peaks[1] < peaks[2] < peaks[3] < 3 * peaks[1]


# --- the runtime alone -----------------------------------------------------------------------------------------


class _Recorded:
    """Stands for a local step, and notes when it is called."""

    def __init__(self, k, notes, together=None):
        self.k, self.notes, self.together = k, notes, together
        self.module = Stage(str(k), Objective(), 1)

    def __call__(self, features, batch, index, rate, hand_on=None):
        self.notes.append((self.k, index, rate, features.item()))
        if hand_on is not None:
            hand_on(features + 1)
        if self.together is not None:
            self.together.wait()
        return features + 1, LocalLoss(torch.tensor([float(100 * self.k + index)]), {}, None)


def batches(n):
    return [small.batch_of(torch.tensor(10.0 * i), torch.tensor([i])) for i in range(n)]


@pytest.mark.parametrize(("modules", "at_once"), [(1, 1), (2, 2), (3, 2), (5, 4), (2, 1)])
def test_batches_come_back_in_order_with_all_their_losses(modules, at_once):
    notes, trained = [], []
    with ThreadsRuntime([_Recorded(k, notes) for k in range(modules)], at_once, at_once) as runtime:
        for index, batch in enumerate(batches(20)):
            trained += runtime.step(batch, index, 0.5 * index)
            assert 20 - at_once <= 20 - (index + 1 - len(trained))  # so many are on their way at most
        trained += runtime.settle()
    assert [each.labels.item() for each in trained] == list(range(20))
    for index, each in enumerate(trained):
        assert [loss.total.item() for loss in each.losses] == [100 * k + index for k in range(modules)]
    for k in range(modules):
        assert [note for note in notes if note[0] == k] == [(k, i, 0.5 * i, 10 * i + k) for i in range(20)]


def test_modules_really_train_at_the_same_time():
    """Each waits within its step for another one; one after the other they would wait for ever."""
    together = threading.Barrier(2, timeout=20)
    with ThreadsRuntime([_Recorded(k, [], together) for k in range(2)], 2, 2) as runtime:
        for index, batch in enumerate(batches(1)):
            runtime.step(batch, index)
        assert len(runtime.settle()) == 1
    alone = threading.Barrier(2, timeout=0.1)
    with pytest.raises(threading.BrokenBarrierError):
        InlineRuntime([_Recorded(k, [], alone) for k in range(2)]).step(batches(1)[0], 0)


@pytest.mark.parametrize("before", [1, 3])
def test_the_process_has_as_many_threads_afterwards_as_before(before):
    torch.set_num_threads(before)
    with ThreadsRuntime([_Recorded(k, []) for k in range(2)], 2, 4) as runtime:
        runtime.step(batches(1)[0], 0)
        runtime.settle()
    assert torch.get_num_threads() == before


def test_an_error_in_a_module_ends_the_training_with_it():
    class Broken(_Recorded):
        def __call__(self, *given):
            if given[2] == 3:
                raise ValueError("no")
            return super().__call__(*given)

    def train():
        with ThreadsRuntime([_Recorded(0, []), Broken(1, [])], 2, 2) as runtime:
            for index, batch in enumerate(batches(9)):
                runtime.step(batch, index)
            runtime.settle()

    with pytest.raises(ValueError, match="no"):
        train()


def test_a_loss_that_is_not_finite_is_told_with_module_and_step(tmp_path):
    config = on_threads(small.config("dgl", 2, (1,), optimizer=OptimizerConfig(learning_rate=1e30)))
    with pytest.raises(DivergedError, match="module .*, group 1 became NaN or infinite at step"):
        runs.train(config, tmp_path / "run")


def test_every_summary_says_what_ran(tmp_path):
    config = on_threads(small.config("dgl", 2, (1,)))
    runs.train(config, tmp_path / "run")
    assert 'runtime = "threads"' in (tmp_path / "run" / "config.toml").read_text()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "finished"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"at_once": 0}, "threads.at_once: 0"),
        ({"at_once": 1.5}, "threads.at_once: 1.5"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        ThreadsConfig(**changes)


def test_a_gpu_is_refused(monkeypatch):
    from locallearn.data.datasets import load
    from locallearn.training import setup

    monkeypatch.setattr(setup, "check_device", torch.device)
    train = dataclasses.replace(small.TRAIN, device="cuda")
    config = dataclasses.replace(on_threads(CASES["dgl"]), train=train)
    with pytest.raises(ConfigError, match="runtime: 'threads'.* expected inline on cuda"):
        setup.resolve(config, load(config.data))
