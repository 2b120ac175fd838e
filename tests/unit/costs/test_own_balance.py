"""Cuts of a user's own model that balance memory or time of stages with their heads."""

import itertools
import json
import sys

import pytest
import torch
from torch import nn

import locallearn as ll
import user_models
from locallearn.cli.main import main
from locallearn.costs.own_balance import BalancedCuts
from locallearn.costs.own_planner import DEFAULT_HEAD, ModelToPlan
from locallearn.errors import ConfigError


def falling():
    """Maps shrink, so that early layers keep much and compute little."""
    torch.manual_seed(0)
    sizes = [(3, 4, 1), (4, 4, 2), (4, 8, 2), (8, 32, 1), (32, 32, 1)]
    layers = [
        nn.Sequential(nn.Conv2d(a, b, 3, stride, 1), nn.BatchNorm2d(b), nn.ReLU(inplace=True))
        for a, b, stride in sizes
    ]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5))
    return model, (torch.rand(8, 3, 16, 16), torch.arange(8) % 5)


def test_memory_is_that_of_a_step_and_the_cuts_are_the_best_that_there_are():
    model, batch = falling()
    found = BalancedCuts(ModelToPlan(model, batch), "memory")
    places = [str(i) for i in range(5)]

    def kept(cuts):
        return [m.activation_bytes for m in ll.cost(ll.split(model, example=batch, cuts=cuts), batch).modules]

    costs = found.costs(places, DEFAULT_HEAD)
    assert [each.block + each.head for each in costs] == kept(places)
    assert all(each.head > 0 for each in costs[:-1])
    chosen = list(found(2, DEFAULT_HEAD))
    assert max(kept(chosen)) == min(max(kept([place])) for place in places)
    assert chosen != [piece.path for piece in ll.split(model, example=batch, depth=2).pieces[:-1]]
    three = max(kept(list(found(3, DEFAULT_HEAD))))
    assert three == min(max(kept(list(cuts))) for cuts in itertools.combinations(places, 2))
    assert costs[1].shared == 8 * 4 * 16 * 16 * 4  # the map that its ReLU keeps, and the next convolution


def test_time_is_measured_of_every_part_and_the_model_stays_as_it_is():
    model, batch = user_models.Transformer(), user_models.sequences()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = BalancedCuts(ModelToPlan(model, batch), "time", repeats=1)
    network = ll.split(model, example=batch, depth=3)
    costs = found.costs([piece.path for piece in network.pieces[:-1]], DEFAULT_HEAD)
    assert len(costs) == 3
    assert all(each.block > 0 for each in costs)
    assert [each.head > 0 for each in costs] == [True, True, False]
    assert len(found(2, DEFAULT_HEAD)) == 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ConfigError, match="depth: 99 is not valid; expected at most"):
        found(99, DEFAULT_HEAD)


def test_plan_proposes_such_cuts_for_a_model_of_ones_own(monkeypatch, capsys):
    module = type(sys)("falling_models")
    module.build = falling  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "falling_models", module)
    arguments = ["plan", "--model", "falling_models:build", "--memory", "1GiB", "--devices", "2", "--depths", "2"]
    assert main([*arguments, "--cuts", "memory", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    model, batch = falling()
    cuts = BalancedCuts(ModelToPlan(model, batch), "memory")(2, DEFAULT_HEAD)
    assert {tuple(row["cuts"]) for row in found["fits"]} == {cuts}
    counted = ll.cost(ll.split(model, example=batch, cuts=list(cuts)), batch)
    assert found["proposal"]["head_shares"] == [module.head_macs / module.macs for module in counted.modules]
    assert main([*arguments, "--cuts", "balanced"]) == 2
    assert "--cuts: 'balanced' is not valid; expected auto, memory or time with a model" in capsys.readouterr().err
    assert main([*arguments, "--cuts", "memory", "--device", "cpu"]) == 2
    assert "--device" in capsys.readouterr().err


def test_a_head_of_language_models_is_no_mistake_of_a_plan(capsys):
    assert main(["plan", "--memory", "1GiB", "--model", "no_such_models:build", "--heads", "shared"]) == 2
    assert "--model: no_such_models:build fails" in capsys.readouterr().err
