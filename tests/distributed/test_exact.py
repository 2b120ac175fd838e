"""Distributed training gives the weights of the inline runtime.

Bit for bit along depth. Along width and data sums are taken in another order: after ten steps in fp64 every weight
and statistic agrees within ``CLOSE`` of the largest one of its tensor, and every planted error is a billion times
further away.
"""

import dataclasses
import json
import shutil

import pytest
import torch

import small
from distributed.compare import CLOSE, CLOSE_IN_FP32, FAULT, briefly, distance, figures, last_checkpoint, on
from distributed.processes import train_all
from distributed.worker import FAULTS, in_fp64
from locallearn.config import MaskingConfig, MeshConfig, ObjectiveConfig, OptimizerConfig
from locallearn.training import runs
from locallearn.training.checkpoint import CheckpointFolder
from locallearn.training.export import export
from locallearn.training.finished import open_run

GENTLE = OptimizerConfig(learning_rate=0.01)
DGL = small.config("dgl", 2, (1,))
DGL3 = small.config("dgl", 3, (1,))
GN = small.config("gn-dgl", 2, (2,), optimizer=GENTLE)
GN1 = small.config("gn-dgl", 1, (2,), optimizer=GENTLE)
GN4 = small.config("gn-dgl", 1, (4,), optimizer=GENTLE)
POOLED, POOLED4 = (dataclasses.replace(c, objective=ObjectiveConfig(pool_others=2)) for c in (GN1, GN4))
PREDSIM = small.config("predsim", 2, (2,), optimizer=GENTLE)
INFOPRO = small.config("infopro", 2, (1,), seed=1, optimizer=GENTLE)
VGG = small.config("gn-dgl", 2, (2,), model="tiny-vgg", optimizer=GENTLE)
MLP = small.config("gn-dgl", 2, (2,), objective=ObjectiveConfig(head="mlp-sr"), optimizer=GENTLE)
AUGLOCAL = small.config("gn-dgl", 2, (2,), objective=ObjectiveConfig(head="auglocal"), optimizer=GENTLE)
FOLLOWING = ObjectiveConfig(head="momentum", head_options={"momentum": 0.5})
MAN = small.config("dgl", 3, (1,), objective=FOLLOWING, optimizer=GENTLE)
GN_MAN = small.config("gn-dgl", 2, (2,), objective=FOLLOWING, optimizer=GENTLE)
OVERLAP = dataclasses.replace(DGL3, overlap=1)
SPLIT = small.config("gn-dgl", 2, (2,), objective=ObjectiveConfig(stop_gradient=False), optimizer=GENTLE)
GN3 = small.config("gn-dgl", 2, (3,), model="tiny-vgg", optimizer=GENTLE)
ADAM = small.config("dgl", 2, (1,), optimizer=OptimizerConfig(name="adam", learning_rate=1e-3, clip_norm=1.0))
MAE = small.config(
    "mae", 2, (1,), model="vit-nano", objective=ObjectiveConfig(masking=MaskingConfig(decoder_width=16)),
    optimizer=OptimizerConfig(name="adam", learning_rate=1e-3),
)  # fmt: skip

