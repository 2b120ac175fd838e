"""A run that goes from mesh to mesh, stopped in the middle of epochs, ends like the undisturbed one."""

import dataclasses
import shutil

import pytest

import small
from distributed.compare import CLOSE, distance, last_checkpoint, on
from distributed.processes import finish, start
from distributed.worker import in_fp64
from locallearn.config import (
    AugmentConfig,
    MeshConfig,
    ModificationConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ScheduleConfig,
    to_toml,
)
from locallearn.training import runs

GENTLE = OptimizerConfig(learning_rate=0.01, momentum=0.9)
SUPERVISED = small.config("gn-dgl", 2, (2,), optimizer=GENTLE, schedule=ScheduleConfig(name="constant"))
PAIRS = ModificationConfig(scorer="augmentation", positive_ratio=0.8, negative_ratio=0.8)
SELF_SUPERVISED = dataclasses.replace(
    SUPERVISED,
    method="dgssl-llm",
    augment=AugmentConfig(resized_crop=(0.3, 1.0), flip=0.0),
    objective=ObjectiveConfig(modification=PAIRS),
)
MOMENTUM = dataclasses.replace(SUPERVISED, objective=ObjectiveConfig(head="momentum", head_options={"momentum": 0.5}))
RUNS = {"supervised": SUPERVISED, "momentum": MOMENTUM, "self-supervised": SELF_SUPERVISED}
LEGS = [((1, 2, 1), 3), ((2, 1, 1), 6), ((1, 1, 2), 8)]
"""Meshes, and the step after which each stops; 5 steps are an epoch, and the last two are inline."""

LEG = """
import sys, torch, torch.distributed as dist
from pathlib import Path
from distributed.worker import in_fp64
from locallearn.config import MeshConfig, from_toml
from locallearn.errors import InterruptedRunError
from locallearn.training import loop, runs

mesh, end = MeshConfig(*map(int, sys.argv[2:5])), int(sys.argv[5])
step = loop.Loop._step

def stopping(self, batch):
    self.stop.requested = self.step + 1 == end
    step(self, batch)

loop.Loop._step = stopping
torch.set_num_threads(1)
dist.init_process_group("gloo")
for path in sorted(Path(sys.argv[1]).glob("*.toml")):
    run = path.with_suffix("")
    with in_fp64():
        try:
            if run.exists():
                runs.resume(run, runtime="distributed", mesh=mesh)
            else:
                runs.train(from_toml(path.read_text()), run)
        except InterruptedRunError:
            pass
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def travelled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, config in RUNS.items():
        (folder / f"{name}.toml").write_text(to_toml(on(config, *LEGS[0][0])))
    for mesh, end in LEGS:
        command = ["-c", LEG, str(folder), *map(str, mesh), str(end)]
        for code, _, errors in finish(start(command, 2)):
            assert code == 0, errors
        assert {last_checkpoint(folder / name).progress["step"] for name in RUNS} == {end}
    return folder


def end_inline(run):
    with in_fp64():
        assert runs.resume(run, runtime="inline", mesh=MeshConfig())["steps"] == 10
    return last_checkpoint(run)


@pytest.mark.parametrize("name", RUNS)
def test_from_mesh_to_mesh_to_inline(travelled, inline_run, tmp_path, name):
    with in_fp64():
        expected = last_checkpoint(inline_run(RUNS[name]))
    shutil.copytree(travelled / name, tmp_path / "run")
    found = end_inline(tmp_path / "run")
    assert found.tensors.keys() == expected.tensors.keys()
    assert distance(found, expected) < CLOSE


def test_a_momentum_that_is_lost_on_the_way_is_seen(travelled, inline_run, tmp_path, monkeypatch):
    with in_fp64():
        expected = last_checkpoint(inline_run(SUPERVISED))
    shutil.copytree(travelled / "supervised", tmp_path / "run")
    monkeypatch.setattr("locallearn.training.checkpoint.load_optimizer", lambda *_: None)
    assert distance(end_inline(tmp_path / "run"), expected) > 1e6 * CLOSE
