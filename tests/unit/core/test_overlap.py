"""Overlapping stages equal a slow loop, reach one module below and no further, and are refused elsewhere."""

import copy
import dataclasses

import pytest
import torch

import small
from locallearn.config import MeshConfig, ObjectiveConfig, OptimizerConfig, TrainConfig
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.core.local_step import LocalStep
from locallearn.core.overlap import overlapping_walk
from locallearn.costs.memory import ActivationMeter
from locallearn.costs.nodes import cost
from locallearn.costs.timeline import Machine, run_local
from locallearn.data.datasets import load
from locallearn.errors import ConfigError, UsageError
from locallearn.runtime.overlapping_threads import OverlappingThreadsRuntime
from locallearn.runtime.threads import ThreadsRuntime
from locallearn.training import runs, verify
from locallearn.training.configured import Training
from locallearn.training.observer import Quiet
from locallearn.training.record import RunFolder
from locallearn.training.trainer import Trainer
from locallearn.training.verify_gradients import gradients_in_a_step

IMAGE = ImageShape(3, 8, 5)
CASES = {
    "dgl": ("dgl", 3, (1,), {}),
    "layerwise": ("dgl", 4, (1,), {"cuts": ("layerwise",)}),
    "gn-dgl, decoupled": ("gn-dgl", 3, (2,), {}),
    "predsim": ("predsim", 2, (1,), {}),
    "transport": ("dgl", 3, (1,), {"objective": ObjectiveConfig(loss="transport")}),
    "vit": ("dgl", 3, (1,), {"model": "vit-nano"}),
    "vgg": ("dgl", 3, (1,), {"model": "tiny-vgg"}),
}


def made(case, overlap=1):
    method, depth, width, changes = CASES[case]
    network = build_network(small.config(method, depth, width, overlap=overlap, **changes), IMAGE).train()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)  # layers that begin at zero pass nothing on
    return network


def batch():
    return small.batch_of(torch.randn(10, 3, 8, 8), torch.arange(10) % 5)


def slow_gradients(network, batch):
    """Of every module: its own loss, and the next one's, each from a forward pass of its own through two modules."""
    modules, features = list(network), [batch.images]
    with torch.no_grad():
        for module in copy.deepcopy(modules):
            out = module(features[-1], batch)
            features.append(module.handed_on(out))
    found = []
    for k, module in enumerate(modules):
        own = copy.deepcopy(module)
        total = own.loss(own(features[k], batch), batch).total.sum()
        if k + 1 < len(modules) and modules[k + 1].name != "classifier":
            again, above = own(features[k], batch), copy.deepcopy(modules[k + 1])
            total = total + above.loss(above(getattr(again, "features", again), batch), batch).total.sum()
        total.backward()
        found.append({name: p.grad for name, p in own.named_parameters()})
    return found


def differs(network, expected):
    """Whether any gradient that the overlapping walk leaves is another one."""
    return [
        name
        for module, gradients in zip(network, expected, strict=True)
        for name, parameter in module.named_parameters()
        if not torch.allclose(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6)
    ]


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_a_loop_over_pairs(case):
    torch.manual_seed(0)
    network, data = made(case), batch()
    expected = slow_gradients(network, data)
    overlapping_walk([LocalStep(m, torch.optim.SGD(m.parameters(), 0.0)) for m in network], data)
    assert differs(network, expected) == []


def test_without_overlap_gradients_are_others():
    torch.manual_seed(0)
    network, data = made("dgl", overlap=0), batch()
    expected = slow_gradients(network, data)
    network.walk([LocalStep(m, torch.optim.SGD(m.parameters(), 0.0)) for m in network], data)
    assert {name.split(".")[0] for name in differs(network, expected)} == {"blocks"}


def test_updates_do_not_disturb_what_a_graph_still_needs():
    """Weights after one step with a rate are those of the slow loop's gradients."""
    torch.manual_seed(0)
    network, data = made("dgl"), batch()
    expected = slow_gradients(network, data)
    before = copy.deepcopy(network)
    network.set_optimizers(lambda parameters: torch.optim.SGD(parameters, 0.1))
    network.step((data.images, data.labels))
    for module, old, gradients in zip(network, before, expected, strict=True):
        was = dict(old.named_parameters())
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(parameter, was[name] - 0.1 * gradients[name], rtol=1e-4, atol=1e-6)


def test_activations_are_those_of_two_modules_and_are_counted(torch_kernels):
    config = small.config("dgl", 3, (1,), cuts=("stem", "1.0"), train=TrainConfig(batch_size=16, precision="fp32"))
    overlapping = dataclasses.replace(config, overlap=1)
    found, plain = cost(overlapping, IMAGE), cost(config, IMAGE)
    network, data = build_network(overlapping, IMAGE), small.batch_of(torch.randn(16, 3, 8, 8), torch.arange(16) % 5)
    steps = [LocalStep(m, torch.optim.SGD(m.parameters())) for m in network]
    with ActivationMeter(network.parameters()) as meter:
        network.walk(steps, data)
    assert meter.peak_bytes == max(module.activation_bytes for module in found.modules)
    assert found.modules[0].activation_bytes == plain.modules[0].activation_bytes
    assert all(
        a.activation_bytes > b.activation_bytes for a, b in zip(found.modules[1:], plain.modules[1:], strict=True)
    )
    given = 4 * 16 * 8 * 8 * 8  # 8 channels of 8 x 8 after the stem and after block 1.0
    assert found.to_json()["returned_bytes"] == [0, given, given]
    assert "returned_bytes" not in plain.to_json()
    assert found.step_macs > plain.step_macs
    assert found.max_node_macs == plain.max_node_macs


