"""The tables of the thesis to the last printed digit, and an accounting in closed form that knows no layers."""

import dataclasses
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import locallearn as ll
from locallearn.config import ObjectiveConfig, RunConfig
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.costs.nodes import cost
from locallearn.errors import ConfigError

# cuts of Sec. 3.3.2 as (stage, block); (0, 0) is the stem
CUTS = {
    1: [],
    2: [(2, 1)],
    4: [(1, 2), (2, 1), (3, 0)],
    8: [(1, 0), (1, 2), (1, 4), (2, 1), (2, 3), (3, 0), (3, 2)],
    16: [(0, 0), *((s, b) for s in (1, 2, 3) for b in range(5) if (s, b) != (3, 4))],
}


def run_config(method="gn-dgl", depth=1, width=(1,), model="resnet32", **objective):
    return RunConfig(method=method, model=model, depth=depth, width=width, objective=ObjectiveConfig(**objective))


def counted(*args, classes=10, **changes):
    return cost(run_config(*args, **changes), ImageShape(3, 32, classes), batch_size=2)


def test_the_end_to_end_network_of_table_3_4():
    assert counted("e2e").e2e_macs == counted("e2e").max_node_macs == counted("e2e").inference_macs == 70_062_720


@pytest.mark.parametrize(("depth", "speedup"), [(2, "1.894"), (4, "3.622"), (8, "6.456"), (16, "11.609")])
def test_dgl_in_table_3_4(depth, speedup):
    found = counted("dgl", depth)
    assert f"{found.training_speedup:.3f}" == speedup
    assert found.inference_speedup == 1


@pytest.mark.parametrize(
    ("depth", "training", "inference"),
    [
        (1, "3.674", "1.961"),
        (2, "6.304", "1.899"),
        (4, "10.667", "1.785"),
        (8, "16.426", "1.612"),
        (16, "23.072", "1.338"),
    ],
)
def test_gn_dgl_in_tables_3_4_and_3_5(depth, training, inference):
    found = counted("gn-dgl", depth, (2,))
    assert f"{found.training_speedup:.3f}" == training
    assert f"{found.inference_speedup:.3f}" == inference


@pytest.mark.parametrize(
    "wrong",
    [
        {"head": "0c2f"},  # no convolution in the head
        {"head_width": 64},
        {"stop_gradient": False},  # heads that see their own channels only
    ],
)
def test_another_head_changes_the_table(wrong):
    assert f"{counted('gn-dgl', 4, (2,), **wrong).training_speedup:.3f}" != "10.667"


@pytest.mark.parametrize("part", ["head_macs", "block_macs"])
def test_a_forgotten_part_of_a_node_changes_the_table(part):
    found = counted("gn-dgl", 4, (2,))
    without = [dataclasses.replace(module, **{part: 0}) for module in found.modules]
    assert f"{dataclasses.replace(found, modules=tuple(without)).training_speedup:.3f}" != "10.667"


def blocks_of_resnet32(factor):
    """(stage, block), channels in, channels out, stride."""
    widths = [16 * factor, 16 * factor, 32 * factor, 64 * factor]
    yield (0, 0), 3, widths[0], 1
    for stage in (1, 2, 3):
        for block in range(5):
            yield (stage, block), widths[stage - (block == 0)], widths[stage], 2 if stage > 1 and block == 0 else 1


