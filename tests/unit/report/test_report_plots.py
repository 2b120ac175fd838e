"""What is drawn is what was recorded."""

import json
import math
from itertools import accumulate
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from matplotlib.figure import Figure

from locallearn.report import plots
from locallearn.report.records import read_run
from locallearn.report.styles import node_legend, node_styles, run_style
from locallearn.report.svg import to_svg

SVG = "{http://www.w3.org/2000/svg}"


def lines(figure: Figure) -> dict[str, tuple[list[float], list[float]]]:
    drawn = figure.axes[0].lines
    return {str(line.get_label()): tuple(np.asarray(line.get_data()).tolist()) for line in drawn}


@pytest.fixture
def grid(make_run):
    return read_run(make_run("grid", method="gn-dgl", depth=4, groups=2, done=7, status=None))


def test_node_curves_equal_the_events(grid):
    for draw, events, key, scale in [
        (plots.loss_figure, grid.train, "loss", 1),
        (plots.training_accuracy_figure, grid.train, "accuracy", 100),
        (plots.test_accuracy_figure, grid.evaluations, "accuracy", 100),
    ]:
        drawn = lines(draw(grid))
        for place, node in enumerate(events[0]["nodes"]):
            module, group = node["module"], node["group"]
            label = "classifier" if module == "classifier" else f"module {module}, group {group}"
            assert drawn[label][0] == [1, 2, 3, 4, 5, 6, 7]
            assert drawn[label][1] == pytest.approx([scale * event["nodes"][place][key] for event in events])


def test_last_layer_and_ensemble_equal_the_events_and_are_strongest(grid):
    figure = plots.test_accuracy_figure(grid)
    drawn = lines(figure)
    for key, label in (("last_layer", "last layer"), ("ensemble", "ensemble")):
        assert drawn[label][1] == pytest.approx([100 * event[key] for event in grid.evaluations])
    widths = {str(line.get_label()): line.get_linewidth() for line in figure.axes[0].lines}
    strong = {widths.pop("last layer"), widths.pop("ensemble")}
    assert min(strong) > max(widths.values())


def test_a_changed_record_changes_the_curve(grid):
    before = lines(plots.loss_figure(grid))["module 2, group 1"][1]
    grid.train[3]["nodes"][2]["loss"] += 0.5
    after = lines(plots.loss_figure(grid))["module 2, group 1"][1]
    assert [b - a for a, b in zip(before, after, strict=True)] == pytest.approx([0, 0, 0, 0.5, 0, 0, 0])


def test_rate_and_speed_equal_the_events(grid):
    (rate,), (speed,) = (
        lines(plots.learning_rate_figure(grid)).values(),
        lines(plots.throughput_figure(grid)).values(),
    )
    assert rate[1] == pytest.approx([event["learning_rate"] for event in grid.train])
    assert speed[1] == pytest.approx([event["images_per_second"] for event in grid.train])


def test_the_grid_has_modules_as_columns_and_groups_as_rows(grid):
    axes = plots.heatmap_figure(grid).axes[0]
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    expected = {}
    for node in grid.evaluations[-1]["nodes"]:
        column = 4 if node["module"] == "classifier" else node["module"] - 1
        expected[column + 0.5, node["group"] - 0.5] = f"{100 * node['accuracy']:.1f}"
    assert cells == expected
    assert len(cells) == 9
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "3", "4", "classifier"]
    assert axes.yaxis_inverted()  # group 1 is on top


def test_the_grid_of_a_finished_run_shows_its_summary(make_run):
    path = make_run(depth=2, method="dgl")
    summary = json.loads((path / "summary.json").read_text())
    summary["nodes"][1]["accuracy"] = 0.125
    (path / "summary.json").write_text(json.dumps(summary))
    texts = [text.get_text() for text in plots.heatmap_figure(read_run(path)).axes[0].texts]
    assert texts[1] == "12.5"


