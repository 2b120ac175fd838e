import dataclasses
import json
import re

import pytest

import locallearn as ll
from locallearn.cli.main import main
from locallearn.core.image_shape import ImageShape

SMALL = ["cost", "--model", "resnet8", "--batch-size", "4"]


def printed(capsys, *arguments):
    assert main([*SMALL, *arguments]) == 0
    return capsys.readouterr().out


def values(capsys, *arguments):
    return json.loads(printed(capsys, *arguments, "--json"))


def test_json_is_the_promised_shape(capsys):
    assert (
        main(["cost", "--model", "resnet32", "--method", "dgl", "--depth", "4", "--batch-size", "2", "--json"]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert list(found) == [
        "nodes", "e2e_macs", "max_node_macs", "inference_macs", "training_speedup", "inference_speedup",
    ]  # fmt: skip
    assert [set(node) for node in found["nodes"]] == [
        {"module", "group", "macs", "parameters", "activation_bytes", "output_bytes"}
    ] * 4
    assert found["e2e_macs"] == 70_062_720
    assert f"{found['training_speedup']:.3f}" == "3.622"


def test_a_recipe_is_counted_as_it_trains(capsys):
    assert main(["cost", "resnet8-auglocal", "--depth", "2", "--batch-size", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == values(capsys, "--method", "dgl", "--depth", "2", "--head", "auglocal")
    config = dataclasses.replace(ll.recipe("contsup"), depth=3)
    counted = ll.cost(config, ImageShape(1, 8, 10), batch_size=config.train.batch_size)
    assert main(["cost", "contsup", "--depth", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(counted.to_json()))
    for arguments, message in (
        (["resnet8-auglokal"], "RECIPE: 'resnet8-auglokal' is not known. Did you mean"),
        (["dgl", "--model", "timm:resnet18"], "cost: a model of your own has no recipe; leave dgl out"),
    ):
        assert main(["cost", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_every_option_reaches_the_count(capsys):
    base = values(capsys, "--method", "gn-dgl", "--depth", "2", "--width", "2")
    for arguments in (
        ["--head", "0c2f"],
        ["--head", "auglocal"],
        ["--objective.head", "0c2f"],
        ["--head-width", "64"],
        ["--no-stop-gradient"],
        ["--cuts", "2.0"],
        ["--image-size", "16"],
        ["--channels", "1"],
        ["--classes", "100"],
        ["--precision", "bf16"],
        ["--batch-size", "8"],
        ["--width", "2", "4"],
        ["--model", "resnet8x2"],
    ):
        changed = values(capsys, "--method", "gn-dgl", "--depth", "2", "--width", "2", *arguments)
        assert changed["nodes"] != base["nodes"], arguments


@pytest.mark.parametrize("method", ["e2e", "dgl", "gn-dgl", "single-thread", "infopro", "predsim"])
def test_every_method(capsys, method):
    found = values(capsys, "--method", method)
    assert found["nodes"][0]["macs"] == found["max_node_macs"]


def test_the_table_says_the_same(capsys):
    text = printed(capsys, "--method", "gn-dgl", "--depth", "2", "--width", "2")
    found = values(capsys, "--method", "gn-dgl", "--depth", "2", "--width", "2")
    for name in ("e2e_macs", "max_node_macs", "inference_macs"):
        assert f"{found[name]:,}" in text
    assert f"{found['training_speedup']:.3f} training speed-up" in text
    assert f"{found['nodes'][0]['parameters']:,}" in text


def test_a_timeline_only_where_it_is_asked_for(capsys):
    assert "timeline" not in values(capsys)
    arguments = ["--depth", "2", "--device-flops", "1e9", "--bandwidth", "1e6", "--latency", "1e-3", "--batches", "2"]
    found = values(capsys, *arguments, "--method", "dgl")["timeline"]
    assert found["bandwidth"] == 1e6
    assert found["latency"] == 1e-3
    assert found["batches"] == 2
    text = printed(capsys, *arguments, "--method", "dgl")
    for name in ("local", "backpropagation", "gpipe", "1f1b", "data-parallel"):
        assert re.search(rf"^{name}( .first batch.)?: 1 column is", text, re.MULTILINE), name
    assert re.search(r"^module 2 group 1 \|\.+F", text, re.MULTILINE)


TIMES = ["--method", "gn-dgl", "--depth", "2", "--width", "2", "--device-flops", "1e9", "--batches", "3"]


def test_the_report_shows_the_same_counts_and_times(capsys, tmp_path):
    output = tmp_path / "new" / "cost.html"
    found = values(capsys, *TIMES, "--report", str(output))  # standard output is JSON and nothing else
    page = output.read_text()
    for name in ("e2e_macs", "max_node_macs", "inference_macs"):
        assert f"<dd>{found[name]:,}</dd>" in page
    for schedule in found["timeline"]["schedules"]:
        assert f"{schedule['speedup']:,.2f}</td>" in page
    for name, value in {"model": "resnet8", "width": "2", "device-flops": "1e+09", "objective.head": "1c2f"}.items():
        assert f"<dt>{name}</dt><dd>{value}</dd>" in page
    assert list(output.parent.iterdir()) == [output]


def test_the_report_is_named_last_and_replaces_an_old_one(capsys, tmp_path):
    output = tmp_path / "cost.html"
    output.write_text("old")
    assert printed(capsys, "--report", str(output)).splitlines()[-1] == str(output)
    page = output.read_text()
    assert "--device-flops" in page
    assert "<svg" not in page  # no times, no charts
    assert "<dt>batches</dt>" not in page


@pytest.mark.parametrize(
    ("name", "told"),
    [("folder.html", "cannot be written (it is a folder"), ("config.toml", "ending in .html or .htm")],
)
def test_a_report_that_cannot_be_written_is_told_in_one_line(capsys, tmp_path, name, told):
    (tmp_path / "folder.html").mkdir()
    assert main([*SMALL, "--report", str(tmp_path / name)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert told in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "resnet33"], "model: 'resnet33' is not known. Did you mean resnet32"),
        (["--method", "dlg"], "method: 'dlg' is not known. Did you mean dgl"),
        (["--depth", "99"], "depth: 99 is not valid; expected at most 4"),
        (["--width", "3"], "width: 3 is not valid; expected a divisor"),
        (["--width", "2", "2"], "width: (2, 2) is not valid"),
        (["--method", "dgl", "--width", "2"], "width: (2,) is not valid; expected 1"),
        (["--head", "banana"], "objective.head: 'banana' is not valid"),
        (["--batch-size", "1"], "batch_size: 1 is not valid; expected at least 2"),
        (["--precision", "fp64"], "invalid choice 'fp64' for argument '--precision'"),
        (["--image-size", "1"], "--image-size: 1 is not valid; expected a whole number of at least 4"),
        (["--classes", "1"], "--classes: 1 is not valid"),
        (["--bandwidth", "1e9"], "--bandwidth needs --device-flops"),
        (["--latency", "0"], "--latency needs --device-flops"),
        (["--device-flops", "0"], "device_flops: 0.0 is not valid"),
        (["--device-flops", "1e9", "--microbatches", "5"], "microbatches: 5 is not valid; expected 1 to 4"),
        (["--modle", "resnet8"], "Did you mean --model?"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(capsys, arguments, message):
    assert main([*SMALL, *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert message in captured.err


def test_help_names_units_and_defaults(capsys):
    assert main(["cost", "--help"]) == 0
    text = capsys.readouterr().out
    for words in ("--device-flops", "[bytes/s]", "[pixels]", "resnet32"):
        assert words in text
