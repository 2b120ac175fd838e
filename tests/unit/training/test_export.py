import dataclasses
import importlib.util

import numpy as np
import pytest
import torch

import programs
import small
from locallearn.cli.main import main
from locallearn.config import TrainConfig
from locallearn.errors import UsageError
from locallearn.training import runs
from locallearn.training.export import load_exported
from locallearn.training.finished import open_run


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    run = tmp_path_factory.mktemp("export") / "run"
    runs.train(small.config(train=dataclasses.replace(small.TRAIN, epochs=1)), run)
    assert main(["export", str(run)]) == 0
    return run


@pytest.fixture
def pixels():
    torch.manual_seed(0)
    return torch.rand(5, 1, 8, 8)


def expected(run, pixels):
    opened = open_run(run)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (opened.dataset.mean, opened.dataset.std))
    with torch.no_grad():
        return opened.network((pixels - mean) / std)


def close(actual, wanted):
    torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-5)


def test_without_the_packages_for_onnx_the_others_are_written(exported, tmp_path, monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    assert main(["export", str(exported), "--output", str(tmp_path / "out")]) == 0
    assert "ONNX is left out, for its packages are missing" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "network.json",
        "network.pt2",
        "network.safetensors",
    ]
    assert main(["export", str(exported), "--output", str(tmp_path / "no"), "--formats", "onnx"]) == 2
    assert not (tmp_path / "no").exists()


def test_python_object(exported, pixels):
    network = load_exported(exported / "export")
    with torch.no_grad():
        close(network(pixels), expected(exported, pixels))
    assert not network.training
    assert not any("1c2f" in name or "objective" in name for name, _ in network.named_parameters())


def test_torch_export_takes_any_batch(exported, pixels):
    program = torch.export.load(exported / "export" / "network.pt2").module()
    for n in (1, 5):
        close(program(pixels[:n]), expected(exported, pixels[:n]))


def test_onnx_takes_any_batch(exported, pixels):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(exported / "export" / "network.onnx"))
    for n in (1, 5):
        (scores,) = session.run(["scores"], {"images": pixels[:n].numpy()})
        np.testing.assert_allclose(scores, expected(exported, pixels[:n]).numpy(), rtol=1e-4, atol=1e-4)


def test_auxiliary_heads_are_stripped_and_groups_kept(exported):
    full = open_run(exported).network
    small_one = load_exported(exported / "export")
    heads = sum(p.numel() for m in list(full)[:-1] for p in m.objective.parameters())
    total = sum(p.numel() for p in full.parameters())
    assert heads > 0
    assert sum(p.numel() for p in small_one.parameters()) == total - heads
    grouped = [m.groups for m in small_one.modules() if isinstance(m, torch.nn.Conv2d)]
    assert set(grouped) == {1, 2}


def test_other_weights_would_be_noticed(exported, pixels):
    network = load_exported(exported / "export")
    with torch.no_grad():
        next(network.parameters()).mul_(1.01)
        assert not torch.allclose(network(pixels), expected(exported, pixels), rtol=1e-5, atol=1e-5)


def test_the_terminal_shows_the_files_and_nothing_else(exported, tmp_path):
    done = programs.run("-m", "locallearn", "export", exported, "--output", tmp_path, folder=tmp_path)
    assert done.returncode == 0
    names = ["network.safetensors", "network.pt2", "network.onnx", "network.json"]
    assert done.stdout.split() == [str(tmp_path / name) for name in names]
    assert done.stderr.startswith("test accuracy of what was exported: ")
    assert done.stderr.count("\n") == 1


def test_nothing_is_overwritten(exported, capsys):
    assert main(["export", str(exported)]) == 2
    assert "network.safetensors is there already" in capsys.readouterr().err


def test_rubbish_is_refused_in_one_line(tmp_path):
    (tmp_path / "network.safetensors").write_bytes(b"rubbish")
    with pytest.raises(UsageError, match="is not an exported network"):
        load_exported(tmp_path)


def test_e2e_network_exports_too(tmp_path):
    train = TrainConfig(epochs=1, batch_size=32, device="cpu", precision="fp32", threads=1)
    runs.train(small.config("e2e", 1, (1,), train=train), tmp_path / "run")
    assert main(["export", str(tmp_path / "run"), "--formats", "safetensors"]) == 0
    pixels = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        close(load_exported(tmp_path / "run" / "export")(pixels), expected(tmp_path / "run", pixels))
