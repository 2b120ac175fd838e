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


def planned(capsys, *arguments):
    assert main(["plan", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_plan_cuts_the_model_and_says_how(module, capsys):
    devices = ["--model", f"{module}:build", "--devices", "2", "--memory", "1MiB"]
    found = planned(capsys, *devices, "--depths", "1", "2", "9")
    rows = {(row["depth"], row["devices"]): row for row in found["fits"]}
    assert set(rows) == {(1, 1), (2, 1), (2, 2)}
    assert found["batch_size"] == 4
    given = sys.modules[module]
    network = ll.split(given.model(), depth=2, example=given.BATCH)
    cost = ll.cost(network, given.BATCH)
    assert rows[2, 2]["cuts"] == [piece.path for piece in network.pieces[:-1]]
    assert rows[2, 1]["head_shares"] == [module.head_macs / module.macs for module in cost.modules]
    assert rows[2, 2]["makespan"] < rows[2, 1]["makespan"]
    (refused,) = (row for row in found["refused"] if row["depth"] == 9)
    assert "depth: 9 is not valid" in refused["reason"]
    assert found["command"] is None  # data parallelism is as fast, and needs nothing of ours
    links = ["--depths", "2", "--heads", "0c1f", "--device-flops", "1e9", "--bandwidth", "1e7"]
    slow = planned(capsys, *devices, *links)
    call = """ll.Trainer(ll.split(model, example=batch, cuts=['2'], head='0c1f'), runtime="distributed")"""
    assert slow["command"] == f"{call}  # torchrun --nproc-per-node 2"


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        ("build", ["--widths", "2"], "--widths: (2,) is not valid; expected nothing with a model of your own"),
        ("network", [], "gives a network that is split already; plan splits your model"),
        ("build", ["--depths", "2"], "no plan fits 1 KiB a device: the smallest (K = 2"),
    ],
)
def test_a_plan_that_cannot_be_is_one_line(module, capsys, function, options, message):
    assert main(["plan", "--model", f"{module}:{function}", "--memory", "1KiB", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_models_of_transformers_are_named_like_those_of_one_s_own(capsys):
    pytest.importorskip("transformers", reason="needs the package transformers")
    small = "hf:vit?hidden_size=16&num_hidden_layers=2&num_attention_heads=2&intermediate_size=32&num_labels=4"
    assert main(["cost", "--model", f"{small}&image_size=32", "--depth", "2", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["nodes"]) == 2
    assert main(["cost", "--model", "hf:no-such"]) == 2
    assert capsys.readouterr().err.startswith("locallearn: --model: hf:no-such: ")


def test_a_model_is_verified_in_processes(module, capsys):
    assert main(["verify", "--model", f"{module}:build", "--runtime", "distributed", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["data"] == f"{module}:build"
    assert [(check["passed"], check["difference"]) for check in found["checks"]] == [(True, 0.0)] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--runtime", "distributed", "--processes", "3"], "--processes: 3 is not valid; expected at most 2"),
        (["--cuts", "9"], "cuts: '9' is not valid"),
        (["--replicas", "9"], "a batch of 4 has no example for each of 9 replicas"),
    ],
)
def test_a_model_that_cannot_be_verified_is_one_line(module, capsys, options, message):
    assert main(["verify", "--model", f"{module}:build", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
