"""What needs no torch does not import it: help, names that are wrong, folders that are no runs."""

import subprocess
import sys

import pytest

from locallearn.cli.main import main
from starting import outcomes

CALLS = [
    "--help",
    "tarin",
    "recipes",
    "train misspelt",
    "train resnet33-dgl",
    "train gn-dgl --help",
    "train gn-dgl --train.epoch 3",
    "train gn-dgl --model resnet33",
    "train gn-dgl --method gndgl",
    "train gn-dgl --data.name mnist",
    "train gn-dgl --head misspelt",
    "train gn-dgl --loss misspelt",
    "train gn-dgl --head auglocal --objective.head-options.slop 1",
    "train e2e --depth 2",
    "train --resume nowhere",
    "train resnet8-gn-dgl --data folder --data-root nowhere",
    "train gn-dgl --data packed --data-root nowhere",
    "verify misspelt",
    "evaluate nowhere",
    "predict nowhere nowhere",
    "probe nowhere",
    "embed nowhere nowhere --out x.npz",
    "export nowhere",
    "report nowhere",
    "demo --sead 1",
    "cost --model misspelt",
    "cost --head misspelt",
    "plan --memory much",
    "plan --memory 2GiB --model misspelt",
    "plan --memory 2GiB --heads misspelt",
]


def test_help_and_wrong_calls_do_not_import_torch(tmp_path):
    found = outcomes(CALLS, tmp_path)
    assert found == {call: [0 if call.endswith("--help") or call == "recipes" else 2, False] for call in CALLS}
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_there_is_told_without_torch(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").touch()
    calls = ["train gn-dgl --run mine", "train gn-dgl --run-folder mine"]  # torchrun takes --run for its own
    assert outcomes(calls, tmp_path) == {call: [2, False] for call in calls}


def test_a_call_that_computes_does_import_torch(tmp_path):
    assert outcomes(["cost --model tiny-resnet"], tmp_path) == {"cost --model tiny-resnet": [0, True]}


@pytest.mark.parametrize("name", ["locallearn.config", "locallearn.recipes.named", "locallearn.training.record"])
def test_modules_that_wrong_calls_need_do_not_import_torch(name):
    code = f"import sys, {name}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


SLOW = [
    ("cost --model tiny-resnet", "importing torch and counting"),
    ("plan --memory 2GiB --model tiny-resnet --depths 1 --widths 1", "counting the usual ways"),
]


@pytest.mark.parametrize(("call", "said"), SLOW)
def test_a_terminal_is_told_what_takes_long(call, said, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as a terminal has it
    assert main(call.split()) == 0
    assert said in capsys.readouterr().err
    assert main([*call.split(), "--json"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("redirection", "code", "said"),
    [
        (">/dev/full", 1, "locallearn: standard output: No space left on device\n"),
        (">&-", 0, ""),
        (">&- 2>&-", 0, ""),
    ],
)
def test_an_output_that_takes_nothing_is_told_or_left_alone(redirection, code, said):
    command = f"{sys.executable} -m locallearn recipes {redirection}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", said)
