import json

import pytest

from locallearn.cli.main import main
from locallearn.losses import objectives

QUICK = ["--model", "tiny-resnet", "--depth", "2", "--train.threads", "1"]


def test_a_table_and_exit_code_0(capsys):
    assert main(["verify", "gn-dgl", *QUICK]) == 0
    out = capsys.readouterr().out
    assert "Checks on digits of scikit-learn" in out
    assert out.count("pass") == 4
    assert "FAIL" not in out


def test_a_fault_is_told_with_exit_code_1(capsys, monkeypatch):
    monkeypatch.setattr(objectives, "diversity", lambda logits, *_: (logits * logits.flip(0)).mean((1, 2)))
    assert main(["verify", "gn-dgl", *QUICK, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [check["passed"] for check in told["checks"]] == [False, True, True, False]
    assert told["checks"][0]["difference"] > 0
    assert told["synthetic"] is False


def test_synthetic_pixels_are_told(capsys):
    assert main(["verify", "tiny-resnet-dgl", "--depth", "2", "--data.name", "cifar10", "--synthetic", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["data"], told["synthetic"]) == ("synthetic pixels", True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "RECIPE is missing"), (["gn-dgl", "--depth", "9"], "depth: 9 is not valid; expected at most 4")],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(arguments, message, capsys):
    assert main(["verify", *arguments]) == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert len(err) == 1
    assert message in err[0]
