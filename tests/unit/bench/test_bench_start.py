"""Help of the benchmarks and calls that are wrong do not import torch."""

from locallearn.bench.command import WHAT
from locallearn.cli.main import main
from starting import outcomes

WRONG = [
    "bench step --batch-size 1",
    "bench step --model misspelt",
    "bench step --head misspelt",
    "bench memory --models misspelt",
    "bench memory --head misspelt",
    "bench inference --model misspelt",
    "bench many --model misspelt",
    "bench many --devices 0",
    "bench model timm:x --tokens 1",
]


def test_help_and_wrong_calls_do_not_import_torch(tmp_path):
    helped = {f"bench {what} --help": [0, False] for what in WHAT}
    assert outcomes([*helped, *WRONG], tmp_path) == helped | {call: [2, False] for call in WRONG}


def test_a_terminal_is_told_what_takes_long(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as a terminal has it
    call = "bench memory --models resnet8 --depth 2 --image-size 8 --batch-size 16 --bytes-only"
    assert main(call.split()) == 0
    assert "resnet8" in capsys.readouterr().err
    assert main([*call.split(), "--json"]) == 0
    assert capsys.readouterr().err == ""
