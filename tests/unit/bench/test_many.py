import dataclasses
import json

import pytest

from locallearn.bench.many import (
    LOCAL_STEPS,
    Cluster,
    data_parallel_step,
    local_step,
    one_device_step,
    pipeline_step,
    seldom_averaged_step,
    sharded_step,
    speedups,
)
from locallearn.cli.main import main
from locallearn.config import RunConfig
from locallearn.core.image_shape import ImageShape
from locallearn.costs.nodes import cost
from locallearn.costs.timeline import Machine, run_copies, run_local, run_pipeline
from locallearn.errors import ConfigError
from locallearn.plan import schedule as plans
from locallearn.plan.clock import Links, Slow, simulate

FAST = Cluster(1e12, 1e15, 0.0)
IMAGE = ImageShape(3, 32, 10)


@pytest.fixture(scope="module")
def costs():
    found = {}
    for depth, width in ((2, 1), (4, 1), (4, 2)):
        config = RunConfig(method="dgl" if width == 1 else "gn-dgl", model="resnet20", depth=depth, width=(width,))
        found[depth, width] = cost(config, IMAGE, batch_size=128)
    return found


def _slope(run, n):
    return (run(2 * n).makespan - run(n).makespan) / n


@pytest.mark.parametrize("cluster", [FAST, Cluster(1e12, 2e9, 1e-3), Cluster(1e12, 2e8, 1e-2)])
def test_one_copy_is_the_timeline(costs, cluster):
    """Where a module has one node the step is the simulator's; with groups one node stands for all of them."""
    machine = Machine(cluster.flops, cluster.bandwidth, cluster.latency)
    for cell, tolerance in (((4, 1), 1e-9), ((4, 2), 0.12)):
        whole = _slope(lambda n, cell=cell: run_local(costs[cell], machine, n, 2), 16)
        assert local_step(costs[cell], cluster) == pytest.approx(whole, rel=tolerance)


@pytest.mark.parametrize("cluster", [FAST, Cluster(1e12, 2e8, 1e-2)])
def test_1f1b_is_the_timeline(costs, cluster):
    machine, found = Machine(cluster.flops, cluster.bandwidth, cluster.latency), costs[4, 1]
    whole = _slope(lambda n: run_pipeline(found, machine, plans.one_forward_one_backward(4, 16, n), 16), 2)
    assert pipeline_step(found, cluster) == pytest.approx(whole, rel=1e-9)


def test_copies_are_the_timelines(costs):
    cluster, found = Cluster(1e12, 2e8, 1e-3), costs[4, 1]
    whole = _slope(lambda n: run_copies(found, Machine(1e12, 2e8, 1e-3), n, 8), 2)
    assert data_parallel_step(found, cluster, 8) == pytest.approx(whole, rel=1e-9)


def test_collectives_by_hand(costs):
    """A ring of 4: 2 x 3 messages of a quarter of 400 bytes each; the bad link is in every one."""
    cluster = Cluster(1e12, bandwidth=100.0, latency=0.5)
    assert cluster.ring.reduce(400.0, 4) == pytest.approx(6 * (1.0 + 0.5))
    assert dataclasses.replace(cluster, loss=3.0).ring.reduce(400.0, 4) == pytest.approx(3 * 9.0)
    assert cluster.ring.reduce(400.0, 1) == 0
    found = costs[4, 1]
    n_bytes = 4 * sum(stage.parameters for stage in found.reference)
    whole = one_device_step(found, cluster) / 4
    assert seldom_averaged_step(found, cluster, 4) == pytest.approx(
        whole + cluster.ring.reduce(n_bytes, 4) / LOCAL_STEPS
    )
    gathered = 3 * (3 * n_bytes / 4 / 100.0 + 4 * 3 * 0.5)  # three times all of it, in messages of four blocks
    assert sharded_step(found, cluster, 4) == pytest.approx(max(whole, gathered))


def test_a_slow_device_slows_its_module_alone(costs):
    found = costs[4, 1]
    slow = dataclasses.replace(FAST, slowdown=2.0)
    each = [3 * module.macs * found.batch_size * 2 / FAST.flops for module in found.modules]
    assert local_step(found, FAST) == pytest.approx(max(each), rel=1e-3)
    assert local_step(found, slow) == pytest.approx(max(*each, 2 * each[2]), rel=1e-3)
    assert data_parallel_step(found, slow, 4) == pytest.approx(2 * data_parallel_step(found, FAST, 4), rel=1e-3)


def test_a_bad_link_is_one_devices():
    """Two devices, one message: it takes 8 / 2 + 3 seconds instead of 8 / 4 + 1."""
    schedule = plans.gpipe(2, 1, 1)
    links = Links(lambda need: 8.0, 4.0, 1.0)
    assert simulate(schedule, lambda work: 1.0, links).makespan == pytest.approx(1 + 3 + 2 + 3 + 1)
    bad = dataclasses.replace(links, slow={0: Slow(2.0, 3.0)})
    assert simulate(schedule, lambda work: 1.0, bad).makespan == pytest.approx(1 + 7 + 2 + 3 + 1)


def test_rows_are_speedups_over_one_device(costs):
    rows = speedups(costs, 8, {"near": FAST})
    assert [(row["way"], row["copies"]) for row in rows] == [
        ("DGL 2 x 1", 4), ("DGL 4 x 1", 2), ("GN-DGL 4 x 2", 1), ("1F1B 4", 2), ("DDP", 8), ("FSDP", 8),
        ("DiLoCo-like", 8),
    ]  # fmt: skip
    by_way = {row["way"]: row["speedups"]["near"] for row in rows}
    assert by_way["DDP"] == pytest.approx(8, rel=1e-3)
    assert by_way["DGL 4 x 1"] == pytest.approx(
        one_device_step(costs[4, 1], FAST) / local_step(costs[4, 1], FAST, copies=2)
    )
    with pytest.raises(ConfigError, match="--devices: 256 is not valid; expected at most 128"):
        speedups(costs, 256, {"near": FAST})


def test_the_command_prints_and_draws(tmp_path, capsys):
    small = ("--model", "resnet8", "--depth", "2", "--width", "1", "--devices", "2", "4", "--batch-size", "16")
    assert main(["bench", "many", *small, "--figure", str(tmp_path / "many.svg"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["devices"] for row in found["rows"]] == [2] * 5 + [4] * 5
    assert (tmp_path / "many.svg").read_text().startswith("<svg")
    assert main(["bench", "many", *small]) == 0
    assert "predicted speed-up over one device" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--devices", "5000"), "--devices: 5000 is not valid; expected at most 4096"),
        (("--loss", "0.5"), "--loss: 0.5 is not valid; expected at least 1"),
        (("--depth", "2"), "--width"),
        (("--figure", "run.toml"), "--figure"),
    ],
)
def test_wrong_options_are_named(given, told, capsys):
    assert main(["bench", "many", *given]) == 2
    assert told in capsys.readouterr().err
