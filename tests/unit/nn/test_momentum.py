"""Momentum auxiliary networks: what the head sees, what the follower becomes, and where it is refused."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

import small
from locallearn.config import ObjectiveConfig
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.core.local_step import LocalStep
from locallearn.costs.nodes import cost
from locallearn.costs.timeline import Machine, run_local
from locallearn.errors import ConfigError
from locallearn.nn.momentum import MomentumHead
from locallearn.runtime.inline import InlineRuntime

IMAGE = ImageShape(3, 8, 5)
MAN = ObjectiveConfig(head="momentum", head_options={"of": "0c1f"})


def network_of(method="dgl", depth=3, width=(1,), **changes):
    return build_network(small.config(method, depth, width, **{"objective": MAN, **changes}), IMAGE)


def test_the_head_sees_the_sum_of_both_blocks():
    torch.manual_seed(0)
    bias, follower, head = (nn.Linear(4, 4) for _ in range(3))
    made = MomentumHead(bias, copy.deepcopy(follower), head)
    x = torch.randn(3, 4, requires_grad=True)
    out = made(x)
    torch.testing.assert_close(out, head(bias(x) + follower(x)))
    (expected,) = torch.autograd.grad(head(bias(x) + follower(x)).sum(), x)
    (found,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(found, expected)
    assert {name.split(".")[0] for name, _ in made.named_parameters()} == {"bias", "head"}


def test_the_follower_is_a_moving_average_of_the_block():
    torch.manual_seed(0)
    block = nn.Linear(4, 4)
    made = MomentumHead(nn.Linear(4, 4), nn.Linear(4, 4), nn.Identity(), momentum=0.9)
    made.follow(block)
    expected = block.weight.detach().clone()
    assert torch.equal(made.follower.weight, expected)
    assert made.followed_bytes == 4 * (16 + 4)
    for _ in range(3):
        with torch.no_grad():
            block.weight.add_(1.0)
        made.advance()
        expected = 0.9 * expected + 0.1 * block.weight.detach()
        torch.testing.assert_close(made.follower.weight, expected)
    made(torch.zeros(1, 4))  # looking changes nothing
    torch.testing.assert_close(made.follower.weight, expected)


@pytest.mark.parametrize(("method", "width"), [("dgl", (1,)), ("gn-dgl", (2,))])
def test_every_module_follows_the_first_block_of_the_next(method, width):
    network = network_of(method, width=width)
    modules = list(network)
    images, labels = torch.randn(10, 3, 8, 8), torch.arange(10) % 5
    runtime = InlineRuntime([LocalStep(m, torch.optim.SGD(m.parameters(), 0.5)) for m in modules])
    before = [copy.deepcopy(m.objective.head.follower.state_dict()) for m in modules[:2]]
    for step in range(2):
        weights = [copy.deepcopy(dict(m.blocks[0].named_parameters())) for m in modules[1:3]]
        runtime.step(small.batch_of(images, labels), step)
        for module, was, followed in zip(modules[:2], before, weights, strict=True):
            for name, weight in followed.items():
                expected = 0.995 * was[name] + 0.005 * weight
                torch.testing.assert_close(module.objective.head.follower.state_dict()[name], expected)
        before = [copy.deepcopy(m.objective.head.follower.state_dict()) for m in modules[:2]]
    assert not any(isinstance(layer, MomentumHead) for layer in modules[-1].modules())


def test_no_gradient_reaches_what_is_followed():
    network = network_of()
    first, second, _ = network
    images, labels = torch.randn(10, 3, 8, 8), torch.arange(10) % 5
    first.objective(first(images), small.batch_of(images, labels)).total.sum().backward()
    assert all(parameter.grad is None for parameter in second.parameters())
    assert all(parameter.grad is not None for parameter in first.parameters())


def test_where_it_cannot_follow_it_is_one_line():
    expected = "expected inline, threads, cuda-graphs or distributed with head momentum"
    with pytest.raises(ConfigError, match=f"runtime: 'sequential' is not valid; {expected}"):
        network_of(runtime="sequential")
    inside = ObjectiveConfig(head="patches", head_options={"of": "momentum"})
    with pytest.raises(ConfigError, match=f"runtime: 'asynchronous' is not valid; {expected}"):
        network_of(runtime="asynchronous", objective=inside)
    with pytest.raises(ConfigError, match="another head where G differs between modules"):
        network_of("gn-dgl", 3, (2, 4, 1))
    naive = ObjectiveConfig(head="momentum", stop_gradient=False)
    with pytest.raises(ConfigError, match=r"objective.stop_gradient: False is not valid; expected true"):
        network_of("gn-dgl", 3, (2,), objective=naive)


def test_what_flows_back_is_counted():
    """The first block of module 2 of tiny-resnet: two convolutions 8 -> 8 and two batch norms, in fp32."""
    found = cost(small.config("dgl", 3, (1,), objective=MAN, cuts=("stem", "1.0")), IMAGE)
    block = 4 * (2 * 8 * 8 * 9 + 4 * 8)
    assert [module.followed_bytes for module in found.modules] == [block, block, 0]
    assert found.to_json()["followed_bytes"] == [block, block, 0]
    assert "followed_bytes" not in cost(small.config("dgl", 3, (1,)), IMAGE).to_json()


def test_weights_travel_in_a_predicted_run():
    """In three batches two modules send their first block back twice; it is waited for."""
    found = cost(small.config("dgl", 3, (1,), objective=MAN, cuts=("stem", "1.0")), IMAGE)
    machine = Machine(device_flops=1e9, bandwidth=1e9)
    run = run_local(found, machine, 3, 2)
    forward = 3 * sum(module.output_bytes for module in found.modules[:2])
    assert run.wire_bytes == forward + 2 * sum(module.followed_bytes for module in found.modules)
    free = dataclasses.replace(found, modules=[dataclasses.replace(m, followed_bytes=0) for m in found.modules])
    assert run_local(free, machine, 3, 2).makespan < run.makespan
