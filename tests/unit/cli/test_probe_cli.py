"""``locallearn probe`` and ``embed`` from the command line, and the depth curves in reports."""

import json

import numpy as np
import pytest
from PIL import Image

from locallearn.cli.main import main

QUICK = [
    "--model", "tiny-resnet", "--depth", "2", "--train.epochs", "1", "--schedule.warmup-epochs", "0",
    "--data.train-limit", "96", "--data.test-limit", "40", "--train.threads", "1", "--data.validation", "0", "--json",
]  # fmt: skip
FAST = ["--epochs", "1", "--batch-size", "48"]


@pytest.fixture
def run(tmp_path):
    assert main(["train", "dgl", *QUICK, "--run", str(tmp_path / "run")]) == 0
    return tmp_path / "run"


def complaint(capsys):
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_probe_writes_a_record_and_never_over_another(run, capsys):
    capsys.readouterr()
    assert main(["probe", str(run), *FAST, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    file = run / "probe.json"
    assert printed.pop("file") == str(file)
    assert json.loads(file.read_text()) == printed
    assert [(p["module"], p["block"], p["ends_module"]) for p in printed["points"]] == [
        (1, "stem", False), (1, "1.0", True), (2, "1.1", False), (2, "2.0", True),
    ]  # fmt: skip
    facts = {"head": "linear", "epochs": 1, "optimizer": "adam", "learning_rate": 0.01, "augment": "none", "seed": 0}
    facts |= {"data": "digits", "train_images": 96, "test_images": 40, "run_seed": 0, "step": 2, "checkpoint": "last"}
    assert facts.items() <= printed["protocol"].items()
    before = file.read_bytes()
    assert main(["probe", str(run), *FAST, "--head", "mlp"]) == 2
    assert "probe.json is there already; replace it with --overwrite, or give this one a --name" in complaint(capsys)
    assert file.read_bytes() == before
    assert main(["probe", str(run), *FAST, "--head", "mlp", "--hidden", "8", "--name", "mlp"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "MLP probe of 8 hidden units on global average, standardised; 1 epochs of adam" in text
    assert file.read_bytes() == before
    assert (run / "probe-mlp.json").is_file()
    assert main(["probe", str(run), *FAST, "--seed", "1", "--overwrite"]) == 0
    assert json.loads(file.read_text())["protocol"]["seed"] == 1
    assert not list(run.glob("*.tmp"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name", "../x"], "--name: '../x' is not valid; expected letters, digits"),
        (["--epochs", "0"], "epochs: 0 is not valid; expected a whole number of at least 1"),
        (["--depth", "some"], "--depth"),
        (["--device", "tpu"], "train.device: 'tpu' is not valid"),
    ],
)
def test_wrong_calls(run, arguments, message, capsys):
    capsys.readouterr()
    assert main(["probe", str(run), *FAST, *arguments]) == 2
    assert message in complaint(capsys)
    assert not list(run.glob("probe*"))


def test_embed_tells_what_it_wrote(run, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "images" / "0.png")
    out = tmp_path / "features.npz"
    capsys.readouterr()
    assert main(["embed", str(run), str(tmp_path / "images"), "--out", str(out), "--module", "1", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["file"], done["images"], done["features"], done["module"]) == (str(out), 1, 8, 1)
    assert np.load(out)["features"].shape == (1, 8)
    assert main(["embed", str(run), str(tmp_path / "images"), "--out", str(out)]) == 2
    assert "is there already" in complaint(capsys)


def test_predict_without_a_classifier_is_one_line(run, tmp_path, capsys, monkeypatch):
    from locallearn.losses.objectives import Classification

    monkeypatch.setattr(Classification, "logits", lambda self, features: None)
    capsys.readouterr()
    assert main(["predict", str(run), str(tmp_path)]) == 2
    assert "method dgl trains no classifier; see locallearn embed and probe" in complaint(capsys)
    assert main(["evaluate", str(run)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "(kNN, k = 96, T = 0.1, cosine, 96 training images)" in text
    assert "ensemble" not in text
