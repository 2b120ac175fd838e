"""Runs that begin with trained weights: of a run, a checkpoint or an export, with other cuts and other heads."""

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

import small
from locallearn.config import CheckpointConfig, digest, from_toml, to_toml
from locallearn.errors import CheckpointError, UsageError
from locallearn.training import runs
from locallearn.training.checkpoint import load
from locallearn.training.export import export
from locallearn.training.finished import open_run
from locallearn.training.observer import Quiet

STILL = dataclasses.replace(small.TRAIN, epochs=1)
BASE = small.config("dgl", width=(1,), train=STILL, checkpoint=CheckpointConfig(every_steps=1, keep_last=20))


class Listen(Quiet):
    def __init__(self):
        self.warnings = []

    def on_warning(self, message):
        self.warnings.append(message)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = tmp_path_factory.mktemp("initial") / "trained"
    runs.train(BASE, run)
    return run


def weights(run, step=-1):
    tensors = load(sorted((run / "checkpoints").glob("step-*"))[step]).tensors
    return {name.removeprefix("network/"): value for name, value in tensors.items() if name.startswith("network/")}


def blocks(found):
    return {name.partition(".blocks.")[2]: value for name, value in found.items() if ".blocks." in name}


def frozen(**changes):
    """A configuration whose training changes no parameter, only statistics of batch norm."""
    optimizer = dataclasses.replace(BASE.optimizer, learning_rate=0.0, weight_decay=0.0)
    return dataclasses.replace(BASE, optimizer=optimizer, **changes)


def parameters(found):
    return {name: value for name, value in found.items() if "running" not in name and "num_batches" not in name}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def test_all_weights_are_those_of_a_run_of_the_same_shape(trained, tmp_path):
    listen = Listen()
    runs.train(frozen(init_from=str(trained)), tmp_path / "run", listen)
    assert_equal(parameters(weights(tmp_path / "run")), parameters(weights(trained)))
    assert listen.warnings == []


def test_other_cuts_and_a_checkpoint_file_give_the_same_blocks_and_classifier(trained, tmp_path):
    listen = Listen()
    file = sorted((trained / "checkpoints").glob("step-*"))[-1]
    config = frozen(method="e2e", depth=1, init_from=str(file))
    runs.train(config, tmp_path / "run", listen)
    found = weights(tmp_path / "run")
    assert_equal(parameters(blocks(found)), parameters(blocks(weights(trained))))
    head = "objective.head.linears.0.weight"
    assert torch.equal(found[f"stages.0.{head}"], weights(trained)[f"stages.1.{head}"])
    assert listen.warnings == []


def test_an_export_gives_blocks_and_classifier_and_auxiliary_heads_are_fresh(trained, tmp_path):
    export(open_run(trained), tmp_path / "export", ("safetensors",))
    listen = Listen()
    runs.train(frozen(init_from=str(tmp_path / "export")), tmp_path / "run", listen)
    assert_equal(parameters(blocks(weights(tmp_path / "run"))), parameters(blocks(weights(trained))))
    (warning,) = listen.warnings
    assert "the heads of modules 1 are not in it, and start from random weights" in warning


def test_weights_are_part_of_the_digest_and_their_place_is_not(trained, tmp_path):
    scratch = runs.train(BASE, tmp_path / "scratch")
    tuned = runs.train(dataclasses.replace(BASE, init_from=str(trained)), tmp_path / "tuned")
    assert tuned["digest"] != scratch["digest"]
    text = (tmp_path / "tuned" / "config.toml").read_text()
    assert str(trained) in text
    assert digest(from_toml(text.replace(str(trained), "/elsewhere"))) == tuned["digest"]


def test_a_resume_needs_the_weights_only_before_the_first_checkpoint(trained, tmp_path):
    source = tmp_path / "weights.safetensors"
    source.write_bytes(sorted((trained / "checkpoints").glob("step-*"))[-1].read_bytes())
    config = dataclasses.replace(BASE, init_from=str(source))
    whole = runs.train(config, tmp_path / "whole")
    for name, step in (("early", 1), ("late", 3)):
        with pytest.raises(small.Killed):
            runs.train(config, tmp_path / name, small.KillAt(step))
    assert not list((tmp_path / "early").rglob("step-*"))
    assert runs.resume(tmp_path / "early")["nodes"] == whole["nodes"]
    with pytest.raises(small.Killed):
        runs.train(config, tmp_path / "changed", small.KillAt(1))
    source.write_bytes(sorted((trained / "checkpoints").glob("step-*"))[0].read_bytes())
    with pytest.raises(CheckpointError, match="has other weights now than when the run began"):
        runs.resume(tmp_path / "changed")
    source.unlink()
    assert runs.resume(tmp_path / "late")["nodes"] == whole["nodes"]


@pytest.mark.parametrize("runtime", ["asynchronous", "sequential", "threads"])
def test_other_runtimes_begin_with_the_weights_too(trained, tmp_path, runtime):
    runs.train(frozen(runtime=runtime, init_from=str(trained)), tmp_path / "run")
    assert_equal(parameters(blocks(weights(tmp_path / "run"))), parameters(blocks(weights(trained))))


def test_what_is_no_network_or_another_one_is_named(trained, tmp_path):
    save_file({"conv.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.toml").write_text(to_toml(BASE))
    for source, message in {
        "nowhere": "is not there; expected the folder of a run, or a safetensors file",
        "other.safetensors": "holds no blocks of a network of this package",
        "empty": "has no checkpoint yet",
    }.items():
        with pytest.raises(UsageError, match=message):
            runs.train(dataclasses.replace(BASE, init_from=str(tmp_path / source)), tmp_path / "run")
    with pytest.raises(UsageError, match=r"is of another network: .* is of shape .* there, expected"):
        runs.train(dataclasses.replace(BASE, method="gn-dgl", width=(2,), init_from=str(trained)), tmp_path / "run")
    with pytest.raises(UsageError, match=r"is of another network: .* is not there, expected"):
        runs.train(dataclasses.replace(BASE, model="tiny-vgg", init_from=str(trained)), tmp_path / "run")
    assert not (tmp_path / "run").exists()
