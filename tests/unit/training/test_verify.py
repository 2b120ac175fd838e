"""Each check passes on what is right, and fails on a planted fault."""

import dataclasses

import pytest
import torch
from torch import nn

import small
from locallearn.config import DataConfig, MeshConfig, OptimizerConfig, ScheduleConfig, SequentialConfig
from locallearn.core.local_step import LocalStep
from locallearn.data.datasets import load
from locallearn.data.store import Batch
from locallearn.errors import LocalLearnError
from locallearn.losses import objectives
from locallearn.nn import heads
from locallearn.runtime import cuda_graphs
from locallearn.runtime.inline import InlineRuntime
from locallearn.training import loop, runs
from locallearn.training import verify as verify_module
from locallearn.training.configured import Training
from locallearn.training.observer import Quiet
from locallearn.training.setup import resolve
from locallearn.training.verify import BATCH, images_of, shortened, synthetic, verify
from locallearn.training.verify_gradients import gradients_stay
from locallearn.training.verify_processes import train_on_processes
from recording import Recording

GRADIENTS, REPEATABLE, RESUME, PROCESSES = range(4)
MESH_OF = verify_module.trial_mesh


@pytest.fixture(autouse=True)
def _one_process(monkeypatch):
    """Starting processes takes seconds: only the tests of that check do."""
    monkeypatch.setattr(verify_module, "trial_mesh", lambda config: None)


def checks_of(config=None):
    config = config or small.config()
    return verify(config, load(config.data))


def gradient_check(tmp_path, config=None):
    config = config or small.config()
    short, dataset = shortened(config, load(config.data))
    return gradients_stay(Training(short, dataset, runs.RunFolder(tmp_path / "run"), Quiet()))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "e2e", "depth": 1, "width": (1,)},
        {"runtime": "sequential", "sequential": SequentialConfig(cache="memory", cache_dtype="uint8")},
        {"optimizer": OptimizerConfig(name="adam", learning_rate=1e-3, clip_norm=1.0)},
        {"train": dataclasses.replace(small.TRAIN, precision="bf16"), "schedule": ScheduleConfig(warmup_epochs=2)},
    ],
    ids=["gn-dgl", "e2e", "sequential", "adam", "bf16"],
)
def test_all_is_well(changes):
    checks = checks_of(small.config(**changes))
    assert [check.passed for check in checks] == [True] * 3
    assert [check.difference for check in checks] == [0.0] * 3


