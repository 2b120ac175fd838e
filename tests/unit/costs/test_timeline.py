import dataclasses
import json

import pytest

from locallearn.config import ObjectiveConfig, RunConfig
from locallearn.costs.forward import CountedStage
from locallearn.costs.nodes import Cost, cost
from locallearn.costs.steps import ModuleCost
from locallearn.costs.timeline import Machine, timeline
from locallearn.errors import ConfigError

BATCH = 8
FAST = Machine(1e9)


def counted(method="gn-dgl", depth=2, width=(2,), **objective):
    config = RunConfig(
        method=method, model="resnet8", depth=depth, width=width, objective=ObjectiveConfig(**objective)
    )
    return cost(config, batch_size=BATCH)


def schedules(found, machine=FAST, **options):
    values = timeline(found, machine, **options)
    return {schedule["name"]: schedule for schedule in values["schedules"]}


@pytest.fixture(scope="module")
def grouped():
    return counted()


def test_values_are_plain_json_and_complete(grouped):
    values = timeline(grouped, Machine(1e9, 1e6, 1e-3), batches=2, microbatches=4)
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert {key: values[key] for key in ("device_flops", "bandwidth", "latency", "batches", "microbatches")} == {
        "device_flops": 1e9, "bandwidth": 1e6, "latency": 1e-3, "batches": 2, "microbatches": 4,
    }  # fmt: skip
    assert [s["name"] for s in values["schedules"]] == ["local", "backpropagation", "gpipe", "1f1b", "data-parallel"]
    assert [len(s["devices"]) for s in values["schedules"]] == [4, 1, 2, 2, 4]
    assert [len(s["work"]) for s in values["schedules"]] == [4 * 2 * 3, 2 * 2, 2 * 2 * 8, 2 * 2 * 8, 4 * 2 * 3]
    assert values["schedules"][0]["devices"][2] == "module 2 group 1"


def test_one_node_is_backpropagation_on_one_device():
    found = schedules(counted("e2e", 1, (1,)), Machine(1e9, 1e3, 1.0))
    for name in ("local", "gpipe", "1f1b", "data-parallel"):
        assert found[name]["makespan"] == pytest.approx(found["backpropagation"]["makespan"])
        assert found[name]["utilisation"] == pytest.approx([1.0])
        assert found[name]["wire_bytes"] == 0


def test_backpropagation_takes_three_forward_passes(grouped):
    seconds = schedules(grouped, batches=5)["backpropagation"]["makespan"]
    assert seconds == pytest.approx(5 * 3 * 2 * grouped.e2e_macs * BATCH / 1e9)


def test_every_further_batch_takes_as_long_as_the_largest_node(grouped):
    """So the speed-up over backpropagation tends to the figure of Table 3.4."""
    short, long = (schedules(grouped, batches=n)["local"]["makespan"] for n in (20, 50))
    assert (long - short) / 30 == pytest.approx(3 * 2 * grouped.max_node_macs * BATCH / 1e9)
    speedup = schedules(grouped, batches=400)["local"]["speedup"]
    assert speedup == pytest.approx(grouped.training_speedup, rel=0.01)
    assert speedup < grouped.training_speedup


def test_utilisation_is_work_over_makespan(grouped):
    local = schedules(grouped, batches=3)["local"]
    for node, share in zip(grouped.nodes, local["utilisation"], strict=True):
        assert share * local["makespan"] == pytest.approx(3 * 3 * 2 * node.macs * BATCH / 1e9)


def test_bytes_on_the_wire(grouped):
    a, b = (module.output_bytes for module in grouped.modules)
    scores = BATCH * 10 * 4
    # to both nodes of the next module, to the other group, and the other group's scores, in each module
    one_batch = 2 * (2 * a + a + scores) + 2 * (b + scores)
    found = schedules(grouped, batches=3)
    assert found["local"]["wire_bytes"] == 3 * one_batch
    features = grouped.reference[0].features * BATCH * 4
    assert found["gpipe"]["wire_bytes"] == found["1f1b"]["wire_bytes"] == 3 * 2 * features
    parameters = sum(stage.parameters for stage in grouped.reference)
    assert found["data-parallel"]["wire_bytes"] == 3 * 2 * 3 * 4 * parameters


