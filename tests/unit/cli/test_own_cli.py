"""Models of the user's own on the command line."""

import json
import sys

import pytest

import locallearn as ll
from locallearn.cli.main import main

TEXT = """
import torch
from torch import nn
import locallearn as ll

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))

BATCH = torch.rand(4, 1, 8, 8), torch.arange(4)

def build():
    return model(), BATCH

def network():
    return ll.split(model(), cuts=["2"], example=BATCH), BATCH

def nothing():
    return model()

def broken():
    raise KeyError("lost")
"""


@pytest.fixture
def module(tmp_path, monkeypatch, request):
    """A module of the user's own in the folder that commands are called in; its name is each test's own."""
    name = f"mine_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield name
    sys.modules.pop(name, None)


def costs(capsys, *arguments):
    assert main(["cost", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_costs_are_those_of_the_split_network(module, capsys):
    found = costs(capsys, "--model", f"{module}:build", "--depth", "2", "--head", "0c1f")
    given = sys.modules[module]
    network = ll.split(given.model(), depth=2, example=given.BATCH, head="0c1f")
    assert found == ll.cost(network, given.BATCH).to_json()
    assert len(found["nodes"]) == 2
    named = costs(capsys, "--model", f"{module}:build", "--cuts", "2", "4")
    assert len(named["nodes"]) == 3
    split = costs(capsys, "--model", f"{module}:network")
    assert split == costs(capsys, "--model", f"{module}:build", "--cuts", "2")


def test_the_table_times_and_the_report(module, capsys, tmp_path):
    report = tmp_path / "cost.html"
    options = ["--device-flops", "1e9", "--report", str(report)]
    assert main(["cost", "--model", f"{module}:build", "--depth", "2", *options]) == 0
    assert "training speed-up" in capsys.readouterr().out
    assert f"{module}:build" in report.read_text()


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        ("no", [], "fails: AttributeError"),
        ("broken", [], "fails: KeyError: 'lost'"),
        ("nothing", [], r"gives Sequential; expected a pair (model, batch)"),
        ("build", ["--width", "2", "2"], "--width: (2, 2) is not valid; expected one number"),
        ("build", ["--depth", "4", "--cuts", "2"], "--depth: 4 is not valid; expected 2, or nothing, with 1 cuts"),
        ("build", ["--batch-size", "8"], "--batch-size: 8 is not valid; expected nothing with a model of your own"),
        ("build", ["--cuts", "9"], "cuts: '9' is not valid"),
        ("network", ["--depth", "2"], "is split already; leave out how to split it"),
    ],
)
def test_wrong_calls_are_one_line(module, capsys, function, options, message):
    assert main(["cost", "--model", f"{module}:{function}", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_a_module_that_is_not_there_is_one_line(capsys):
    assert main(["cost", "--model", "no_such_module:build"]) == 2
    assert "--model: no_such_module:build fails: ModuleNotFoundError" in capsys.readouterr().err
