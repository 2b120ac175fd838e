"""The stages of a user's model in several processes train what one process does, bit for bit in fp32."""

import pytest
import torch

from distributed.processes import HERE, finish, start
from programs import Program

SCRIPT = str(HERE / "train_split.py")


def alone(name, output, epochs, *run):
    [(code, _, errors)] = finish([Program([SCRIPT, name, str(output), str(epochs), *map(str, run)])])
    assert code == 0, errors
    return torch.load(output)


def together(count, name, output, epochs, *run):
    for code, _, errors in finish(start([SCRIPT, name, str(output), str(epochs), *map(str, run)], count)):
        assert code == 0, errors
    return torch.load(output)


def differing(one, other):
    return [name for name, value in one[0].items() if not torch.equal(value, other[0][name])]


@pytest.mark.parametrize(
    ("name", "count"),
    [("gpt2", 2), ("vit", 3), ("transformer", 2), ("llama-shared", 3), ("timm-efficientnet", 3)],
)
def test_processes_train_what_one_does(tmp_path, name, count):
    """GPT-2's last stage reads the embedding, which the first process trains; heads of Llama's first stages read the
    unembedding, which the last one trains. The last batch is smaller.
    """
    if name.startswith("timm"):
        pytest.importorskip("torchvision", reason="needs the packages timm and torchvision")
    one = alone(name, tmp_path / "one.pt", 2)
    several = together(count, name, tmp_path / "several.pt", 2)
    assert differing(one, several) == []
    assert one[1] == several[1]  # of the evaluation, in which each process computes its own stages
    assert several[2] < 0.8 * one[2]  # bytes of weights in the first process
    assert differing(one, alone(name, tmp_path / "shorter.pt", 1)) != []


@pytest.mark.parametrize("name", ["gpt2", "llama-shared"])
def test_a_run_continues_with_another_number_of_processes(tmp_path, name):
    whole = alone(name, tmp_path / "whole.pt", 3)
    alone(name, tmp_path / "first.pt", 1, tmp_path / "run")
    together(3, name, tmp_path / "second.pt", 2, tmp_path / "run")
    several = together(2, name, tmp_path / "third.pt", 3, tmp_path / "run")
    assert differing(whole, several) == []


def test_more_processes_than_stages_are_refused(tmp_path):
    found = finish(start([SCRIPT, "transformer", str(tmp_path / "none.pt"), "1"], 4))
    assert all(code != 0 for code, _, _ in found)
    assert any("mesh.depth: 4 is not valid; expected at most 3" in errors for _, _, errors in found)


def test_bf16_trains_in_processes_too(tmp_path, monkeypatch):
    monkeypatch.setenv("PRECISION", "bf16")
    one = alone("vit", tmp_path / "one.pt", 1)
    assert differing(one, together(2, "vit", tmp_path / "several.pt", 1)) == []


def test_overlapping_stages_train_in_processes_what_one_trains(tmp_path, monkeypatch):
    """The second process gives the gradient back that the first one's last stage is trained with, too."""
    without = alone("vit", tmp_path / "without.pt", 1)
    monkeypatch.setenv("OVERLAP", "1")
    one = alone("vit", tmp_path / "one.pt", 1)
    assert differing(one, together(2, "vit", tmp_path / "several.pt", 1)) == []
    assert differing(one, without) != []
