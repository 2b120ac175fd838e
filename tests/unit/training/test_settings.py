"""A run goes on with other settings: only where the user asks for it, and only from where it stands."""

import dataclasses
import json

import pytest
import torch

import small
from locallearn.config import CheckpointConfig, OptimizerConfig, ScheduleConfig, digest, from_toml, to_toml
from locallearn.data.datasets import load as load_data
from locallearn.errors import CheckpointError, ConfigError, UsageError
from locallearn.training import runs
from locallearn.training.checkpoint import load
from locallearn.training.setup import resolve
from same_training import differences

CONFIG = small.config("dgl", width=(1,), checkpoint=CheckpointConfig(every_steps=2, keep_last=10))
LONGER = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, epochs=4))
SLOWER = OptimizerConfig(learning_rate=0.01)


def weights(run):
    return load(sorted((run / "checkpoints").glob("step-*"))[-1])


def digest_of(config):
    """As its run has it, once everything is decided."""
    return digest(resolve(config, load_data(config.data)))


def entries(run):
    return [(entry["step"], entry["digest"]) for entry in json.loads((run / "history.json").read_text())]


def test_more_epochs_of_a_constant_rate_are_the_longer_training_bit_for_bit(tmp_path):
    runs.train(CONFIG, tmp_path / "run")
    summary = runs.resume(tmp_path / "run", epochs=4)
    whole = runs.train(LONGER, tmp_path / "whole")
    assert differences(weights(tmp_path / "run"), weights(tmp_path / "whole")) == []
    assert summary["digest"] == whole["digest"] == digest_of(LONGER)
    assert summary["history"] == [{"until_step": 10, "digest": digest_of(CONFIG)}]
    assert "history" not in whole
    assert json.loads((tmp_path / "run" / "history.json").read_text())[0]["config"]["train"]["epochs"] == 2
    assert runs.resume(tmp_path / "run") == summary  # finished, and nothing is asked for


def test_a_run_in_the_middle_of_an_epoch_goes_on_with_another_rate(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(small.Killed):
        runs.train(LONGER, run, small.KillAt(7))
    runs.resume(run, optimizer=SLOWER, schedule=ScheduleConfig(name="milestones", milestones=(3,), factors=(0.1,)))
    rates = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    told = {event["epoch"]: event["learning_rate"] for event in rates if event["event"] == "train"}
    assert told == {1: 0.1, 2: 0.01, 3: 0.01, 4: pytest.approx(0.001)}
    assert entries(run) == [(6, digest_of(LONGER))]
    assert from_toml((run / "config.toml").read_text()).optimizer == SLOWER


@pytest.mark.parametrize("step", [1, 8, 13])
def test_a_changed_run_that_is_killed_resumes_exactly(tmp_path, step):
    with pytest.raises(small.Killed):
        runs.train(LONGER, tmp_path / "a", small.KillAt(7))
    with pytest.raises(small.Killed):
        runs.train(LONGER, tmp_path / "b", small.KillAt(7))
    runs.resume(tmp_path / "a", optimizer=SLOWER)
    with pytest.raises(small.Killed):
        runs.resume(tmp_path / "b", small.KillAt(6 + step), optimizer=SLOWER)
    runs.resume(tmp_path / "b")
    assert differences(weights(tmp_path / "a"), weights(tmp_path / "b")) == []
    assert entries(tmp_path / "b") == [(6, digest_of(LONGER))]


def test_a_kill_between_history_and_configuration_leaves_the_run_as_it_was(tmp_path):
    runs.train(LONGER, tmp_path / "whole")
    with pytest.raises(small.Killed):
        runs.train(LONGER, tmp_path / "run", small.KillAt(7))
    before = (tmp_path / "run" / "config.toml").read_text()
    with pytest.raises(small.Killed):
        runs.resume(tmp_path / "run", small.KillAt(7), optimizer=SLOWER)
    (tmp_path / "run" / "config.toml").write_text(before)  # as if the new one had not been written yet
    summary = runs.resume(tmp_path / "run")
    assert differences(weights(tmp_path / "run"), weights(tmp_path / "whole")) == []
    assert "history" not in summary


def test_a_kill_before_the_old_summary_goes_leaves_a_run_that_continues(tmp_path):
    run = tmp_path / "run"
    runs.train(CONFIG, run)
    summary = (run / "summary.json").read_text()
    with pytest.raises(small.Killed):
        runs.resume(run, small.KillAt(11), epochs=4)
    (run / "summary.json").write_text(summary)
    assert runs.resume(run)["steps"] == 20


def test_only_the_step_of_the_change_takes_over_from_the_old_configuration(tmp_path):
    run = tmp_path / "run"
    runs.train(CONFIG, run)
    runs.resume(run, epochs=4, optimizer=SLOWER)
    (run / "summary.json").unlink()
    for path in (run / "checkpoints").glob("step-*"):
        if path.name > "step-000000008.safetensors":  # what is left is of before the change
            path.unlink()
    with pytest.raises(CheckpointError, match="belongs to another configuration than config.toml"):
        runs.resume(run)


def test_an_edited_configuration_is_not_taken_over_with_a_change(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(small.Killed):
        runs.train(LONGER, run, small.KillAt(7))
    (run / "config.toml").write_text(to_toml(dataclasses.replace(LONGER, optimizer=SLOWER)))
    with pytest.raises(CheckpointError, match="put that back, and change settings with"):
        runs.resume(run, epochs=6)
    assert not (run / "history.json").exists()


def test_going_back_and_forth_before_a_step_keeps_the_configuration_that_trained(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(small.Killed):
        runs.train(LONGER, run, small.KillAt(7))
    for rate in (0.01, 0.02):
        with pytest.raises(small.Killed):
            runs.resume(run, small.KillAt(7), optimizer=OptimizerConfig(learning_rate=rate))
    assert entries(run) == [(6, digest_of(LONGER))]
    assert runs.resume(run, optimizer=LONGER.optimizer)["digest"] == digest_of(LONGER)
    assert entries(run) == []


def test_what_cannot_change_is_refused_and_nothing_is_written(tmp_path):
    run = tmp_path / "run"
    runs.train(CONFIG, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="epochs: 2 is not valid; expected more than the 2 that are done"):
        runs.resume(run, optimizer=SLOWER)
    with pytest.raises(ConfigError, match="expected sgd, with which the run began"):
        runs.resume(run, epochs=4, optimizer=OptimizerConfig(name="adam"))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("runtime", ["sequential", "asynchronous"])
def test_modules_at_different_steps_keep_their_settings(tmp_path, runtime):
    (tmp_path / "config.toml").write_text(to_toml(dataclasses.replace(CONFIG, runtime=runtime)))
    with pytest.raises(UsageError, match="keeps its epochs, rates and schedule"):
        runs.resume(tmp_path, epochs=4)


def test_a_damaged_history_is_named(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(small.Killed):
        runs.train(CONFIG, run, small.KillAt(7))
    (run / "history.json").write_text("[{]")
    with pytest.raises(UsageError, match=r"history\.json cannot be read"):
        runs.resume(run)


def test_other_weights_come_of_another_rate(tmp_path):
    """The sibling: were the new rate not used, this would be the longer training."""
    runs.train(CONFIG, tmp_path / "run")
    runs.resume(tmp_path / "run", epochs=4, optimizer=SLOWER)
    runs.train(LONGER, tmp_path / "whole")
    assert "network/stages.0.blocks.stem.conv.weight" in weights(tmp_path / "run").tensors
    assert not torch.equal(
        *(weights(tmp_path / name).tensors["network/stages.0.blocks.stem.conv.weight"] for name in ("run", "whole"))
    )
