"""Activation memory as predicted from tensors without data, against what real steps keep."""

import copy
import dataclasses
import warnings

import pytest
import torch
from torch import nn

import small
from locallearn.config import ObjectiveConfig, OptimizerConfig, RunConfig, TrainConfig
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.core.local_step import LocalStep
from locallearn.costs.memory import ActivationMeter
from locallearn.costs.nodes import cost
from locallearn.costs.steps import dry_steps
from locallearn.nn.heads import build_head
from locallearn.runtime.inline import InlineRuntime
from locallearn.training.optim import build_optimizer
from locallearn.training.runs import train

IMAGE = ImageShape(3, 16, 10)
BATCH = 6


def run_config(method, model, depth, width, **changes):
    train = TrainConfig(batch_size=BATCH)
    return RunConfig(method=method, model=model, depth=depth, width=width, dropout=0.01, train=train, **changes)


def real_batch():
    images = torch.rand(BATCH, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    return small.batch_of(images, torch.arange(BATCH) % 10)


def steps_of(network, precision):
    return [LocalStep(m, build_optimizer(OptimizerConfig(), m.parameters()), precision) for m in network]


def measured(network, precision):
    """Bytes that a real step of every module keeps for its backward pass, with its heads."""
    network.to(memory_format=torch.channels_last)  # as in training
    batch, peaks = real_batch(), []
    features = batch.images
    for step in steps_of(network, precision):
        with ActivationMeter(step.module.parameters()) as meter:
            features, _ = step(features, batch)
        peaks.append(meter.peak_bytes)
    return peaks


CELLS = [
    ("e2e", "resnet8", 1, (1,)),
    ("e2e", "resnet50", 1, (1,)),
    ("dgl", "resnet20", 4, (1,)),
    ("dgl", "vgg11b", 3, (1,)),
    ("gn-dgl", "resnet32", 4, (2,)),
    ("gn-dgl", "resnet8x2", 3, (4,)),
    ("gn-dgl", "resnet8", 1, (8,)),
    ("gn-dgl", "vgg6a", 5, (2, 4, 2, 1, 1)),
    ("gn-dgl", "tiny-vgg", 4, (2,)),
    ("single-thread", "resnet20", 1, (2,)),
    ("infopro", "resnet20", 3, (1,)),
    ("predsim", "vgg6a", 5, (1,)),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("method", "model", "depth", "width"), CELLS)
def test_prediction_agrees_with_a_real_step(method, model, depth, width, precision, torch_kernels):
    config = run_config(method, model, depth, width)
    network = build_network(config, IMAGE)
    expected = measured(copy.deepcopy(network), precision)
    found = cost(config, IMAGE, precision=precision).modules
    own = expected[: len(found)]  # without the decoupled classifier
    predicted = [module.activation_bytes * module.groups for module in found]
    if precision == "fp32":  # exact, but for rounding to a node's share
        assert all(0 <= p - e < m.groups for p, e, m in zip(predicted, own, found, strict=True))
    else:  # batch norm's statistics are fp32, and bf16 on tensors without data: much for a small batch of vectors
        assert predicted == pytest.approx(own, rel=0.05)
    network.to(memory_format=torch.channels_last)
    with ActivationMeter(network.parameters()) as meter:
        InlineRuntime(steps_of(network, precision)).step(real_batch(), 0)
    assert max(predicted) == pytest.approx(meter.peak_bytes, rel=0.02)


@pytest.mark.parametrize("head", ["0c1f", "0c2f", "2c3f", "mlp-sr", "auglocal", "patches"])
@pytest.mark.parametrize("stop_gradient", [True, False])
def test_prediction_agrees_for_every_head(head, stop_gradient, torch_kernels):
    config = run_config(
        "gn-dgl", "resnet8", 2, (2,), objective=ObjectiveConfig(head=head, stop_gradient=stop_gradient)
    )
    own = measured(build_network(config, IMAGE), "fp32")[:2]
    assert [2 * module.activation_bytes for module in cost(config, IMAGE).modules] == own


@pytest.mark.parametrize("planted", ["a head that is not there", "another activation function"])
def test_a_step_that_keeps_something_else_is_caught(planted, torch_kernels):
    config = run_config("dgl", "resnet8", 2, (1,))
    network = build_network(config, IMAGE)
    if planted == "a head that is not there":
        network.stages[0].objective.head = build_head("0c1f", (16, 16, 16), 10)
    else:
        for block in network.stages[0].blocks:
            block.relu = nn.SiLU()  # keeps its input as well
    predicted = cost(config, IMAGE).modules[0].activation_bytes
    assert predicted != pytest.approx(measured(network, "fp32")[0], rel=0.1)
    assert cost(network, IMAGE, batch_size=BATCH).modules[0].activation_bytes == measured(network, "fp32")[0]


def test_one_block_by_hand():
    """Convolution: its input. Batch norm: its input and four statistics. ReLU: its output, the head's input too."""
    cuts, objective = ("stem", "1.0", "1.1"), ObjectiveConfig(head="0c1f")
    found = cost(run_config("dgl", "tiny-resnet", 4, (1,), cuts=cuts, objective=objective), IMAGE).modules[0]
    images, features, classes = BATCH * 3 * 16 * 16, BATCH * 8 * 16 * 16, 10
    batch_norm = features + 4 * 8
    head = BATCH * 8  # the linear layer's input
    loss = BATCH * classes + 1  # log-probabilities and the sum of the labels' weights, beside the labels as int64
    assert found.activation_bytes == 4 * (images + batch_norm + features + head + loss) + 8 * BATCH


def test_a_node_has_its_share_of_the_modules_activations():
    one, two = (
        dry_steps(
            build_network(run_config("gn-dgl", "resnet8", 2, (g,)), IMAGE), IMAGE, TrainConfig(batch_size=BATCH)
        )
        for g in (1, 2)
    )
    assert two[0].activation_bytes < one[0].activation_bytes
    # the blocks keep as much when they are split; heads that see all channels are added
    assert 2 * two[0].activation_bytes > one[0].activation_bytes


def test_every_byte_is_proportional_to_the_batch():
    config = run_config("gn-dgl", "resnet8", 2, (2,))
    a, b = (
        cost(dataclasses.replace(config, train=TrainConfig(batch_size=n)), IMAGE).modules[0].activation_bytes
        for n in (64, 128)
    )
    assert b == pytest.approx(2 * a, rel=1e-3)


def test_nothing_is_said_on_the_way():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cost(run_config("gn-dgl", "vgg6a", 5, (2,)), IMAGE)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_reports_what_was_predicted(tmp_path, precision):
    config = small.config(train=dataclasses.replace(small.TRAIN, epochs=1, precision=precision))
    reported = train(config, tmp_path / "run")["memory"]["activation_bytes"]
    nodes = cost(config, ImageShape(1, 8, 10)).nodes
    predicted = max(sum(n.activation_bytes for n in nodes if n.module == k) for k in (1, 2))
    assert predicted == pytest.approx(reported, rel=0.1)


@pytest.mark.parametrize("kernels", ["pairs"], indirect=True)
def test_with_kernels_of_our_own_the_last_maps_of_heads_are_kept_once(kernels):
    config = run_config("gn-dgl", "resnet32", 4, (4,))
    network = build_network(config, IMAGE).to(memory_format=torch.channels_last)
    predicted = [module.activation_bytes * module.groups for module in cost(config, IMAGE).modules]
    maps = [4 * BATCH * 2 * 4 * channels * side * side for channels, side in ((16, 8), (32, 4), (64, 2), (64, 2))]
    found = measured(network, "fp32")
    assert found[:4] == [p - m for p, m in zip(predicted, maps, strict=True)]