EXACT = {
    2: {
        "dgl": on(DGL, 2),
        "dgl3": on(DGL3, 2),
        "gn": on(GN, 2),
        "predsim": on(PREDSIM, 2),
        "infopro": on(INFOPRO, 2),
        "adam": on(ADAM, 2),
        "mae": on(MAE, 2),
        "man": on(MAN, 2),
        "gn_man": on(GN_MAN, 2),
        "overlap": on(OVERLAP, 2),
        "overlap_gn": on(dataclasses.replace(GN, overlap=1), 2),
        "overlap_man": on(dataclasses.replace(MAN, overlap=1, context="image"), 2),
        "context_image": on(dataclasses.replace(DGL3, context="image"), 2),
        "context_before": on(small.config("predsim", 3, (1,), optimizer=GENTLE, context="before"), 2),
        "vgg": on(dataclasses.replace(VGG, dropout=0.2), 2),
    },
    4: {
        "deep": on(small.config("dgl", 4, (1,)), 4),
        "deep_man": on(small.config("dgl", 4, (1,), objective=FOLLOWING, optimizer=GENTLE), 4),
    },
}
ROUNDED = {
    2: {
        "width": on(GN1, 1, 2),
        "width4": on(GN4, 1, 2),
        "width_pooled": on(POOLED, 1, 2),
        "width_pooled4": on(POOLED4, 1, 2),
        "width_deep": on(GN, 1, 2),
        "width_predsim": on(PREDSIM, 1, 2),
        "width_vgg": on(VGG, 1, 2),
        "width_mlp": on(MLP, 1, 2),
        "width_auglocal": on(AUGLOCAL, 1, 2),
        "width_man": on(GN_MAN, 1, 2),
        "data_man": on(GN_MAN, 1, 1, 2),
        "halved_weights": on(MAN, 2),
        "halved_returns": on(OVERLAP, 2),
        "data_context": on(dataclasses.replace(DGL, context="image"), 1, 1, 2),
        "width_split": on(SPLIT, 1, 2),
        "data": on(DGL, 1, 1, 2),
        "data_gn": on(GN, 1, 1, 2),
        "data_predsim": on(PREDSIM, 1, 1, 2),
        "data_infopro": on(INFOPRO, 1, 1, 2),
        "data_vgg": on(VGG, 1, 1, 2),
        "data_mlp": on(MLP, 1, 1, 2),
        "data_adam": on(ADAM, 1, 1, 2),
        "data_mae": on(MAE, 1, 1, 2),
        "halved_gradient": on(GN1, 1, 2),
        "lost_batch": on(DGL, 2),
        "stale_features": on(GN1, 1, 2),
        "coarser_features": on(POOLED, 1, 2),
        "own_statistics": on(DGL, 1, 1, 2),
        "own_gradient": on(DGL, 1, 1, 2),
        "wrong_labels": on(DGL, 2),
    },
    4: {
        "both": on(GN, 2, 2),
        "both_man": on(GN_MAN, 2, 2),
        "width_data": on(GN, 1, 2, 2),
        "depth_data": on(DGL, 2, 1, 2),
        "depth_data_overlap": on(OVERLAP, 2, 1, 2),
    },
    6: {"uneven": on(GN3, 2, 3), "three": on(DGL, 2, 1, 3)},
}
IN_FP32 = {
    2: {"fp32_width": briefly(GN1, 1, 2), "fp32_data": briefly(DGL, 1, 1, 2), "fp32_pooled": briefly(POOLED, 1, 2)},
    4: {"fp32_both": briefly(GN, 2, 2)},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs of all cases, by number of processes."""
    folders = {}
    for count, cases in ROUNDED.items():
        folders[count] = tmp_path_factory.mktemp(f"on{count}")
        in_double = {f"fp64_{name}": config for name, config in cases.items()}
        train_all(EXACT.get(count, {}) | IN_FP32.get(count, {}) | in_double, folders[count], count)
    return folders


def names(table, faults=False):
    listed = [(count, name) for count, cases in table.items() for name in cases]
    return [(count, name) for count, name in listed if (name in FAULTS) == faults]


@pytest.mark.parametrize(("count", "name"), names(EXACT))
def test_depth_is_exact(trained, inline_run, count, name):
    run = inline_run(EXACT[count][name])
    expected, found = last_checkpoint(run), last_checkpoint(trained[count] / name)
    assert found.tensors.keys() == expected.tensors.keys()
    assert [key for key in found.tensors if not torch.equal(found.tensors[key], expected.tensors[key])] == []
    assert figures(trained[count] / name) == figures(run)


@pytest.mark.parametrize(("count", "name"), names(ROUNDED))
def test_width_and_data_are_exact_but_for_rounding(trained, inline_run, count, name):
    with in_fp64():
        expected = last_checkpoint(inline_run(ROUNDED[count][name]))
    found = last_checkpoint(trained[count] / f"fp64_{name}")
    assert next(iter(found.tensors.values())).dtype == torch.float64
    assert distance(found, expected) < CLOSE


@pytest.mark.parametrize(("count", "name"), names(IN_FP32))
def test_width_and_data_are_close_in_fp32(trained, inline_run, count, name):
    expected = last_checkpoint(inline_run(IN_FP32[count][name]))
    assert distance(last_checkpoint(trained[count] / name), expected) < CLOSE_IN_FP32


@pytest.mark.parametrize(("count", "name"), names(ROUNDED, faults=True))
def test_planted_errors_are_seen(trained, inline_run, count, name):
    with in_fp64():
        expected = last_checkpoint(inline_run(ROUNDED[count][name]))
    assert distance(last_checkpoint(trained[count] / f"fp64_{name}"), expected) > FAULT


@pytest.mark.parametrize(("count", "name"), [(2, "width"), (4, "both"), (4, "depth_data")])
def test_a_resume_inline_ends_like_the_run_on_its_mesh(trained, tmp_path, count, name):
    """Checkpoints do not depend on the mesh: the last epoch is trained again, inline."""
    run = tmp_path / "run"
    shutil.copytree(trained[count] / f"fp64_{name}", run)
    (run / "summary.json").unlink()
    for path in sorted((run / "checkpoints").glob("step-*"))[1:]:
        shutil.rmtree(path)
    with in_fp64():
        summary = runs.resume(run, runtime="inline", mesh=MeshConfig())
    assert summary["steps"] == 10
    assert distance(last_checkpoint(run), last_checkpoint(trained[count] / f"fp64_{name}")) < CLOSE
    assert isinstance(json.loads((run / "summary.json").read_text())["accuracy"]["last_layer"], float)


def test_a_run_on_a_mesh_is_evaluated_and_exported_as_any_other(trained, tmp_path):
    opened = open_run(trained[4] / "fp32_both")
    summary = json.loads((trained[4] / "fp32_both" / "summary.json").read_text())
    assert opened.evaluate().last_layer == summary["accuracy"]["last_layer"]
    names = sorted(path.name for path in export(opened, tmp_path, ["safetensors"]))
    assert names == ["network.json", "network.safetensors"]
    assert open_run(trained[4] / "fp32_both", "best").step in (5, 10)


def test_a_set_that_is_not_complete_is_no_checkpoint(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained[2] / "fp32_width", run)
    older, newest = sorted((run / "checkpoints").glob("step-*"))
    kept = CheckpointFolder(run / "checkpoints", 2)
    (newest / "manifest.json").rename(tmp_path / "manifest.json")  # all parts, but nobody said so
    assert kept.newest()[0] == older
    (tmp_path / "manifest.json").rename(newest / "manifest.json")
    assert kept.newest()[0] == newest
    shutil.copyfile(older / "part-0001.safetensors", newest / "part-0001.safetensors")  # whole, but of another step
    path, _, problems = kept.newest()
    assert path == older
    assert len(problems) == 1
    assert "part-0001.safetensors is of another checkpoint" in problems[0]
    (newest / "part-0001.safetensors").unlink()
    assert kept.newest()[0] == older
