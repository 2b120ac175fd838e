"""Cuts that balance memory or time of modules with their heads."""

import dataclasses
import itertools
import json

import pytest
import torch

import small
from locallearn.cli.main import main
from locallearn.config import ObjectiveConfig, TrainConfig
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.costs.balance import BlockCost, balanced_cuts, block_costs_of
from locallearn.costs.nodes import cost
from locallearn.costs.steps import dry_steps
from locallearn.errors import ConfigError
from locallearn.plan.cuts import balanced, balanced_by

IMAGE = ImageShape(3, 16, 5)
CONFIG = small.config("dgl", 1, (1,), model="resnet8", train=TrainConfig(batch_size=8, precision="fp32"))


def test_the_largest_module_is_as_small_as_it_can_be():
    blocks = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0]
    heads = [8.0, 1.0, 0.5, 7.0, 0.1, 3.0, 1.0]
    costs = [BlockCost(*pair) for pair in zip(blocks, heads, strict=True)]
    for depth in range(1, 8):

        def largest(cuts):
            edges = [0, *(cut + 1 for cut in cuts), len(blocks)]
            return max(sum(blocks[i:j]) + heads[j - 1] for i, j in itertools.pairwise(edges))

        found = [int(name) for name in balanced_cuts(costs, [str(i) for i in range(7)], depth)]
        assert largest(found) == min(map(largest, itertools.combinations(range(6), depth - 1)))
    assert balanced_by(lambda i, j: sum(blocks[i:j]), 7, 3) == balanced(blocks, 3)


def test_memory_is_that_of_a_step_of_block_and_head():
    costs, names = block_costs_of(CONFIG, IMAGE, "memory")
    layerwise = dataclasses.replace(CONFIG, depth=len(names), cuts=("layerwise",))
    with torch.device("meta"):
        network = build_network(layerwise, IMAGE)
    expected = [module.activation_bytes for module in dry_steps(network, IMAGE, CONFIG.train)]
    assert names == ["stem", "1.0", "2.0", "3.0"]
    assert [each.block + each.head for each in costs] == expected
    assert all(each.head > 0 for each in costs)


def test_cuts_by_memory_are_the_best_that_there_are():
    """Of all ways to cut ResNet-8 in two or three, by what modules really keep."""
    costs, names = block_costs_of(CONFIG, IMAGE, "memory")
    for depth in (2, 3):

        def largest(cuts, depth=depth):
            found = cost(dataclasses.replace(CONFIG, depth=depth, cuts=cuts), IMAGE)
            return max(module.activation_bytes for module in found.modules)

        every = [largest(cuts) for cuts in itertools.combinations(names[:-1], depth - 1)]
        assert largest(balanced_cuts(costs, names, depth)) == min(every)


@pytest.mark.parametrize("method", ["dgl", "predsim", "dgssl"])
def test_time_is_measured_of_every_block_and_head(method):
    config = dataclasses.replace(CONFIG, method=method, objective=ObjectiveConfig())
    costs, names = block_costs_of(config, IMAGE, "time", repeats=1)
    assert len(costs) == len(names) == 4
    assert all(each.block > 0 for each in costs)
    assert all(each.head > 0 for each in costs)


def test_plan_proposes_such_cuts_and_shows_what_heads_take(capsys):
    arguments = ["plan", "--memory", "1GiB", "--model", "resnet8", "--method", "dgl", "--depths", "2"]
    arguments += ["--widths", "1", "--batch-size", "8", "--devices", "2"]
    assert main([*arguments, "--cuts", "memory", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = dataclasses.replace(CONFIG, depth=2, objective=ObjectiveConfig())
    image = ImageShape(3, 32, 10)
    names = balanced_cuts(*block_costs_of(expected, image, "memory"), 2)
    proposal = next(row for row in found["fits"] if row["devices"] == 2)
    assert proposal["cuts"] == list(names)
    counted = cost(dataclasses.replace(expected, cuts=names), image)
    assert proposal["head_shares"] == [module.head_macs / module.macs for module in counted.modules]
    assert main([*arguments, "--cuts", "memory"]) == 0
    shares = ", ".join(f"{100 * share:.0f}" for share in found["proposal"]["head_shares"])
    assert f"Heads have {shares} % of their modules' multiply-accumulates" in capsys.readouterr().out


def test_a_wrong_name_is_one_line(capsys):
    assert main(["plan", "--memory", "1GiB", "--cuts", "memory", "time"]) == 2
    assert "expected auto, balanced, memory or time" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="model"):
        block_costs_of(dataclasses.replace(CONFIG, model="nothing"), IMAGE, "memory")
