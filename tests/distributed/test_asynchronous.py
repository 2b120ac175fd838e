"""Asynchronous training: real processes on digits, killed and slowed."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import small
from locallearn.config import AsynchronousConfig, CheckpointConfig, OptimizerConfig, ScheduleConfig, to_toml
from locallearn.data.datasets import load
from locallearn.errors import DivergedError, InterruptedRunError, LocalLearnError
from locallearn.report.compare import comparison_rows
from locallearn.report.records import read_runs
from locallearn.training import runs
from locallearn.training.checkpoint import load as load_checkpoint
from locallearn.training.finished import open_run
from locallearn.training.observer import Quiet
from locallearn.training.setup import resolve


def config_of(epochs=4, **changes):
    settings = AsynchronousConfig(**changes.pop("asynchronous", {}))
    train = dataclasses.replace(small.TRAIN, epochs=epochs)
    checkpoint = CheckpointConfig(every_steps=2)
    base = {"method": "dgl", "width": (1,), "train": train, "checkpoint": checkpoint}
    return small.config(runtime="asynchronous", asynchronous=settings, **{**base, **changes})


def events(run, kind):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [event for event in lines if event["event"] == kind]


def newest(folder):
    return load_checkpoint(sorted(folder.glob("step-*"))[-1])


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Act(Quiet):
    """Does something once all modules have done so many steps."""

    def __init__(self, step, act):
        self.step, self.act, self.done = step, act, False

    def on_step(self, step):
        if step >= self.step and not self.done:
            self.done = True
            self.act()


def training_of(config, run, step, act):
    """A training whose observer calls ``act(training)`` at a step."""
    dataset = load(config.data)
    config = resolve(config, dataset)
    folder = runs.RunFolder(run)
    training = runs.build(config, dataset, folder, Act(step, lambda: act(training)))
    folder.create(config)
    return training


def test_the_first_module_is_that_of_inline_training_bit_for_bit(tmp_path):
    config = config_of(epochs=2)
    summary = runs.train(config, tmp_path / "run")
    runs.train(dataclasses.replace(config, runtime="inline"), tmp_path / "inline")
    inline = newest(tmp_path / "inline" / "checkpoints").tensors
    found = newest(tmp_path / "run" / "checkpoints").tensors
    first = [key for key in found if key.startswith("network/stages.0.")]
    assert first
    assert all(torch.equal(found[key], inline[key]) for key in first)
    assert any(not torch.equal(found[key], inline[key]) for key in found)
    assert (summary["status"], summary["steps"], len(summary["nodes"])) == ("finished", 10, 2)
    assert [e["epoch"] for e in events(tmp_path / "run", "train")] == [1, 2]
    assert open_run(tmp_path / "run").evaluate().last_layer == summary["accuracy"]["last_layer"]
    assert comparison_rows(read_runs([tmp_path / "run"]))[0]["planned_epochs"] == 2
    assert summary["memory"]["activation_bytes"] > 0


def test_every_node_tells_its_pace(tmp_path):
    config = config_of(epochs=2, method="gn-dgl", width=(2,))
    runs.train(config, tmp_path / "run")
    for event in events(tmp_path / "run", "train"):
        assert [(n["module"], n["group"]) for n in event["nodes"]] == [
            (1, 1), (1, 2), (2, 1), (2, 2), ("classifier", 1)
        ]  # fmt: skip
        for node in event["nodes"]:
            assert 0 <= node["reuse"] <= config.asynchronous.max_reuse
            assert 0 <= node["staleness"] <= node["largest_staleness"]
            assert node["module"] != 1 or node["staleness"] == node["reuse"] == node["dropped"] == 0


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_the_others_train_on_while_one_is_killed_and_returns(tmp_path, victim):
    """kill -9 of the first, a middle and the last of three processes."""

    def kill(training):
        start = training._start
        training._start = lambda index: time.sleep(1) or start(index)  # however busy the machine, it is away so long
        os.kill(training.processes[victim].pid, signal.SIGKILL)

    config = config_of(epochs=40, depth=3, asynchronous={"max_reuse": 1000})
    training = training_of(config, tmp_path / "run", 20, kill)
    summary = training.run()
    lost, returned = events(tmp_path / "run", "lost"), events(tmp_path / "run", "returned")
    assert [e["module"] for e in lost] == [e["module"] for e in returned] == [str(victim + 1)]
    for name, step in lost[0]["steps"].items():
        if name != str(victim + 1):
            assert returned[0]["steps"][name] > step
    assert summary["steps"] == 200
    assert [e["epoch"] for e in events(tmp_path / "run", "train")] == list(range(1, 41))
    for name in ("1", "2", "3"):
        assert newest(tmp_path / "run" / "modules" / name).progress["clock"] == 200
    assert not any(is_running(process.pid) for process in training.processes)


def test_a_killed_first_module_ends_with_the_weights_of_an_undisturbed_one(tmp_path):
    kill = lambda training: os.kill(training.processes[0].pid, signal.SIGKILL)  # noqa: E731
    training_of(config_of(epochs=8), tmp_path / "killed", 7, kill).run()
    assert len(events(tmp_path / "killed", "lost")) == 1
    runs.train(config_of(epochs=8, depth=2), tmp_path / "whole")
    a, b = (newest(tmp_path / run / "modules" / "1").tensors for run in ("killed", "whole"))
    assert a.keys() == b.keys()
    assert [key for key in a if not torch.equal(a[key], b[key])] == []


def test_a_slow_module_makes_the_next_one_reuse_and_none_wait(tmp_path):
    slow = {"slow_module": 1, "slow_factor": 8.0, "max_reuse": 1000}
    runs.train(config_of(epochs=8, asynchronous=slow), tmp_path / "run")
    first, second = ([event["nodes"][k] for event in events(tmp_path / "run", "train")] for k in (0, 1))
    assert sum(node["reuse"] for node in second) / len(second) > 0.5
    assert [node["steps"] for node in first] == [5] * 8
    assert sum(node["steps"] for node in second) > 60  # it trains on for as long as the first one does


def test_a_slow_module_gets_the_newest_and_none_are_used_again(tmp_path):
    slow = {"slow_module": 2, "slow_factor": 8.0, "buffer_size": 4}
    runs.train(config_of(epochs=8, asynchronous=slow), tmp_path / "run")
    second = [event["nodes"][1] for event in events(tmp_path / "run", "train")]
    assert sum(node["dropped"] for node in second) > 20
    assert all(node["largest_staleness"] < 4 for node in second)


def test_it_learns(tmp_path):
    config = config_of(
        epochs=15,
        optimizer=OptimizerConfig(learning_rate=0.1),
        schedule=ScheduleConfig(unit="step"),
        data=dataclasses.replace(small.config().data, train_limit=600, test_limit=300),
    )
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, evaluate_every=5))
    summary = runs.train(config, tmp_path / "run")
    assert summary["accuracy"]["last_layer"] > 0.7
    assert [e["epoch"] for e in events(tmp_path / "run", "evaluate")] == [5, 10, 15]


def test_a_stop_can_be_resumed(tmp_path):
    def stop(training):
        training.stop.requested = True

    config = config_of(epochs=12)
    with pytest.raises(InterruptedRunError, match="continue with: locallearn train --resume"):
        training_of(config, tmp_path / "run", 20, stop).run()
    steps = [newest(tmp_path / "run" / "modules" / name).progress["step"] for name in ("1", "2")]
    assert min(steps) >= 20  # each wrote a checkpoint where it stood
    summary = runs.resume(tmp_path / "run")
    assert summary["steps"] == 60
    assert [e["epoch"] for e in events(tmp_path / "run", "train")] == list(range(1, 13))
    assert len(events(tmp_path / "run", "resume")) == 1
    runs.train(config, tmp_path / "whole")
    a, b = (newest(tmp_path / run / "modules" / "1").tensors for run in ("run", "whole"))
    assert [key for key in a if not torch.equal(a[key], b[key])] == []
    assert runs.resume(tmp_path / "run") == summary


def test_a_loss_that_diverges_ends_all_processes(tmp_path):
    config = config_of(optimizer=OptimizerConfig(learning_rate=1e20))
    training = training_of(config, tmp_path / "run", 10**9, None)
    with pytest.raises(DivergedError, match="became NaN or infinite at step"):
        training.run()
    assert not any(is_running(process.pid) for process in training.processes)


def test_a_process_that_dies_too_often_ends_the_run(tmp_path):
    kill = lambda training: os.kill(training.processes[1].pid, signal.SIGKILL)  # noqa: E731
    training = training_of(config_of(epochs=40, asynchronous={"restarts": 0}), tmp_path / "run", 5, kill)
    with pytest.raises(LocalLearnError, match=r"the process of module 2 died 1 times; asynchronous\.restarts is 0"):
        training.run()
    assert not any(is_running(process.pid) for process in training.processes)


PROGRAM = """
import sys, pathlib
from locallearn.config import from_toml
from locallearn.data.datasets import load
from locallearn.training import runs
from locallearn.training.observer import Quiet
from locallearn.training.setup import resolve

class Tell(Quiet):
    def on_step(self, step):
        if step:
            print(*(process.pid for process in training.processes), flush=True)

if __name__ == "__main__":
    config = from_toml(pathlib.Path(sys.argv[1]).read_text())
    dataset = load(config.data)
    folder = runs.RunFolder(pathlib.Path(sys.argv[2]))
    training = runs.build(resolve(config, dataset), dataset, folder, Tell())
    folder.create(training.config)
    training.run()
"""


def test_a_killed_launcher_takes_its_processes_along_and_can_be_resumed(tmp_path):
    config = config_of(epochs=10)
    (tmp_path / "config.toml").write_text(to_toml(config))
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "config.toml"), str(tmp_path / "run")]
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        pids = [int(pid) for pid in launcher.stdout.readline().split()]
        assert len(pids) == 2
    finally:
        launcher.kill()
        launcher.wait()
    end = time.monotonic() + 20
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert runs.resume(tmp_path / "run")["steps"] == 50
