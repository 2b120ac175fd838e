import json

import pytest
from rich.console import Console

from locallearn.bench.distributed_command import _tables
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
        (["bench", "speed"], "bench: 'speed' is not known; expected step, epoch, memory, distributed"),
        (["bench", "inference", "--depth", "2"], "--width: () is not valid; expected as many numbers as --depth"),
        (["bench", "inference", "--precision", "fp8"], "--precision: 'fp8'"),
        (["bench", "inference", "--batch-sizes", "0"], "--batch-sizes: 0"),
        (["bench", "inference", "--repeats", "0"], "--repeats: 0"),
        (["bench", "step", "--width", "2"], "--width: (2,) is not valid; expected as many numbers as --depth"),
        (["bench", "step", "--batch-size", "1"], "--batch-size: 1"),
        (["bench", "step", "--runtimes"], "--runtimes: ()"),
        (["bench", "step", "--widths", "0"], "--widths: 0"),
        (["bench", "step", "--table", "--depth", "2", "--width", "2"], "--table: True"),
        (["bench", "epoch", "--images", "2047"], "--images: 2047 is not valid; expected two batches or more"),
        (["bench", "epoch", "--batch-size", "1"], "--batch-size: 1"),
        (["bench", "epoch", "--table", "--depth", "2", "--width", "2"], "--table: True"),
        (["bench", "epoch", "--runtime", "cuda-graphs", "--device", "cpu"], "runtime: 'cuda-graphs'"),
        (["bench", "epoch", "--head", "3f"], "objective.head: '3f'"),
        (["bench", "memory", "--batch-size", "8"], "--batch-size: 8"),
        (["bench", "memory", "--models", "resnet9"], "resnet9"),
        (["bench", "memory", "--models", "resnet8", "--head", "3f"], "objective.head: '3f'"),
        (["bench", "inference", "--device", "cuda:77"], "cuda:77"),
        (["bench", "distributed", "--processes", "1"], "--processes: 1"),
        (["bench", "distributed", "--depth", "2"], "--width: () is not valid"),
        (
            ["bench", "distributed", "--depth", "2", "--width", "2"],
            "--depth: '2 x 2' is not valid",
        ),
        (["bench", "distributed", "--microbatches", "3"], "--microbatches: 3"),
        (["bench", "distributed", "--batch-size", "4"], "--batch-size: 4 is not valid; expected at least 8"),
        (["bench", "distributed", "--device", "cuda"], "--device: 'cuda'"),
        (["bench", "distributed", "--peers", "zb"], "--peers"),
        (["bench", "distributed", "--timeout", "0"], "--timeout: 0"),
        (["bench", "distributed", "--model", "resnet9"], "resnet9"),
        (["bench", "distributed", "--cuts", "9.9"], "9.9"),
        (["bench", "hosts", "--latency", "-1"], "--latency: -1"),
        (["bench", "hosts", "--bandwidth", "0"], "--bandwidth: 0"),
        (["bench", "hosts", "--microbatches", "1"], "--microbatches: 1"),
        (["bench", "hosts", "--processes", "1"], "--processes: 1"),
        (["bench", "hosts", "--processes", "65"], "--processes: 65"),
        (["bench", "hosts", "--processes", "4", "--depth", "2", "--width", "1"], "--depth: '2 x 1'"),
    ],
)
def test_wrong_calls_are_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_step_prints_ratios_and_what_they_were_measured_with(capsys):
    cell = ["bench", "step", "--model", "tiny-resnet", "--depth", "2", "--width", "2", "--repeats", "2"]
    cell += ["--batch-size", "8", "--image-size", "8", "--threads", "1"]
    assert main([*cell, "--precision", "bf16", "--widths", "1", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["model"] for row in found["rows"]] == ["tiny-resnet", "tiny-resnetx2"]
    for row in found["rows"]:
        assert set(row["baselines"]) == {"loop", "loop-fp32", "e2e"}
        assert all(one["ratio"] > 0 for one in row["baselines"].values())
        assert row["activation_bytes"] < row["baselines"]["loop-fp32"]["activation_bytes"]
    assert found["hardware"]["threads"] == 1
    assert main([*cell, "--precision", "fp32", "--baselines", "e2e"]) == 0
    assert "x e2e" in capsys.readouterr().out


def test_epoch_prints_times_and_what_memory_would_allow(capsys):
    cell = ["bench", "epoch", "--model", "tiny-resnet", "--depth", "2", "--width", "2", "--repeats", "2"]
    cell += ["--images", "40", "--batch-size", "16", "--image-size", "8", "--threads", "1"]
    assert main([*cell, "--precision", "bf16", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (row,) = found["rows"]
    assert (row["method"], row["depth"], row["width"]) == ("gn-dgl", 2, 2)
    assert row["seconds"] * row["images_per_second"] == pytest.approx(40)
    assert row["floor"] == pytest.approx(3 * row["bytes"] / found["bandwidth"])  # three batches
    assert 0 < row["product_floor"] < row["floor"] < row["seconds"]
    assert row["host_seconds"] is None
    assert main([*cell[:4], *cell[8:], "--runtime", "threads"]) == 0
    printed = capsys.readouterr().out
    assert "e2e 1 x 1" in printed
    assert "gn-dgl 4 x 4" in printed
    assert main([*cell, "--bytes-only", "--precision", "bf16", "--json"]) == 0
    counted = json.loads(capsys.readouterr().out)
    assert counted["repeats"] == 0
    names = ("method", "depth", "width", "operators", "bytes", "product_bytes")
    assert counted["rows"] == [{name: row[name] for name in names}]
    assert main([*cell, "--bytes-only"]) == 0
    assert "images/s" not in capsys.readouterr().out


def test_step_times_modules_at_once_beside_one_after_the_other(capsys):
    cell = ["bench", "step", "--model", "tiny-resnet", "--depth", "2", "--width", "2", "--repeats", "1"]
    cell += ["--batch-size", "8", "--image-size", "8", "--threads", "2", "--precision", "bf16", "--json"]
    assert main(cell) == 0
    inline, threads = json.loads(capsys.readouterr().out)["rows"]
    assert (inline["runtime"], threads["runtime"]) == ("inline", "threads")
    assert inline["activation_bytes"] < threads["activation_bytes"] <= 2 * inline["activation_bytes"]
    for name, one in threads["baselines"].items():
        # of one turn, so it is the ratio of the figures
        assert one["ratio"] == pytest.approx(threads["images_per_second"] / one["images_per_second"]), name
    assert main([*cell, "--runtimes", "inline"]) == 0
    assert [row["runtime"] for row in json.loads(capsys.readouterr().out)["rows"]] == ["inline"]


def test_memory_prints_bytes(capsys):
    assert main(["bench", "memory", "--models", "resnet8", "--depth", "2", "--image-size", "8", "--batch-size", "16",
                 "--precision", "fp32", "--bytes-only", "--json"]) == 0  # fmt: skip
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["models"]["resnet8"]}
    assert rows["dgl K=2 G=1"]["activation_bytes"] < rows["backprop"]["activation_bytes"]


@pytest.mark.parametrize("command", [["memory", "--models"], ["step", "--repeats", "1", "--width", "2", "--model"]])
def test_heads_can_be_chosen(command, capsys):
    def peak(head):
        call = ["bench", *command, "resnet8", "--depth", "2", "--image-size", "8", "--batch-size", "16"]
        call += ["--precision", "fp32", "--head", head, "--json", *(["--bytes-only"] if "memory" in command else [])]
        assert main(call) == 0
        found = json.loads(capsys.readouterr().out)
        rows = found["rows"] if "rows" in found else found["models"]["resnet8"]
        assert found["head"] == head
        return next(r["activation_bytes"] for r in rows if r.get("name", "dgl K=2 G=1") == "dgl K=2 G=1")

    assert peak("0c2f") < peak("1c2f") < peak("2c2f")


def test_distributed_prints_ratios_predictions_and_memory(capsys):
    call = ["bench", "distributed", "--model", "tiny-resnet", "--image-size", "8", "--batch-size", "8"]
    call += [
        "--repeats",
        "1",
        "--steps",
        "1",
        "--depth",
        "2",
        "--width",
        "1",
        "--peers",
        "1f1b",
        "--precision",
        "fp32",
    ]
    assert main([*call, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["dgl K=2 G=1 inline", "dgl K=2 G=1 inline, threads", "dgl K=2 G=1", "1f1b"]
    names = ["x dgl K=2 G=1 inline", "x dgl K=2 G=1 inline, threads", "x 1f1b"]
    assert list(found["ratios"]["dgl K=2 G=1"]) == [*names, "of slower node alone", "of slower node apart"]
    own = rows["dgl K=2 G=1"]
    assert len(own["waiting"]) == len(own["alone_seconds"]) == len(own["apart_seconds"]) == 2
    assert all(0 <= share <= 1 for share in own["waiting"])
    assert all(0 < kept < 2**22 < peak for kept, peak in zip(own["activation_bytes"], own["peak_bytes"], strict=True))
    assert own["predicted_images_per_second"] > 0
    assert found["link"]["bandwidth"] > 0
    for table in _tables(found):
        Console(width=100).print(table)
    assert "of slower node alone" in capsys.readouterr().out