def by_hand(depth, groups, factor, stop_gradient, classes):
    """Multiply-accumulates of a node of every module, and of the whole split network, by arithmetic alone."""
    side, first, modules, total, nodes = 32, True, [], 0, []
    for place, inputs, outputs, stride in blocks_of_resnet32(factor):
        side //= stride
        area, seen = side * side, inputs if first else inputs // groups
        macs = 9 * seen * outputs * area + 3 * outputs * area  # first convolution, batch norm, ReLU
        if place != (0, 0):
            macs += 9 * outputs // groups * outputs * area + 3 * outputs * area
            if inputs != outputs:
                macs += seen * outputs * area + 2 * outputs * area
        total, first = total + macs, False
        if place in CUTS[depth] or place == (3, 4):
            modules.append((total, outputs, side))
            total, first = 0, True
    classifier = 64 * factor * 64 + 64 * factor * classes
    for macs, channels, size in modules:
        last = len(nodes) == depth - 1
        seen = channels if stop_gradient or groups == 1 else channels // groups
        area, hidden = size * size // 4, 128 * factor
        head = 9 * seen * 2 * seen * area + 4 * 2 * seen * area  # convolution, batch norm, ReLU, pooling
        head += (2 * seen + 1) * hidden + hidden + (hidden + 1) * classes
        own = 0 if last and groups == 1 else head
        nodes.append(macs // groups + own + (classifier if last else 0))
    return nodes, sum(macs for macs, _, _ in modules) + classifier


@settings(max_examples=12)
@given(
    depth=st.sampled_from(sorted(CUTS)),
    groups=st.sampled_from([1, 2, 4, 8]),
    factor=st.sampled_from([1, 2]),
    stop_gradient=st.booleans(),
    classes=st.sampled_from([10, 100]),
)
def test_every_cell_in_closed_form(depth, groups, factor, stop_gradient, classes):
    model = "resnet32" if factor == 1 else "resnet32x2"
    found = counted("gn-dgl", depth, (groups,), model=model, classes=classes, stop_gradient=stop_gradient)
    nodes, inference = by_hand(depth, groups, factor, stop_gradient, classes)
    assert [module.macs for module in found.modules] == nodes
    assert found.inference_macs == inference
    assert found.e2e_macs == by_hand(1, 1, factor, stop_gradient, classes)[1]
    assert [(node.module, node.group) for node in found.nodes] == [
        (k, g) for k in range(1, depth + 1) for g in range(1, groups + 1)
    ]


@pytest.mark.parametrize("depth", [2, 4, 8, 16])
def test_infopro_has_its_whole_decoder_on_the_node(depth):
    """3x3 convolutions C -> 12 -> 3 with biases at image resolution, and a head with 128 projections."""
    dgl, infopro = counted("dgl", depth), counted("infopro", depth)
    ends = [(s, b) for s, b in CUTS[depth]]
    for place, plain, node in zip(ends, dgl.modules, infopro.modules, strict=False):
        channels = {0: 16, 1: 16, 2: 32, 3: 64}[place[0]]
        decoder = 1024 * (9 * channels * 12 + 12 + 3 * 12 + 9 * 12 * 3 + 3)
        assert node.macs - plain.macs == decoder + 129 * (128 - 10)
    assert infopro.modules[-1].macs == dgl.modules[-1].macs


def test_single_thread_is_one_node_with_the_split_network():
    found = counted("single-thread", 1, (4,))
    assert len(found.nodes) == 1
    assert found.max_node_macs == found.inference_macs == by_hand(1, 4, 1, True, 10)[1]


@pytest.mark.parametrize(("model", "n"), [("resnet20", 3), ("resnet32", 5), ("resnet110", 18)])
def test_parameters_of_resnets_with_1x1_shortcuts(model, n):
    norm = 2 * (16 * (1 + 2 * n) + 32 * (2 * n + 1) + 64 * (2 * n + 1))
    convs = 9 * 3 * 16 + 2 * n * 9 * 16**2
    for a, b in ((16, 32), (32, 64)):
        convs += 9 * a * b + (2 * n - 1) * 9 * b**2 + a * b
    assert counted("e2e", model=model).nodes[0].parameters == convs + norm + 64 * 10 + 10


def test_known_parameter_counts():
    """272,474 is the customary count of ResNet-20 with projection shortcuts; the others follow its form."""
    assert counted("e2e", model="resnet20").nodes[0].parameters == 272_474
    assert counted("e2e").nodes[0].parameters == 466_906
    assert counted("e2e", model="resnet110").nodes[0].parameters == 1_730_714


def test_parameters_of_nodes_add_up_to_the_network():
    config = run_config("gn-dgl", 4, (2,))
    network = build_network(config, ImageShape(3, 32, 10))
    found = cost(config, batch_size=2)
    classifier = sum(p.numel() for p in network.stages[-1].parameters())
    assert classifier == 650
    every = sum(p.numel() for p in network.parameters())
    assert sum(node.parameters for node in found.nodes) == every + classifier  # both last nodes hold it


@pytest.mark.parametrize(("precision", "size"), [("fp32", 4), ("bf16", 2)])
def test_output_bytes(precision, size):
    found = cost(run_config("gn-dgl", 2, (4,)), batch_size=6, precision=precision)
    assert [m.output_bytes for m in found.modules] == [6 * 8 * 16 * 16 * size, 6 * 16 * 8 * 8 * size]


def test_groups_per_module():
    found = counted("gn-dgl", 5, (2, 4, 2, 1, 1), model="vgg6a", head="0c2f")
    assert [module.groups for module in found.modules] == [2, 4, 2, 1, 1]
    # the dense convolution of module 2's node: a quarter of 9 * 128 * 256 on 16x16; batch norm, ReLU, 2x2 pooling
    convolution = 9 * 128 * 64 * 256 + 3 * 64 * 256 + 128 * 32 * 32 // 4
    head = 256 * 256 + 257 * 128 + 128 + 129 * 10  # pooling, linear, ReLU, linear on all 256 channels
    assert found.modules[1].macs == convolution + head


def test_counts_do_not_depend_on_the_batch():
    a, b = (cost(run_config("gn-dgl", 2, (2,)), batch_size=n) for n in (2, 7))
    assert [m.macs for m in a.modules] == [m.macs for m in b.modules]
    assert [m.output_bytes * 7 for m in a.modules] == [m.output_bytes * 2 for m in b.modules]


def test_a_network_counts_as_its_configuration_and_is_left_alone():
    config = run_config("gn-dgl", 2, (2,), model="resnet8")
    network = build_network(config, ImageShape(3, 32, 10)).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    plain = build_network(run_config("dgl", 2, model="resnet8"), ImageShape(3, 32, 10))
    assert ll.cost(network, batch_size=4, reference=plain) == ll.cost(config, batch_size=4)
    alone = ll.cost(network, batch_size=4)
    assert alone.e2e_macs == alone.inference_macs == ll.cost(config, batch_size=4).inference_macs
    assert not network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_json_has_the_promised_keys():
    values = json.loads(json.dumps(counted("gn-dgl", 2, (2,)).to_json()))
    assert list(values) == [
        "nodes", "e2e_macs", "max_node_macs", "inference_macs", "training_speedup", "inference_speedup",
    ]  # fmt: skip
    assert len(values["nodes"]) == 4
    assert list(values["nodes"][0]) == [
        "module", "group", "macs", "parameters", "activation_bytes", "output_bytes",
    ]  # fmt: skip
    assert values["max_node_macs"] == max(node["macs"] for node in values["nodes"])


def test_wrong_settings_are_one_line():
    with pytest.raises(ConfigError, match="batch_size: 0 is not valid"):
        cost(run_config(), batch_size=0)
    with pytest.raises(ConfigError, match="precision is 'fp8'; expected"):
        cost(run_config(), precision="fp8")
    with pytest.raises(ConfigError, match="width: 3 is not valid"):
        cost(run_config("gn-dgl", 2, (3,)))