def test_runs_are_compared_over_epochs_and_over_seconds_of_training(make_run):
    records = [read_run(make_run("fast", rate=1000.0)), read_run(make_run("slow", rate=100.0, done=4, status=None))]
    by_epoch, by_time = map(
        lines, (f(records) for f in (plots.last_layer_by_epoch_figure, plots.last_layer_by_time_figure))
    )
    assert list(by_epoch) == ["fast", "slow"]
    for record in records:
        accuracy = [100 * event["last_layer"] for event in record.evaluations]
        assert by_epoch[record.name][1] == pytest.approx(accuracy)
        assert by_time[record.name][1] == pytest.approx(accuracy)
        assert by_time[record.name][0] == pytest.approx(list(accumulate(e["seconds"] for e in record.train)))


def test_time_counts_the_epochs_between_evaluations(make_run):
    record = read_run(make_run(done=5, status=None))
    del record.evaluations[0:2], record.evaluations[1]  # epochs 3 and 5 are left
    seconds = [event["seconds"] for event in record.train]
    assert plots.training_seconds(record) == pytest.approx([sum(seconds[:3]), sum(seconds)])


def test_values_that_are_not_finite_leave_a_gap_and_still_draw(make_run):
    record = read_run(make_run(depth=2, done=4, status=None))
    record.train[3]["nodes"][0]["loss"] = math.inf
    record.train[2]["nodes"][1]["loss"] = None
    record.train[3]["nodes"][1]["loss"] = 1e15
    figure = plots.loss_figure(record)
    assert math.isnan(lines(figure)["module 1, group 1"][1][3])
    assert math.isnan(lines(figure)["module 2, group 1"][1][2])
    assert figure.axes[0].get_yscale() == "log"
    assert "NaN" not in to_svg(figure, "p", "loss")


def test_a_single_node_is_drawn_as_the_network_alone(make_run):
    record = read_run(make_run())
    assert list(lines(plots.test_accuracy_figure(record))) == ["last layer"]
    assert list(lines(plots.loss_figure(record))) == ["network"]
    assert node_legend(record) == []


def test_hue_tells_the_module_and_dashes_tell_the_group(grid):
    styles = node_styles(grid.nodes)
    colours = [styles[module, 1].colour for module in (1, 2, 3, 4, "classifier")]
    assert len(set(colours)) == 5
    assert all(styles[module, 2].colour == styles[module, 1].colour for module in (1, 2, 3, 4))
    assert all(styles[module, 1].dash != styles[module, 2].dash for module in (1, 2, 3, 4))
    assert [label for label, _ in node_legend(grid)] == [
        *(f"module {module}" for module in (1, 2, 3, 4)),
        *("classifier", "group 1", "group 2", "last layer", "ensemble"),
    ]
    assert len({run_style(index) for index in range(28)}) == 28


def test_svg_is_well_formed_scales_and_has_ids_of_its_own(grid):
    pictures = [ET.fromstring(to_svg(plots.loss_figure(grid), prefix, "Loss")) for prefix in ("one", "two")]
    for root, prefix in zip(pictures, ("one", "two"), strict=True):
        assert root.tag == f"{SVG}svg"
        assert "viewBox" in root.attrib
        assert not {"width", "height"} & set(root.attrib)
        assert root.find(f".//{SVG}style") is None  # would reach the page around it
        own = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
        assert own
        assert len(own) == len(set(own))
        assert all(name.startswith(f"{prefix}-") for name in own)
        text = ET.tostring(root, encoding="unicode")
        used = {
            part.split(mark)[0]
            for start, mark in (('href="#', '"'), ("url(#", ")"))
            for part in text.split(start)[1:]
        }
        assert used == set(own)
        assert not text.startswith("<?xml")


def test_svg_names_lines_whatever_the_name(make_run):
    hostile = '_$\\frac{ <script>alert("1")</script> & $'
    record = read_run(make_run())
    object.__setattr__(record, "name", hostile)
    root = ET.fromstring(to_svg(plots.last_layer_by_epoch_figure([record]), "p", hostile))
    assert [title.text for title in root.iter(f"{SVG}title")] == [hostile]
    assert root.get("aria-label") == hostile
    assert root.find(".//{*}script") is None
