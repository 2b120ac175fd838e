"""Replicas of the stages of users' models train what one process does, up to rounding."""

import pytest
import torch

from distributed.processes import HERE, finish, start
from locallearn.training.verify_processes import ROUNDING
from programs import Program

SCRIPT = str(HERE / "train_replicas.py")
CASES = ["transformer", "resnet", "unet", "tagger", "huber", "norms"]


def alone(names, output, epochs, *run):
    [(code, _, errors)] = finish([Program([SCRIPT, ",".join(names), str(output), str(epochs), *map(str, run)])])
    assert code == 0, errors
    return torch.load(output)


def together(count, names, output, epochs, *run):
    for code, _, errors in finish(start([SCRIPT, ",".join(names), str(output), str(epochs), *map(str, run)], count)):
        assert code == 0, errors
    return torch.load(output)


def differing(one, other):
    """Names of tensors that differ by more than rounding does, of one case."""
    worst = {
        name: (value - other[0][name]).abs().max() / value.abs().max().clamp(min=1e-3)
        for name, value in one[0].items()
    }
    return [name for name, value in worst.items() if value > ROUNDING]


@pytest.fixture(scope="module")
def inline(tmp_path_factory):
    return alone(CASES, tmp_path_factory.mktemp("inline") / "one.pt", 2)


def test_replicas_train_what_one_process_does(tmp_path, inline):
    """Batch norms and losses are those of the whole batch; labels that count are not as many on both; the last batch
    is smaller, and cannot be halved.
    """
    several = together(2, CASES, tmp_path / "several.pt", 2)
    assert {name: differing(inline[name], several[name]) for name in CASES} == {name: [] for name in CASES}
    for name in CASES:
        assert several[name][1] == pytest.approx(inline[name][1], rel=1e-3)


def test_stages_and_replicas_share_four_processes(tmp_path, inline):
    several = together(4, ["resnet", "unet"], tmp_path / "several.pt", 2)
    assert differing(inline["resnet"], several["resnet"]) == []
    assert differing(inline["unet"], several["unet"]) == []


def test_losses_and_norms_of_parts_of_a_batch_are_noticed(tmp_path, inline, monkeypatch):
    monkeypatch.setenv("FAULT", "1")
    several = together(2, ["tagger", "norms"], tmp_path / "several.pt", 2)
    assert differing(inline["tagger"], several["tagger"]) != []
    assert differing(inline["norms"], several["norms"]) != []


def test_a_run_continues_with_replicas_and_without(tmp_path):
    whole = alone(["tagger"], tmp_path / "whole.pt", 3)
    alone(["tagger"], tmp_path / "first.pt", 1, tmp_path / "run")
    together(2, ["tagger"], tmp_path / "second.pt", 2, tmp_path / "run")
    assert differing(whole["tagger"], alone(["tagger"], tmp_path / "third.pt", 3, tmp_path / "run")["tagger"]) == []


def test_what_replicas_draw_is_their_own_and_the_same_after_a_resume(tmp_path):
    names = ["dropout"]
    whole = together(2, names, tmp_path / "whole.pt", 2)["dropout"]
    together(2, names, tmp_path / "first.pt", 1, tmp_path / "run")
    resumed = together(2, names, tmp_path / "second.pt", 2, tmp_path / "run")["dropout"]
    assert all(torch.equal(value, resumed[0][name]) for name, value in whole[0].items())
    assert differing(whole, alone(names, tmp_path / "one.pt", 2)["dropout"]) != []


def test_a_loss_that_is_no_mean_is_refused_in_a_line(tmp_path):
    for code, _, errors in finish(start([SCRIPT, "sums", str(tmp_path / "none.pt"), "1"], 2)):
        assert code != 0
        assert "replicas: 2 is not valid; expected 1 with the loss of stage 1, which is no mean over" in errors
