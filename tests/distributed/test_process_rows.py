"""The summary of a distributed run has a row a process, and so have its table and its report."""

import io
import json

from rich.console import Console

import small
from distributed.compare import on
from distributed.processes import train_all
from locallearn.cli.tables import process_table
from locallearn.report.html import render
from locallearn.report.records import read_run
from locallearn.training.record import RunFolder


def test_features_go_forward_and_nothing_comes_back(tmp_path):
    train_all({"run": on(small.config("dgl", 2, (1,)), 2)}, tmp_path, 2)
    rows = (RunFolder(tmp_path / "run").summary() or {})["processes"]
    assert [row["process"] for row in rows] == [0, 1]
    channels = 8  # of tiny-resnet's first module on the digits, maps of 8 x 8 in fp32, 160 images, 2 epochs
    features = 2 * 160 * channels * 8 * 8 * 4
    assert features <= rows[0]["sent_bytes"] < 1.05 * features  # and a header for each batch
    assert rows[1]["sent_bytes"] == 0
    assert all(0 <= row["waiting"] <= 1 and row["images_per_second"] > 0 for row in rows)
    assert all(row["peak_rss_bytes"] > 2**20 for row in rows)
    console = Console(file=io.StringIO(), width=80)
    console.print(process_table(rows))
    shown = console.file.getvalue()
    assert "module 2, group 1" in shown
    assert "…" not in shown
    assert '<th scope="row">module 2, group 1 (rank 1)</th>' in render([read_run(tmp_path / "run")])
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["processes"] == rows
