"""The comparison shows the records' figures, from the summary where there is one."""

import json

import pytest

from locallearn.report.compare import COLUMNS, comparison_rows, duration, loss_text, mebibytes, number, percent
from locallearn.report.records import read_run


def shown(row: dict) -> dict[str, str]:
    return {column.title: column.show(row) for column in COLUMNS}


def test_a_finished_run_shows_its_summary(make_run):
    path = make_run("k4", method="gn-dgl", depth=4, groups=2, seed=7)
    summary = json.loads((path / "summary.json").read_text())
    summary["accuracy"] = {"last_layer": 0.61344, "ensemble": 0.6402, "best_last_layer": 0.6201, "best_epoch": 8}
    summary |= {"images_per_second": 1234.4, "seconds": 754.0, "parameters": 272474}
    summary["deployed_parameters"] = 170186
    summary["memory"] = {"activation_bytes": 3 << 19, "peak_rss_bytes": 1 << 30}
    (path / "summary.json").write_text(json.dumps(summary))
    (row,) = comparison_rows([read_run(path)])
    assert row["last_layer"] == 0.61344
    assert row["width"] == [2, 2, 2, 2]
    assert shown(row) == {
        "run": "k4",
        "status": "finished",
        "method": "gn-dgl",
        "model": "resnet8",
        "data": "digits",
        "K": "4",
        "G": "2",
        "seed": "7",
        "epochs": "10",
        "last layer [%]": "61.34",
        "ensemble [%]": "64.02",
        "best (epoch) [%]": "62.01 (8)",
        "images/s": "1,234",
        "activations [MiB]": "1.5",
        "peak RSS [MiB]": "1,024.0",
        "parameters": "272,474",
        "deployed parameters": "170,186",
        "training time": "12 min 34 s",
    }


def test_a_run_that_goes_on_shows_its_metrics(make_run):
    path = make_run(done=2, status=None)
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    lines[1] |= {"seconds": 10.0, "images_per_second": 100.0}
    lines[3] |= {"seconds": 30.0, "images_per_second": 200.0}
    lines[2] |= {"last_layer": 0.5, "ensemble": 0.52}
    lines[4] |= {"last_layer": 0.4, "ensemble": 0.42}
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (row,) = comparison_rows([read_run(path)])
    assert (row["last_layer"], row["ensemble"]) == (0.4, 0.42)
    assert (row["best_last_layer"], row["best_epoch"]) == (0.5, 1)
    assert row["images_per_second"] == pytest.approx((10 * 100 + 30 * 200) / 40)
    assert row["seconds"] == 40.0
    texts = shown(row)
    assert texts["epochs"] == "2 of 10"
    assert texts["status"] == "not finished"
    assert texts["parameters"] == texts["peak RSS [MiB]"] == "–"


def test_a_run_without_any_epoch_shows_dashes(make_run):
    texts = shown(comparison_rows([read_run(make_run(done=0, status=None))])[0])
    assert [texts[key] for key in ("last layer [%]", "best (epoch) [%]", "images/s", "training time")] == ["–"] * 4


def test_rows_are_plain_json_and_one_a_run(make_run):
    records = [read_run(make_run(f"seed{seed}", seed=seed)) for seed in range(3)]
    rows = comparison_rows(records)
    assert json.loads(json.dumps(rows)) == rows
    assert [row["seed"] for row in rows] == [0, 1, 2]


def test_groups_that_differ_and_limited_data_are_told(make_run):
    (row,) = comparison_rows([read_run(make_run())])
    texts = shown({**row, "width": [2, 4, 2], "train_limit": 1000})
    assert (texts["G"], texts["data"]) == ("2, 4, 2", "digits (first 1,000)")


def test_numbers_are_written_for_people():
    assert [duration(s) for s in (0.04, 59.94, 59.96, 245, 3599.6, 7980)] == [
        "0.0 s",
        "59.9 s",
        "1 min 00 s",
        "4 min 05 s",
        "1 h 00 min",
        "2 h 13 min",
    ]
    assert [percent(0.61344), percent(None), number(float("nan")), mebibytes(1 << 21)] == ["61.34", "–", "–", "2.0"]
    assert [loss_text(v) for v in (1.23456, -2.0, 3e12, None)] == ["1.2346", "-2.0000", "3.00e+12", "–"]
