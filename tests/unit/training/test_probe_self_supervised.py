"""Self-supervised runs are evaluated by neighbours while they train, and probed and embedded afterwards."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

import small
from locallearn.config import AugmentConfig, DataConfig, ProbeConfig
from locallearn.training import runs
from locallearn.training.depth_features import places
from locallearn.training.embed import embed
from locallearn.training.finished import open_run
from locallearn.training.probe import probe


def train(tmp_path, method, depth, width):
    config = small.config(
        method, depth, width,
        data=DataConfig(train_limit=320, test_limit=90),
        augment=AugmentConfig(resized_crop=(0.5, 1.0)),
        train=dataclasses.replace(small.TRAIN, knn_neighbours=20),
    )  # fmt: skip
    return runs.train(config, tmp_path / "run"), open_run(tmp_path / "run")


@pytest.mark.parametrize(("method", "depth", "width"), [("simclr", 1, (1,)), ("dgssl", 2, (2,))])
def test_a_self_supervised_run(tmp_path, method, depth, width):
    summary, run = train(tmp_path, method, depth, width)
    accuracy = summary["accuracy"]
    assert accuracy["protocol"] == "kNN, k = 20, T = 0.1, cosine, 320 training images"
    assert accuracy["ensemble"] is None
    assert [(node["module"], node["group"]) for node in summary["nodes"]] == [
        (int(k), g) for k, g in run.network.nodes
    ]
    assert accuracy["last_layer"] > 0.3  # two epochs on 320 images; chance is 0.1
    assert run.evaluate().last_layer == accuracy["last_layer"]
    events = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [e["epoch"] for e in events if e["event"] == "evaluate"] == [1, 2]

    before = {name: tensor.clone() for name, tensor in run.network.state_dict().items()}
    plain, changed = (probe(run, ProbeConfig(epochs=20, batch_size=64, augment=a)) for a in ("none", "run"))
    for record in (plain, changed):
        assert [point["depth"] for point in record["points"]] == [1, 2, 3, 4]
        assert all(point["accuracy"] > 0.15 for point in record["points"])
        assert record["points"][-1]["accuracy"] > 0.3
    assert plain["points"] != changed["points"]
    assert all((tensor == before[name]).all() for name, tensor in run.network.state_dict().items())

    (tmp_path / "images").mkdir()
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(tmp_path / "images" / "0.png")
    embed(run, tmp_path / "images", tmp_path / "out.npz")
    assert np.load(tmp_path / "out.npz")["features"].shape == (1, plain["points"][-1]["features"])
    assert len(places(run.network, "modules")) == depth
