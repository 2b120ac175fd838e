"""What needs no torch does not import it: help, names that are wrong, folders that are no runs."""

import subprocess
import sys

import pytest

CALLS = [
    "--help",
    "tarin",
    "recipes",
    "train misspelt",
    "train resnet33-dgl",
    "train gn-dgl --help",
    "reproduce --help",
    "train gn-dgl --train.epoch 3",
    "train gn-dgl --model resnet33",
    "train gn-dgl --method gndgl",
    "train gn-dgl --data.name mnist",
    "train e2e --depth 2",
    "train --resume nowhere",
    "verify misspelt",
    "evaluate nowhere",
    "predict nowhere nowhere",
    "probe nowhere",
    "embed nowhere nowhere --out x.npz",
    "export nowhere",
    "report nowhere",
    "demo --sead 1",
    "cost --model misspelt",
    "plan --memory much",
    "plan --memory 2GiB --model misspelt",
]

CODE = """
import contextlib, io, json, sys
import locallearn
from locallearn.cli.main import main
codes = {}
for call in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = main(call.split())
    codes[call] = [code, "torch" in sys.modules]
print(json.dumps(codes))
"""


def outcomes(calls, tmp_path):
    import json

    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(calls)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    return json.loads(done.stdout)


def test_help_and_wrong_calls_do_not_import_torch(tmp_path):
    found = outcomes(CALLS, tmp_path)
    helps = {"--help", "recipes", "train gn-dgl --help", "reproduce --help"}
    assert found == {call: [0 if call in helps else 2, False] for call in CALLS}
    assert list(tmp_path.iterdir()) == []


def test_a_call_that_computes_does_import_torch(tmp_path):
    assert outcomes(["cost --model tiny-resnet"], tmp_path) == {"cost --model tiny-resnet": [0, True]}


@pytest.mark.parametrize("name", ["locallearn.config", "locallearn.recipes.named", "locallearn.training.record"])
def test_modules_that_wrong_calls_need_do_not_import_torch(name):
    code = f"import sys, {name}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
