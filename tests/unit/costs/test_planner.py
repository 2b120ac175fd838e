import dataclasses
import functools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallearn.config import ObjectiveConfig, OptimizerConfig, RunConfig, TrainConfig
from locallearn.core.image_shape import ImageShape
from locallearn.costs.alternatives import Alternative, advice, stages, usual_ways
from locallearn.costs.footprint import Footprint, of_node, of_one_device, state_bytes, working_bytes
from locallearn.costs.nodes import cost
from locallearn.costs.planner import choose, enumerate_candidates
from locallearn.costs.timeline import Machine
from locallearn.errors import ConfigError, UsageError

IMAGE = ImageShape(1, 8, 10)
BASE = RunConfig(method="gn-dgl", model="tiny-resnet", train=TrainConfig(batch_size=16, precision="fp32"))
MACHINE = Machine(1e9, 1e8, 1e-4)


@functools.cache
def candidates():
    return enumerate_candidates(BASE, IMAGE, machine=MACHINE, depths=(1, 2, 4, 8), widths=(1, 2, 3))


def limits():
    found, _ = candidates()
    return st.integers(min(c.memory for c in found), 2 * max(c.memory for c in found))


def test_every_depth_and_width_is_tried_on_one_device_and_on_a_device_a_node():
    found, refused = candidates()
    assert [(c.config.depth, c.config.width[0], c.devices) for c in found] == [
        (1, 1, 1), (1, 2, 1), (1, 2, 2), (2, 1, 1), (2, 1, 2), (2, 2, 1), (2, 2, 4), (4, 1, 1), (4, 1, 4),
        (4, 2, 1), (4, 2, 8),
    ]  # fmt: skip
    assert {(r.depth, r.width) for r in refused} == {(1, 3), (2, 3), (4, 3), (8, 1), (8, 2), (8, 3)}
    assert all("is not valid; expected" in r.reason for r in refused)


@given(memory=limits(), devices=st.integers(1, 12))
def test_never_proposes_what_breaks_a_limit_and_loses_no_candidate(memory, devices):
    found, refused = candidates()
    try:
        plan = choose(found, refused, devices=devices, memory=memory)
    except UsageError:
        assert all(c.memory > memory or c.devices > devices for c in found)
        return
    assert all(c.memory <= memory and c.devices <= devices for c in plan.fits)
    assert len(plan.fits) + len(plan.refused) == len(found) + len(refused)
    assert plan.proposal.makespan == min(c.makespan for c in plan.fits)


@given(memory=limits(), more=st.integers(0, 10**6), devices=st.integers(1, 12), extra=st.integers(0, 4))
def test_more_memory_or_devices_never_make_it_slower(memory, more, devices, extra):
    found, _ = candidates()
    try:
        less = choose(found, devices=devices, memory=memory).proposal.makespan
    except UsageError:
        return
    assert choose(found, devices=devices + extra, memory=memory + more).proposal.makespan <= less


def test_of_equally_fast_plans_the_one_with_fewer_nodes_comes_first():
    found, _ = candidates()
    same = [dataclasses.replace(c, makespan=1.0) for c in reversed(found)]
    plan = choose(same, devices=100, memory=10**12)
    assert [c.nodes for c in plan.fits] == sorted(c.nodes for c in found)


def test_impossible_limits_tell_what_would_be_needed():
    found, _ = candidates()
    least = min(c.memory for c in found if c.devices <= 2)
    with pytest.raises(UsageError, match="no plan fits 1 KiB a device: the smallest .* needs") as error:
        choose(found, devices=2, memory=1024)
    assert "\n" not in str(error.value)
    assert choose(found, devices=2, memory=least).proposal.memory == least


def test_a_wrong_number_is_refused():
    with pytest.raises(ConfigError, match="widths"):
        enumerate_candidates(BASE, IMAGE, machine=MACHINE, widths=(0,))