@pytest.mark.parametrize("runtime", ["cuda-graphs", "sequential", "asynchronous"])
def test_runtimes_that_cannot_send_gradients_back_refuse(runtime):
    expected = "is not valid; expected inline, threads or distributed with overlap 1, whose gradients go back"
    with pytest.raises(ConfigError, match=f"runtime: '{runtime}' {expected}"):
        small.config("dgl", 3, (1,), overlap=1, runtime=runtime)


def test_other_refusals_are_one_line():
    with pytest.raises(ConfigError, match="overlap: 1 is not valid; expected 0 with depth 1"):
        small.config("e2e", 1, (1,), overlap=1)
    with pytest.raises(ConfigError, match=r"overlap: 2 is not valid; expected 0, or 1 \(the module before\)"):
        small.config("dgl", 3, (1,), overlap=2)
    with pytest.raises(ConfigError, match="train.precision: 'fp16'"):
        small.config("dgl", 3, (1,), overlap=1, train=dataclasses.replace(small.TRAIN, precision="fp16"))
    with pytest.raises(ConfigError, match="runtime: 'distributed'"):
        Trainer(made("dgl"), runtime="distributed")
    with pytest.raises(ConfigError, match="mesh.width: 2 is not valid; expected 1 with overlap 1"):
        small.config("gn-dgl", 2, (2,), overlap=1, runtime="distributed", mesh=MeshConfig(width=2))
    network = made("dgl")
    network.set_optimizers(lambda parameters: torch.optim.SGD(parameters, 0.1))
    with torch.autocast("cpu", torch.float16), pytest.raises(UsageError, match="no autocast to fp16 with overlap"):
        network.step((torch.randn(4, 3, 8, 8), torch.arange(4)))


def test_predicted_times_wait_for_the_gradient():
    """Two modules, each on a device: the first is done with a batch when the second's gradient has walked back."""
    config = small.config("dgl", 2, (1,), overlap=1)
    counted = cost(config, IMAGE)
    one, two = counted.modules
    rate, latency = 2.0, 1e3  # a multiply-accumulate a second
    run = run_local(counted, Machine(rate, latency=latency), 2, 2)
    first = counted.batch_size * one.block_macs + latency + counted.batch_size * 3 * two.macs + latency
    own = counted.batch_size * 3 * one.macs
    ends = [span.end for span in run.spans if span.work.kind == "G"]
    assert ends[0] == pytest.approx(max(first, own) + counted.batch_size * 2 * one.block_macs)
    assert run.wire_bytes == 2 * counted.traffic_bytes
    assert counted.traffic_bytes == one.output_bytes + two.returned_bytes == 2 * one.output_bytes
    plain = run_local(cost(small.config("dgl", 2, (1,)), IMAGE), Machine(rate, latency=latency), 2, 2)
    assert run.makespan > plain.makespan


def trained_on_threads(kind, case, at_once):
    """Weights after six batches, and the losses of each."""
    torch.manual_seed(0)
    network = made(case)
    network.set_optimizers(lambda parameters: torch.optim.SGD(parameters, 0.05, momentum=0.9))
    draw = torch.Generator().manual_seed(1)
    batches = [
        small.batch_of(torch.randn(6, 3, 8, 8, generator=draw), torch.randint(5, (6,), generator=draw))
        for _ in range(6)
    ]
    if kind is None:
        losses = [
            [each.total.tolist() for each in network.walk(network.steps, data, i)] for i, data in enumerate(batches)
        ]
        return network.state_dict(), losses
    with kind(network.steps, at_once, at_once) as runtime:
        done = [each for i, data in enumerate(batches) for each in runtime.step(data, i)] + runtime.settle()
    return network.state_dict(), [[each.total.tolist() for each in one.losses] for one in done]


@pytest.mark.parametrize("at_once", [1, 2, 3])
@pytest.mark.parametrize("case", ["layerwise", "gn-dgl, decoupled"])
def test_threads_train_the_same_bit_for_bit(case, at_once):
    weights, losses = trained_on_threads(None, case, 1)
    found, others = trained_on_threads(OverlappingThreadsRuntime, case, at_once)
    assert all(torch.equal(value, found[name]) for name, value in weights.items())
    assert losses == others


def test_threads_that_hand_nothing_back_train_something_else():
    weights, _ = trained_on_threads(None, "dgl", 1)
    found, _ = trained_on_threads(ThreadsRuntime, "dgl", 2)
    assert any(not torch.equal(value, found[name]) for name, value in weights.items())


def test_a_run_trains_and_resumes_exactly(tmp_path):
    config = small.config("dgl", 3, (1,), overlap=1, optimizer=OptimizerConfig(learning_rate=0.01))
    assert runs.train(config, tmp_path / "run")["steps"] == 10
    checks = {check.name: check.passed for check in verify.verify(config, load(config.data))}
    assert checks == {
        "gradients cross one boundary and no other": True,
        "training is repeatable": True,
        "a saved run resumes exactly": True,
        "processes train what one trains": True,
    }


def test_verify_sees_a_cut_that_nothing_crosses(tmp_path):
    config, dataset = verify.shortened(small.config("dgl", 3, (1,), overlap=1), load(small.config().data))
    training = Training(config, dataset, RunFolder(tmp_path), Quiet())
    batch = next(iter(training.train_store.epoch(0, config.train.batch_size)))
    assert gradients_in_a_step(training.network, batch, "fp32", 1).passed
    training.network.overlap = 0
    check = gradients_in_a_step(training.network, batch, "fp32", 1)
    assert not check.passed
    assert "module 2 does not reach module 1" in check.detail
