import json

import pytest

from locallearn.cli.main import main
from locallearn.cli.plan import parse_bytes
from locallearn.errors import ConfigError

SMALL = ["plan", "--model", "tiny-resnet", "--image-size", "8", "--batch-size", "8", "--depths", "1", "2"]


def test_json(capsys):
    assert main([*SMALL, "--widths", "1", "2", "--devices", "4", "--memory", "2MiB", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["memory"] == 2**21
    proposal = found["proposal"]
    assert {key: proposal[key] for key in ("depth", "width", "devices")} == {"depth": 2, "width": 2, "devices": 4}
    assert max(node["memory"] for node in proposal["nodes"]) == proposal["memory"] <= 2**21
    assert [row["makespan"] for row in found["fits"]] == sorted(row["makespan"] for row in found["fits"])
    assert {row["name"] for row in found["alternatives"]} == {
        "backpropagation", "checkpointing", "gpipe", "1f1b", "data-parallel",
    }  # fmt: skip


def test_the_table_shows_the_proposal_and_the_measurement(capsys):
    arguments = ["--devices", "2", "--memory", "1MiB", "--device-flops", "1e9", "--bandwidth", "1e8", "--measure"]
    assert main([*SMALL, "--widths", "1", *arguments, "--repeats", "1"]) == 0
    text = capsys.readouterr().out
    assert "Plans for 2 devices of 1.0 MiB" in text
    assert "One step here" in text
    assert "not proposed" in text or "fits" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--memory", "many"], "--memory: 'many' is not valid"),
        (["--memory", "1KiB"], "no plan fits 1 KiB a device: the smallest (K = 2"),
        (["--memory", "1GiB", "--devices", "0"], "--devices: 0 is not valid"),
        (["--memory", "1GiB", "--bandwidth", "1e9"], "--bandwidth needs --device-flops"),
        (["--memory", "1GiB", "--cuts", "2.0"], "--cuts: ('2.0',) is not valid"),
    ],
)
def test_a_wrong_call_is_one_line(capsys, arguments, message):
    assert main([*SMALL, "--widths", "1", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_sizes():
    assert parse_bytes("m", "1.5 GiB") == 3 * 2**29
    assert parse_bytes("m", "8gb") == 8 * 10**9
    assert parse_bytes("m", "1024") == 1024
    for wrong in ("", "-1", "2 TB", "0", "0.1"):
        with pytest.raises(ConfigError, match="512MiB"):
            parse_bytes("m", wrong)
