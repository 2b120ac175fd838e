"""Cells with the authors' own settings, and K x G nodes with newer heads: what is in them, and that they build."""

import dataclasses

import pytest
import torch

from locallearn.core.assembly import build_network
from locallearn.costs.nodes import cost
from locallearn.nn.auglocal import AugLocalOptions
from locallearn.plan.cuts import GN_DEPTHS
from locallearn.thesis.catalogue import cells_of, layout
from locallearn.thesis.layout import Table, Value
from locallearn.thesis.matrix import cells
from locallearn.thesis.methods2026 import grouped_configs, grouped_name
from locallearn.thesis.methods2026_published import name_of, published_configs
from locallearn.thesis.protocols import Study

LARGEST = ["cifar10-resnet32-gn-auglocal-k16-g2", "cifar10-resnet32-gn-man-k4-g8", "cifar10-resnet32-gn-man-k1-g2"]


@pytest.mark.parametrize("name", [*published_configs(), *LARGEST])
def test_cells_build(name):
    config = Study("paper").config(name, 0)
    with torch.device("meta"):
        network = build_network(config, cells()[name].image)
    assert len([module for module in network if module.name.isdigit()]) == config.depth


@pytest.mark.parametrize("protocol", ["paper", "standard", "quick"])
def test_protocols_change_the_epochs_of_published_settings_alone(protocol):
    for name in published_configs():
        own, found = cells()[name].config, Study(protocol).config(name, 3)
        assert (found.optimizer, found.schedule, found.objective) == (own.optimizer, own.schedule, own.objective)
        assert found.train == dataclasses.replace(own.train, epochs=found.train.epochs)
        paper = 160 if "contsup" in name else 200 if "resnet18" in name else 400
        assert found.train.epochs == {"paper": paper, "standard": 16, "quick": 2}[protocol]
        adam = ("adam", 1e-3, 1024, 0.0)
        assert (
            found.optimizer.name,
            found.optimizer.learning_rate,
            found.train.batch_size,
            found.optimizer.weight_decay,
        ) == (adam if "resnet18" in name else ("sgd", 0.8, 1024, 1e-4))


def test_settings_are_those_of_the_public_code():
    man = cells()[name_of("man-k16")].config.objective
    assert (man.loss, man.infopro_loss, man.infopro_weights) == ("infopro", "cross-entropy", (5.0, 0.5, 0.0, 0.0))
    assert (man.head, man.head_options.of, man.head_options.momentum) == ("momentum", "2c2f", 0.995)
    auglocal = cells()[name_of("auglocal-k14")].config
    assert (auglocal.objective.head, auglocal.depth) == ("auglocal", 14)  # layers d = 2 and slope 0.5 by default
    assert (AugLocalOptions().layers, AugLocalOptions().slope) == (2, 0.5)
    assert auglocal.cuts[-1] == "3.1"  # 3.2 to 3.4 are the last module
    assert cells()[name_of("contsup-r1-k16")].config.context == "before"
    assert cells()[name_of("hpff-k16")].config.overlap == 1
    scpl = cells()[name_of("scpl-k4", "resnet18")].config
    assert (scpl.objective.head_options.hidden, scpl.objective.options.projection) == (512, 1024)
    with torch.device("meta"):
        first = next(iter(build_network(scpl, cells()[name_of("scpl-k4", "resnet18")].image))).objective.head
    assert [tuple(p.shape) for p in first.parameters()] == [(512, 64 * 32 * 32), (512,), (1024, 512), (1024,)]


def test_groups_are_those_of_table_34_and_keep_the_cells_that_there_were():
    assert {
        len([cell for cell in cells_of("methods-2026-groups") if head in cell]) for head in ("auglocal", "man")
    } == {sum(map(len, GN_DEPTHS.values()))}
    assert grouped_configs()[grouped_name("auglocal", 4, 2)].objective.head == "auglocal"
    shared = set(cells_of("methods-2026-groups")) & set(cells_of("methods-2026"))
    assert shared == {f"cifar10-resnet32-gn-{head}-k{k}-g2" for head in ("auglocal", "man") for k in (4, 16)}
    table = layout("methods-2026-groups")
    assert isinstance(table, Table)
    first = {row.label: row.values[0] for row in table.rows}["K = 4, G = 4"]
    assert first == Value("cifar10-resnet32-gn-dgl-k4-g4", "ensemble")


def test_the_largest_node_is_still_a_small_part_of_the_network():
    """Better heads cost speed-up where groups are wide: GN-DGL's own heads have 10.7 at K = 4, G = 2."""
    image = cells()[grouped_name("man", 4, 2)].image
    found = {head: cost(cells()[grouped_name(head, 4, 2)].config, image) for head in ("auglocal", "man")}
    assert {head: round(each.training_speedup, 1) for head, each in found.items()} == {"auglocal": 8.6, "man": 6.3}
