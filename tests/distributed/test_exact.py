"""Distributed training gives the weights of the inline runtime.

Bit for bit along depth. Along width and data sums are taken in another order: weights agree within ``CLOSE`` of
their size after ten steps, and every planted error is further away than that.
"""

import dataclasses
import json

import pytest
import torch

import small
from distributed.processes import train_all
from locallearn.config import MeshConfig, ObjectiveConfig, OptimizerConfig
from locallearn.training import runs
from locallearn.training.checkpoint import load

CLOSE = 2e-5


def on(config, depth=1, width=1, data=1, **changes):
    mesh = MeshConfig(depth=depth, width=width, data=data, timeout=60)
    return dataclasses.replace(config, runtime="distributed", mesh=mesh, **changes)


GENTLE = OptimizerConfig(learning_rate=0.01)
DGL = small.config("dgl", 2, (1,))
DGL3 = small.config("dgl", 3, (1,))
GN = small.config("gn-dgl", 2, (2,), optimizer=GENTLE)
GN1 = small.config("gn-dgl", 1, (2,), optimizer=GENTLE)
GN4 = small.config("gn-dgl", 1, (4,), optimizer=GENTLE)
PREDSIM = small.config("predsim", 2, (2,), optimizer=GENTLE)
INFOPRO = small.config("infopro", 2, (1,), optimizer=GENTLE)
VGG = small.config("gn-dgl", 2, (2,), model="tiny-vgg", optimizer=GENTLE)
MLP = small.config("gn-dgl", 2, (2,), objective=ObjectiveConfig(head="mlp-sr"), optimizer=GENTLE)
SPLIT = small.config("gn-dgl", 2, (2,), objective=ObjectiveConfig(stop_gradient=False), optimizer=GENTLE)
GN3 = small.config("gn-dgl", 2, (3,), model="tiny-vgg", optimizer=GENTLE)
ADAM = small.config("dgl", 2, (1,), optimizer=OptimizerConfig(name="adam", learning_rate=1e-3, clip_norm=1.0))

EXACT = {
    2: {
        "dgl": on(DGL, 2),
        "dgl3": on(DGL3, 2),
        "gn": on(GN, 2),
        "predsim": on(PREDSIM, 2),
        "infopro": on(INFOPRO, 2),
        "adam": on(ADAM, 2),
        "vgg": on(dataclasses.replace(VGG, dropout=0.2), 2),
    },
    4: {"deep": on(small.config("dgl", 4, (1,)), 4)},
}
ROUNDED = {
    2: {
        "width": on(GN1, 1, 2),
        "width4": on(GN4, 1, 2),
        "width_deep": on(GN, 1, 2),
        "width_predsim": on(PREDSIM, 1, 2),
        "width_vgg": on(VGG, 1, 2),
        "width_mlp": on(MLP, 1, 2),
        "width_split": on(SPLIT, 1, 2),
        "data": on(DGL, 1, 1, 2),
        "data_gn": on(GN, 1, 1, 2),
        "data_predsim": on(PREDSIM, 1, 1, 2),
        "data_infopro": on(INFOPRO, 1, 1, 2),
        "data_vgg": on(VGG, 1, 1, 2),
        "data_mlp": on(MLP, 1, 1, 2),
        "data_adam": on(ADAM, 1, 1, 2),
        "halved_gradient": on(GN1, 1, 2),
        "lost_batch": on(DGL, 2),
        "stale_features": on(GN1, 1, 2),
        "own_statistics": on(DGL, 1, 1, 2),
        "own_gradient": on(DGL, 1, 1, 2),
        "wrong_labels": on(DGL, 2),
    },
    4: {"both": on(GN, 2, 2), "width_data": on(GN, 1, 2, 2), "depth_data": on(DGL, 2, 1, 2)},
    6: {"uneven": on(GN3, 2, 3), "three": on(DGL, 2, 1, 3)},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs of all cases, by number of processes."""
    folders = {}
    for count, cases in EXACT.items():
        folders[count] = tmp_path_factory.mktemp(f"on{count}")
        if cases:
            train_all(cases, folders[count], count)
    return folders


def inline(config, folder):
    plain = dataclasses.replace(config, runtime="inline", mesh=MeshConfig())
    runs.train(plain, folder)
    return last_checkpoint(folder)


def last_checkpoint(run):
    return load(sorted((run / "checkpoints").glob("step-*"))[-1])


@pytest.mark.parametrize(("count", "name"), [(count, name) for count, cases in EXACT.items() for name in cases])
def test_depth_is_exact(trained, tmp_path, count, name):
    expected = inline(EXACT[count][name], tmp_path / "inline")
    found = last_checkpoint(trained[count] / name)
    assert found.tensors.keys() == expected.tensors.keys()
    assert [key for key in found.tensors if not torch.equal(found.tensors[key], expected.tensors[key])] == []
    assert _figures(trained[count] / name) == _figures(tmp_path / "inline")


def _figures(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    times = ("time", "seconds", "images_per_second")
    return [{key: value for key, value in line.items() if key not in times} for line in lines]
