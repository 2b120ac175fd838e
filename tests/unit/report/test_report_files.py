"""Reports of seeds, without empty charts, with neighbours named; figures and CSV as files."""

import csv
import json
import statistics

import pytest

from locallearn.cli.main import main
from locallearn.config import OptimizerConfig
from locallearn.report import figures
from locallearn.report.html import render
from locallearn.report.records import read_run, read_runs
from locallearn.report.seeds import seed_groups


def of_neighbours(run):
    """The same run as one without a classifier tells it."""
    protocol = "kNN, k = 200, T = 0.1, cosine, 270 training images"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for event in lines:
        if event["event"] == "evaluate":
            event |= {"ensemble": None, "protocol": protocol}
        for node in event["nodes"] if event["event"] == "train" else ():
            node.pop("accuracy")
    (run / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in lines))
    summary = json.loads((run / "summary.json").read_text())
    summary["accuracy"] |= {"ensemble": None, "protocol": protocol}
    (run / "summary.json").write_text(json.dumps(summary))
    return run


def test_runs_that_differ_by_seed_alone_have_a_mean_and_a_spread(make_run):
    same = [make_run(f"seed{seed}", seed=seed, rate=700 + seed) for seed in (0, 1, 2)]
    other = make_run("other", seed=3, optimizer=OptimizerConfig(learning_rate=0.05))
    records = read_runs([*same, other])
    (group,) = seed_groups(records)
    assert group.names == ("seed0", "seed1", "seed2")
    speeds = [record.summary["images_per_second"] for record in records[:3]]
    assert group.means["images_per_second"] == pytest.approx(statistics.mean(speeds))
    assert group.spreads["images_per_second"] == pytest.approx(statistics.stdev(speeds)) != 0
    assert group.text("last_layer") in render(records)
    assert seed_groups(records[2:]) == []


@pytest.mark.parametrize("change", ["unfinished", "history", "seed"])
def test_other_trainings_are_no_group(make_run, change):
    runs = [make_run("a", seed=0), make_run("b", seed=0 if change == "seed" else 1)]
    path = runs[1] / "summary.json"
    if change == "unfinished":
        path.unlink()
    elif change == "history":
        earlier = [{"until_step": 12, "digest": "0123456789abcdef"}]
        path.write_text(json.dumps({**json.loads(path.read_text()), "history": earlier}))
    assert seed_groups(read_runs(runs)) == []


def test_neighbours_are_named_and_there_are_no_empty_charts(make_run):
    run = of_neighbours(make_run("simclr", depth=2))
    captions = [drawn.caption for drawn in figures.of_run(read_run(run))]
    assert "Training accuracy [%]" not in captions
    assert captions[0] == "kNN accuracy [%]"
    assert "Final kNN accuracy of each node [%]" in captions
    html = render([read_run(run)])
    assert "best last module, kNN" in html
    mixed = render(read_runs([run, make_run("e2e")]))
    assert "last layer or kNN\n[%]" in mixed
    labelled = figures.of_run(read_run(make_run("labels")))
    assert "Training accuracy [%]" in [drawn.caption for drawn in labelled]


def test_a_run_without_an_epoch_has_no_figures(make_run):
    record = read_run(make_run("begun", done=0, status=None))
    assert figures.of_run(record) == []
    assert figures.of_comparison([record]) == []


def test_figures_and_csv_are_files(make_run, tmp_path, capsys):
    runs = [make_run("a", depth=2), make_run("b", seed=1)]
    folder, table = tmp_path / "figures", tmp_path / "runs.csv"
    arguments = ["report", *map(str, runs), "--output", str(tmp_path / "both.html")]
    assert main([*arguments, "--figures", str(folder), "--csv", str(table)]) == 0
    names = {path.name for path in folder.iterdir()}
    assert {"a-training-loss.svg", "a-training-loss.pdf", "b-learning-rate.svg"} <= names
    assert "compare-test-accuracy-of-the-last-layer-over-epochs.pdf" in names
    assert all(path.read_bytes().startswith(b"%PDF") for path in folder.glob("*.pdf"))
    svg = (folder / "a-training-loss.svg").read_text()
    assert "Training loss" in svg
    assert "module 2" in svg
    rows = list(csv.DictReader(table.read_text().splitlines()))
    summary = json.loads((runs[0] / "summary.json").read_text())
    assert [row["name"] for row in rows] == ["a", "b"]
    assert float(rows[0]["last_layer"]) == summary["accuracy"]["last_layer"]
    assert rows[0]["digest"] == summary["digest"]
    assert main([*arguments, "--csv", str(tmp_path / "runs.txt")]) == 2
    assert "--csv" in capsys.readouterr().err
