"""Depth curves show the figures of probe records, several runs of one protocol in one picture."""

import json

import pytest

from locallearn.errors import UsageError
from locallearn.report import depth
from locallearn.report.html import render
from locallearn.report.records import read_run, read_runs
from locallearn.report.styles import run_style

LINEAR, MLP = "linear probe; 30 epochs", "MLP probe; 30 epochs"


def probe(run, accuracies, text=LINEAR, name="probe"):
    """A probe record of two blocks a module."""
    points = [
        {
            "module": i // 2 + 1, "block": f"1.{i}", "depth": i + 1, "ends_module": i % 2 == 1,
            "features": 16, "accuracy": accuracy, "train_accuracy": accuracy + 0.01, "loss": 1.0,
        }
        for i, accuracy in enumerate(accuracies)
    ]  # fmt: skip
    record = {"protocol": {"step": 120}, "protocol_text": text, "points": points}
    (run / f"{name}.json").write_text(json.dumps(record))
    return run


def lines(figure):
    return [(line.get_label(), line.get_xydata().tolist(), line.get_color()) for line in figure.axes[0].lines]


def test_the_curve_of_a_run_is_its_record(make_run):
    record = read_run(probe(make_run("a"), [0.25, 0.5, 0.75, 0.5]))
    ((caption, draw),) = depth.run_figures(record)
    assert caption == f"Test accuracy of probes [%] over depth: {LINEAR}"
    line, dots = lines(draw(record))
    assert line == ("a", [[1, 25], [2, 50], [3, 75], [4, 50]], run_style(0).colour)
    assert dots[1] == [[2, 50], [4, 50]]  # where modules end


def test_runs_of_one_protocol_share_a_picture(make_run):
    runs = [probe(make_run(name), [0.1 * i, 0.5]) for i, name in enumerate("abc")]
    (runs[1] / "probe.json").unlink()
    probe(runs[0], [0.3, 0.4], MLP, "probe-mlp")
    records = read_runs(runs)
    ((caption, draw),) = depth.comparison_figures(records)
    assert LINEAR in caption
    drawn = [line for line in lines(draw(records)) if len(line[1]) == 2]
    assert drawn == [
        ("a", [[1, 0], [2, 50]], run_style(0).colour),
        ("c", [[1, 20], [2, 50]], run_style(2).colour),  # the colour of the run in the other pictures
    ]
    html = render(records)
    assert html.count("<figcaption>Test accuracy of probes [%] over depth") == 1 + 2 + 1
    assert '<td class="number">51.00</td><td class="number">50.00</td>' in html
    assert f"{MLP}; after 120 steps of the run" in html


def test_runs_without_probes_have_no_depth_curve(make_run):
    record = read_run(make_run())
    assert (record.probes, depth.run_figures(record), depth.tables(record)) == ([], [], [])
    assert "Probes over depth" not in render([record])


@pytest.mark.parametrize(("damage", "message"), [("{", "not JSON"), ('{"protocol": {}}', "protocol_text")])
def test_a_damaged_record_is_named(make_run, damage, message):
    run = make_run()
    (run / "probe-x.json").write_text(damage)
    with pytest.raises(UsageError, match=rf"probe-x\.json: .*{message}"):
        read_run(run)


def by_neighbours(run):
    """Turn a run's records into those of one without classifier."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for event in lines:
        if event["event"] == "evaluate":
            event |= {"ensemble": None, "protocol": "kNN, k = 5"}
    (run / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in lines))
    summary = json.loads((run / "summary.json").read_text())
    summary["accuracy"] |= {"ensemble": None, "protocol": "kNN, k = 5"}
    (run / "summary.json").write_text(json.dumps(summary))
    return run


def test_accuracies_by_neighbours_name_their_protocol_and_do_not_compare(make_run):
    plain, other = make_run("plain", depth=2), by_neighbours(make_run("ssl", depth=2))
    html = render(read_runs([other]))
    assert "<dt>accuracy of</dt><dd>kNN, k = 5</dd>" in " ".join(html.split()).replace("</dt> <dd>", "</dt><dd>")
    assert "</svg>ensemble</li>" not in html
    assert "do not compare with the others" not in html
    both = render(read_runs([plain, other]))
    assert "do not compare with the others" in both
    assert "</svg>ensemble</li>" in both