@pytest.mark.parametrize("side", [2, 4])
def test_features_for_other_heads_may_be_pooled(grouped, side):
    pooled = counted(pool_others=side)
    a = grouped.modules[0].output_bytes
    assert pooled.modules[0].shared_bytes == a // side**2
    whole, less = (schedules(found, batches=3)["local"]["wire_bytes"] for found in (grouped, pooled))
    assert whole - less == 3 * 2 * (a - a // side**2)  # the decoupled classifier needs those of the last module whole
    assert pooled.modules[0].macs == grouped.modules[0].macs + a // 4 // BATCH  # a node pools its own channels


def test_groups_that_share_nothing_send_less():
    a, b = (m.output_bytes for m in counted(stop_gradient=False, diversity_weight=0.0).modules)
    found = schedules(counted(stop_gradient=False, diversity_weight=0.0), batches=1)
    # the classifier on every node of the last module still needs the features of the other group
    assert found["local"]["wire_bytes"] == 2 * 2 * a + 2 * b


def test_bf16_halves_what_is_sent_forward():
    config = RunConfig(method="dgl", model="resnet8", depth=2)
    full, half = (schedules(cost(config, batch_size=BATCH, precision=p)) for p in ("fp32", "bf16"))
    for name in ("local", "gpipe", "1f1b"):
        assert full[name]["wire_bytes"] == 2 * half[name]["wire_bytes"] > 0


def equal_stages(stages, macs=1000):
    module = ModuleCost(1, macs, 0, 0, 0, 0, 0, False, 0, 0, 0)
    reference = (CountedStage(macs, 10, 100),) * stages
    return Cost((module,) * stages, reference, reference, BATCH, "fp32")


@pytest.mark.parametrize(("stages", "micro"), [(1, 1), (3, 4), (4, 8)])
def test_the_bubble_of_pipelines(stages, micro):
    """M microbatches through K equal stages take M + K - 1 slots, and the busy share is M / (M + K - 1)."""
    found = schedules(equal_stages(stages), batches=3, microbatches=micro)
    slot = 3 * 2 * 1000 * BATCH / micro / 1e9
    for name in ("gpipe", "1f1b"):
        assert found[name]["makespan"] == pytest.approx(3 * (micro + stages - 1) * slot)
        assert found[name]["utilisation"] == pytest.approx([micro / (micro + stages - 1)] * stages)


def test_local_learning_has_its_bubble_once():
    """K equal modules: K - 1 forward passes until the last one begins, then no waiting."""
    local = schedules(equal_stages(4), batches=10)["local"]
    forward = 2 * 1000 * BATCH / 1e9
    assert local["makespan"] == pytest.approx((3 + 3 * 10) * forward)


def test_data_parallelism_waits_for_the_ring():
    found = schedules(equal_stages(4), Machine(1e9, 1e6, 1e-3), batches=2)["data-parallel"]
    compute, gradients = 3 * 2 * 4000 * (BATCH / 4) / 1e9, 4 * 400
    assert found["makespan"] == pytest.approx(2 * (compute + 2 * 3 / 4 * gradients / 1e6 + 2 * 3 * 1e-3))


def test_slow_links_take_time(grouped):
    fast, slow, late = (
        schedules(grouped, machine) for machine in (FAST, Machine(1e9, 1e6), Machine(1e9, latency=0.1))
    )
    for name in ("local", "gpipe", "1f1b", "data-parallel"):
        assert fast[name]["makespan"] < slow[name]["makespan"]
        assert fast[name]["makespan"] < late[name]["makespan"]
    assert fast["backpropagation"] == slow["backpropagation"]


def test_a_forgotten_head_is_faster_than_it_can_be(grouped):
    bare = [dataclasses.replace(module, head_macs=0) for module in grouped.modules]
    headless = dataclasses.replace(grouped, modules=tuple(bare))
    assert schedules(headless)["local"]["makespan"] < schedules(grouped)["local"]["makespan"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": 0}, "batches: 0 is not valid"),
        ({"in_flight": 0}, "in_flight: 0 is not valid"),
        ({"microbatches": 0}, "microbatches: 0 is not valid; expected 1 to 8"),
        ({"microbatches": 9}, "microbatches: 9 is not valid; expected 1 to 8"),
    ],
)
def test_wrong_options_are_one_line(grouped, options, message):
    with pytest.raises(ConfigError, match=message):
        timeline(grouped, FAST, **options)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ((0.0,), "device_flops"),
        ((float("nan"),), "device_flops"),
        ((1.0, -1.0), "bandwidth"),
        ((1.0, 1.0, -1.0), "latency"),
    ],
)
def test_wrong_machines_are_one_line(values, name):
    with pytest.raises(ConfigError, match=f"^{name}: "):
        Machine(*values)
