import json

import pytest

from locallearn.cli.main import main

CELL = ["bench", "inference", "--model", "tiny-resnet", "--depth", "2", "--width", "2", "--repeats", "2"]


def test_inference_prints_measured_and_predicted(capsys):
    assert main([*CELL, "--batch-sizes", "1", "4", "--threads", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["depth"], row["width"], row["batch_size"]) for row in found["rows"]] == [(2, 2, 1), (2, 2, 4)]
    assert all(row["predicted_speedup"] > 1.2 and row["speedup"] > 0 for row in found["rows"])
    assert found["versions"]["torch"]
    assert main([*CELL, "--batch-sizes", "2"]) == 0
    assert "speed-up" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "speed"], "bench: 'speed' is not known; expected inference"),
        (["bench", "inference", "--depth", "2"], "--width: () is not valid; expected as many numbers as --depth"),
        (["bench", "inference", "--precision", "fp8"], "--precision: 'fp8'"),
        (["bench", "inference", "--batch-sizes", "0"], "--batch-sizes: 0"),
        (["bench", "inference", "--repeats", "0"], "--repeats: 0"),
        (["bench", "inference", "--device", "cuda:77"], "cuda:77"),
    ],
)
def test_wrong_calls_are_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