def test_nothing_is_left_behind_and_the_machine_is_as_before(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    checks_of()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_detach_between_modules_fails(tmp_path, monkeypatch):
    call = LocalStep.__call__

    def leaking(self, features, batch, index=0, rate=None):
        _, loss = call(self, features, batch, index, rate)
        return self.module(features), loss  # with its graph

    monkeypatch.setattr(LocalStep, "__call__", leaking)
    check = gradient_check(tmp_path)
    assert not check.passed
    assert check.difference is None or check.difference > 0


def test_a_leak_between_groups_fails_and_is_measured(tmp_path, monkeypatch):
    config = small.config(objective=dataclasses.replace(small.config().objective, head="0c2f"))
    assert gradient_check(tmp_path, config).passed
    monkeypatch.setattr(heads, "stop_gradient_vectors", lambda x, g: x[None].expand(g, *x.shape))
    check = gradient_check(tmp_path, config)
    assert not check.passed
    assert check.difference > 0


def test_a_diversity_penalty_that_does_not_detach_fails(tmp_path, monkeypatch):
    def leaking(logits, labels, temperature):
        return (logits * logits.flip(0)).mean((1, 2))

    monkeypatch.setattr(objectives, "diversity", leaking)
    check = gradient_check(tmp_path)
    assert not check.passed
    assert check.difference > 0


def test_a_loss_without_gradient_fails(tmp_path, monkeypatch):
    """Zero everywhere would else pass for "no leak"."""
    cross_entropy = objectives.cross_entropy
    monkeypatch.setattr(objectives, "cross_entropy", lambda *a: cross_entropy(*a) * 0)
    config = small.config(objective=dataclasses.replace(small.config().objective, diversity_weight=0.0))
    check = gradient_check(tmp_path, config)
    assert not check.passed
    assert "no gradient at all in module 1, group 1" in check.detail


def test_a_draw_from_the_clock_fails_repeatability(monkeypatch):
    step = InlineRuntime.step

    def random(self, batch, *given):
        noise = torch.randn(batch.images.shape, generator=torch.Generator().manual_seed(random.calls))
        random.calls += 1
        noisy = Batch(batch.images + 1e-3 * noise, batch.labels, batch.pixels, batch.step)
        return step(self, noisy, *given)

    random.calls = 0
    monkeypatch.setattr(InlineRuntime, "step", random)
    checks = checks_of()
    assert [check.passed for check in checks] == [True, False, False]
    assert 0 < checks[REPEATABLE].difference < 1


def test_modules_at_once_are_compared_with_modules_in_turn(monkeypatch):
    config = small.config("dgl", 3, (1,), runtime="threads", train=dataclasses.replace(small.TRAIN, threads=2))
    dataset = load(config.data)
    check = {check.name: check for check in verify(config, dataset)}["modules at once train what they do in turn"]
    assert check.passed
    assert "2 modules on 2 threads at once" in check.detail
    call = LocalStep.__call__

    def slow(self, features, batch, index=0, rate=None, hand_on=None):
        return call(self, features, batch, index, 0.5 * rate if hand_on else rate, hand_on)  # on threads only

    monkeypatch.setattr(LocalStep, "__call__", slow)
    check = {check.name: check for check in verify(config, dataset)}["modules at once train what they do in turn"]
    assert not check.passed
    assert check.difference > 0


def test_replays_are_compared_with_operators(monkeypatch, torch_kernels):
    def resolved(config, dataset):  # as where there is a GPU
        return dataclasses.replace(
            resolve(dataclasses.replace(config, runtime="inline"), dataset), runtime="cuda-graphs"
        )

    monkeypatch.setattr(verify_module, "resolve", resolved)
    monkeypatch.setattr(cuda_graphs, "CudaGraph", Recording)
    config = small.config("dgl", 2, (1,), runtime="cuda-graphs")
    dataset = load(config.data)
    check = {check.name: check for check in verify(config, dataset)}["replayed graphs train what operators do"]
    assert check.passed
    assert "after 2 replays of 4 steps" in check.detail
    tensors = cuda_graphs.tensors_of  # batches that do not reach the graph
    monkeypatch.setattr(cuda_graphs, "tensors_of", lambda batch: {k: v.clone() for k, v in tensors(batch).items()})
    check = {check.name: check for check in verify(config, dataset)}["replayed graphs train what operators do"]
    assert not check.passed


@pytest.mark.parametrize("lost", ["optimizer", "weights", "step"])
@pytest.mark.parametrize("runtime", ["inline", "sequential"])
def test_a_resume_that_forgets_fails(monkeypatch, lost, runtime):
    if lost == "optimizer":
        monkeypatch.setattr(loop.checkpoints, "load_optimizer", lambda *_: None)
    elif lost == "weights":
        monkeypatch.setattr(loop.checkpoints, "load_network", lambda *_: None)
        monkeypatch.setattr(nn.Module, "load_state_dict", lambda *_: None)
    else:
        newest = loop.checkpoints.CheckpointFolder.newest

        def forget(self):
            path, found, problems = newest(self)
            if found is not None:
                found.progress.update(step=found.progress["step"] - 1, within=found.progress["within"] - 1)
            return path, found, problems

        monkeypatch.setattr(loop.checkpoints.CheckpointFolder, "newest", forget)
    checks = checks_of(small.config(runtime=runtime))
    assert [check.passed for check in checks] == [True, True, False]
    assert checks[RESUME].difference is None or checks[RESUME].difference > 0


def test_data_that_is_not_there_is_replaced_by_pixels_of_its_shape(tmp_path):
    dataset, is_synthetic = images_of(DataConfig("cifar100", root=str(tmp_path)))
    assert is_synthetic
    assert (dataset.channels, dataset.image_size, len(dataset.classes)) == (3, 32, 100)
    assert images_of(DataConfig("digits"))[1] is False
    config = small.config(data=DataConfig("cifar100", root=str(tmp_path)))
    assert all(check.passed for check in verify(config, dataset))


def test_the_short_run_keeps_the_network_and_the_share_of_the_rate():
    config = small.config(schedule=ScheduleConfig(warmup_epochs=2), optimizer=OptimizerConfig(learning_rate=0.2))
    short, dataset = shortened(config, synthetic(DataConfig("cifar10")))
    assert (short.method, short.depth, short.groups, short.objective) == ("gn-dgl", 2, (2, 2), config.objective)
    assert short.optimizer.learning_rate == 0.1
    assert (short.train.batch_size, len(dataset.train.labels)) == (BATCH, 4 * BATCH)


@pytest.mark.parametrize(
    ("changes", "mesh"),
    [
        ({}, (2, 1, 1)),
        ({"depth": 1, "width": (2,)}, (1, 2, 1)),
        ({"method": "e2e", "depth": 1, "width": (1,)}, None),
        ({"method": "dgssl"}, (2, 1, 1)),
    ],
    ids=["depth", "width", "one-node", "self-supervised"],
)
def test_the_mesh_of_the_check(changes, mesh):
    found = MESH_OF(small.config(**changes))
    assert mesh == (found and (found.depth, found.width, found.data))


def test_processes_train_what_one_trains(monkeypatch):
    monkeypatch.setattr(verify_module, "trial_mesh", MESH_OF)
    found = checks_of()[PROCESSES]
    assert (found.passed, found.difference) == (True, 0.0)


def test_processes_that_train_something_else_fail(monkeypatch):
    monkeypatch.setattr(verify_module, "trial_mesh", MESH_OF)
    whole = verify_module.on_mesh

    def another_rate(config, mesh):
        inline, distributed = whole(config, mesh)
        rate = inline.optimizer.learning_rate * 1.01
        return inline, dataclasses.replace(
            distributed, optimizer=dataclasses.replace(inline.optimizer, learning_rate=rate)
        )

    monkeypatch.setattr(verify_module, "on_mesh", another_rate)
    checks = checks_of()
    assert [check.passed for check in checks] == [True, True, True, False]
    assert checks[PROCESSES].difference > 1e-6


def test_a_process_that_fails_is_one_line(tmp_path):
    config = small.config("dgssl-llm", 2, (1,), runtime="distributed", mesh=MeshConfig(depth=2))
    short, dataset = shortened(config, load(config.data))
    line = r"^process \d of 2: .*scorer_run: None is not valid; expected the folder of a finished run .*$"
    with pytest.raises(LocalLearnError, match=line):
        train_on_processes(short, dataset, tmp_path / "run")