def test_times_and_traffic_are_those_of_the_timeline():
    found, _ = candidates()
    for c in found:
        if c.devices == 1:
            macs = sum(node.macs for node in c.cost.nodes)
            assert c.makespan == pytest.approx(8 * 6 * macs * 16 / 1e9)
            assert c.wire_bytes == 0
        else:
            per_step = sum(m.groups * c.sent_bytes(k) for k, m in enumerate(c.cost.modules))
            assert c.wire_bytes == 8 * per_step


def test_a_nodes_memory_by_hand():
    config = dataclasses.replace(BASE, depth=2, width=(2,), objective=ObjectiveConfig(stop_gradient=False))
    found = cost(config, IMAGE)
    first, second = found.modules
    images, optimizer = 16 * 64 * 4, OptimizerConfig(name="adam")
    node = of_node(found, 1, optimizer, images, in_flight=3)
    given_bytes = 2 * first.output_bytes
    # the last module's features are gathered by the decoupled classifier, so they count as seen by all
    copies = (given_bytes + 2 * second.output_bytes) // 2
    assert node == Footprint(
        16 * second.parameters, second.activation_bytes + copies, working_bytes(second), 3 * given_bytes
    )
    raw = node.state + node.activations + node.working + node.waiting
    assert node.total == raw + raw // 20
    assert of_node(found, 0, optimizer, images, 3).waiting == images
    assert state_bytes(OptimizerConfig(momentum=0.0, nesterov=False), 5) == 40
    assert state_bytes(OptimizerConfig(), 5) == 60


def test_one_device_holds_all_states_and_the_largest_module():
    found = cost(dataclasses.replace(BASE, depth=4), IMAGE)
    one = of_one_device(found, OptimizerConfig(), 4096)
    assert one.state == 12 * sum(m.parameters for m in found.modules)
    assert one.activations == max(m.activation_bytes for m in found.modules)


def test_the_usual_ways():
    found = usual_ways(
        functools.partial(stages, BASE, IMAGE), BASE.optimizer, machine=MACHINE, devices=2, depths=(1, 2, 4, 8)
    )
    halvings = int(math.log2(BASE.train.batch_size)) - 1
    parts = [one for i in range(1, halvings + 1) for one in (("accumulation", 2**i, 1), ("smaller-batch", 1, 1))]
    assert [(a.name, a.parts, a.devices) for a in found] == [
        ("backpropagation", 1, 1), *parts, ("checkpointing", 2, 1), ("gpipe", 2, 2), ("1f1b", 2, 2),
        ("checkpointing", 4, 1), ("data-parallel", 1, 2),
    ]  # fmt: skip
    alone, segments, gpipe, turns, _, copies = found[0], *found[1 + len(parts) :]
    half, smaller = found[1:3]
    assert half.makespan == smaller.makespan == alone.makespan
    assert half.memory == smaller.memory < alone.memory
    assert (half.batch_size, smaller.batch_size) == (alone.batch_size, alone.batch_size // 2)
    assert segments.makespan == pytest.approx(alone.makespan * 4 / 3)
    assert segments.memory < alone.memory
    assert turns.memory < gpipe.memory
    assert copies.memory < alone.memory
    assert copies.wire_bytes > 0


def test_advice():
    fast, slow = Alternative("data-parallel", 1, 4, 100, 1.0), Alternative("gpipe", 4, 4, 50, 3.0)
    assert advice(2.0, [fast, slow], 10) == ["No way of backpropagation fits this memory."]
    assert "Use data-parallel: it fits, is predicted 2.00 times as fast" in advice(2.0, [fast, slow], 100)[0]
    assert "gpipe in 4 parts: 1.50 times the proposal's time" in advice(2.0, [fast, slow], 60)[0]
    part = Alternative("accumulation", 4, 1, 10, 1.0, batch_size=32)
    expected = "Use accumulation over 4 batches of 8 images: it does, and loses no accuracy but what batch norm loses"
    assert expected in advice(None, [fast, part], 10)[0]
