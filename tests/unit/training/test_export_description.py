"""What a server must know is in every exported file, and the ensemble can be exported."""

import json

import onnx
import pytest
import torch
from safetensors import safe_open

import small
from locallearn.training.export import accuracy, export, exported, load_exported
from locallearn.training.finished import open_run
from locallearn.training.runs import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "run"
    train(small.config("gn-dgl", 2, (2,)), folder)
    return open_run(folder)


def test_every_file_carries_classes_and_preprocessing(run, tmp_path):
    paths = export(run, tmp_path)
    assert [path.name for path in paths] == ["network.safetensors", "network.pt2", "network.onnx", "network.json"]
    beside = json.loads((tmp_path / "network.json").read_text())
    assert beside["classes"] == list("0123456789")
    assert beside["output"] == "scores"
    assert beside["preprocessing"]["size"] == [8, 8]
    assert beside["preprocessing"]["mean"] == list(run.dataset.mean)
    assert beside["preprocessing"]["std"] == list(run.dataset.std)
    with safe_open(tmp_path / "network.safetensors", "pt") as file:
        inside = json.loads(file.metadata()["locallearn"])
    assert {key: inside[key] for key in beside} == beside
    properties = {entry.key: entry.value for entry in onnx.load(tmp_path / "network.onnx").metadata_props}
    assert json.loads(properties["locallearn"]) == beside
    extra = {"locallearn.json": ""}
    torch.export.load(tmp_path / "network.pt2", extra_files=extra)
    assert json.loads(extra["locallearn.json"]) == beside


def test_the_ensemble_is_exported_and_read_back(run, tmp_path):
    export(run, tmp_path, ("safetensors", "torch-export"), ensemble=True)
    images = torch.rand(5, 1, 8, 8)
    expected = exported(run, ensemble=True)(images)
    assert torch.allclose(expected.sum(1), torch.ones(5))
    assert torch.allclose(load_exported(tmp_path)(images), expected, atol=1e-6)
    program = torch.export.load(tmp_path / "network.pt2").module()
    assert torch.allclose(program(images), expected, atol=1e-5)
    assert not torch.allclose(exported(run)(images).softmax(1), expected, atol=1e-3)


def test_the_exported_accuracy_is_that_of_the_evaluation(run):
    found = run.evaluate()
    assert accuracy(exported(run), run) == pytest.approx(found.last_layer)
    assert accuracy(exported(run, ensemble=True), run) == pytest.approx(found.ensemble)
