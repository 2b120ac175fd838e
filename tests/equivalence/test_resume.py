"""A run that is killed and resumed ends with the weights of the run that was not, bit for bit."""

import json
import signal
import time
from types import SimpleNamespace

import pytest
import torch

import small
from locallearn.config import CheckpointConfig, OptimizerConfig, to_toml
from locallearn.training import loop, runs
from locallearn.training.checkpoint import load
from locallearn.training.observer import Quiet
from programs import Program

PROGRAM = """
import sys, pathlib
from locallearn.config import from_toml
from locallearn.training import runs
runs.train(from_toml(pathlib.Path(sys.argv[1]).read_text()), sys.argv[2])
"""


def last_checkpoint(run):
    return load(sorted((run / "checkpoints").glob("step-*"))[-1])


def assert_same_end(run, other, summaries):
    a, b = last_checkpoint(run), last_checkpoint(other)
    assert a.tensors.keys() == b.tensors.keys()
    different = [key for key in a.tensors if not torch.equal(a.tensors[key], b.tensors[key])]
    assert different == []
    assert summaries[0]["accuracy"] == summaries[1]["accuracy"]
    for kind in ("train", "evaluate"):
        assert _figures(run, kind) == _figures(other, kind)


def _figures(run, kind):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(e["step"], e["epoch"], e["nodes"]) for e in lines if e["event"] == kind]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that was not killed, and its summary."""
    run = tmp_path_factory.mktemp("whole") / "run"
    return SimpleNamespace(run=run, summary=runs.train(small.config(), run))


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5, 6, 9, 10])
def test_killed_at_any_step(whole, tmp_path, step):
    with pytest.raises(small.Killed):
        runs.train(small.config(), tmp_path / "killed", small.KillAt(step))
    resumed = runs.resume(tmp_path / "killed")
    assert_same_end(whole.run, tmp_path / "killed", (whole.summary, resumed))


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": OptimizerConfig(name="adam", learning_rate=1e-3, clip_norm=1.0)},
        {"model": "tiny-vgg", "dropout": 0.2},
        {"method": "e2e", "depth": 1, "width": (1,)},
    ],
    ids=["adam", "dropout", "e2e"],
)
def test_killed_with_other_settings(tmp_path, changes):
    config = small.config(**changes)
    whole = runs.train(config, tmp_path / "whole")
    with pytest.raises(small.Killed):
        runs.train(config, tmp_path / "killed", small.KillAt(7))
    assert_same_end(tmp_path / "whole", tmp_path / "killed", (whole, runs.resume(tmp_path / "killed")))


def test_lost_momentum_is_caught(whole, tmp_path, monkeypatch):
    """The sibling: a resume that forgets the optimizer's state does not end the same."""
    with pytest.raises(small.Killed):
        runs.train(small.config(), tmp_path / "killed", small.KillAt(7))
    monkeypatch.setattr(loop.checkpoints, "load_optimizer", lambda *_: None)
    resumed = runs.resume(tmp_path / "killed")
    with pytest.raises(AssertionError):
        assert_same_end(whole.run, tmp_path / "killed", (whole.summary, resumed))


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(tmp_path):
    config = small.config(checkpoint=CheckpointConfig(every_steps=2, keep_last=3))
    whole = runs.train(config, tmp_path / "whole")
    with pytest.raises(small.Killed):
        runs.train(config, tmp_path / "killed", small.KillAt(9))
    newest = sorted((tmp_path / "killed" / "checkpoints").glob("step-*"))[-1]
    newest.write_bytes(newest.read_bytes()[:1000])

    class Listen(Quiet):
        def __init__(self):
            self.warnings = []

        def on_warning(self, message):
            self.warnings.append(message)

    listen = Listen()
    resumed = runs.resume(tmp_path / "killed", listen)
    assert len(listen.warnings) == 1
    assert newest.name in listen.warnings[0]
    assert_same_end(tmp_path / "whole", tmp_path / "killed", (whole, resumed))


def test_a_finished_run_is_not_trained_again(tmp_path):
    summary = runs.train(small.config(), tmp_path / "run")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert runs.resume(tmp_path / "run") == summary
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("delay", [0.0, 0.4])
def test_kill_9(tmp_path, delay):
    """A real process, killed at a moment of its own after its first checkpoint, perhaps while writing one."""
    config = small.config(checkpoint=CheckpointConfig(every_steps=1))
    train = config.train.__class__(**{**config.train.__dict__, "epochs": 16})
    config = small.config(checkpoint=config.checkpoint, train=train)
    (tmp_path / "config.toml").write_text(to_toml(config))
    killed = tmp_path / "killed"
    process = Program(["-c", PROGRAM, str(tmp_path / "config.toml"), str(killed)])
    try:
        end = time.monotonic() + 120
        while not list((killed / "checkpoints").glob("step-*")):
            assert process.poll() is None, "it ended before its first checkpoint"
            assert time.monotonic() < end
            time.sleep(0.01)
        time.sleep(delay)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (killed / "summary.json").exists()
    resumed = runs.resume(killed)
    whole = runs.train(config, tmp_path / "whole")
    assert_same_end(tmp_path / "whole", killed, (whole, resumed))
