"""Bars are the timeline's spans, where and as long as the timeline says."""

import copy
import subprocess
import sys
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex

from locallearn.errors import UsageError
from locallearn.report import cost_page
from locallearn.report import timeline_plots as plots
from locallearn.report.svg import to_svg
from locallearn.report.units import time_text, time_unit


def schedule(name, devices, work, **more):
    makespan = max(item[5] for item in work)
    busy = [sum(end - start for d, *_, start, end in work if d == i) / makespan for i in range(len(devices))]
    plain = {"speedup": 0.5, "wire_bytes": 3 << 20}
    return {
        "name": name,
        "devices": devices,
        "makespan": makespan,
        "utilisation": busy,
        "work": work,
        **plain,
        **more,
    }


@pytest.fixture
def timeline():
    """Two batches; GPipe in two microbatches each; backpropagation longer than three times local learning."""
    local = [
        *([0, "F", 1, 0, 0.0, 1.0], [0, "H", 1, 0, 1.0, 1.25], [0, "B", 1, 0, 1.5, 3.5]),
        *([0, "F", 1, 1, 3.5, 4.5], [0, "H", 1, 1, 4.5, 4.75], [0, "B", 1, 1, 4.75, 6.75]),
        *([1, "F", 1, 0, 0.0, 1.0], [2, "F", 2, 0, 1.5, 3.0], [2, "B", 2, 1, 5.0, 8.0]),
    ]
    pipeline = [
        [0, kind, 1, micro, start, start + 0.5 * (2 if kind == "B" else 1)]
        for start, kind, micro in [
            *((0.0, "F", 0), (0.5, "F", 1), (2.0, "B", 1), (3.0, "B", 0)),
            *((6.0, "F", 2), (6.5, "F", 3), (8.0, "B", 3), (9.0, "B", 2)),
        ]
    ]
    return {
        "batches": 2,
        "batch_size": 32,
        "microbatches": 2,
        "schedules": [
            schedule("local", ["module 1 group 1", "module 1 group 2", "module 2 group 1"], local),
            schedule("backpropagation", ["device"], [[0, "F", 1, 0, 0.0, 20.0], [0, "B", 1, 1, 20.0, 60.0]]),
            schedule("gpipe", ["module 1"], pipeline),
        ],
    }


def boxes(patch):
    """(row, start, end) of every bar of one path: the row at half its height, the left and the right side."""
    corners = patch.get_path().vertices.reshape(-1, 5, 2)
    assert np.array_equal(corners[:, :2, 0], corners[:, 3:1:-1, 0])  # upright
    return [(round((c[0, 1] + c[2, 1]) / 2), float(c[0, 0]), float(c[1, 0])) for c in corners]


def bars(figure):
    """By kind and shade (``F0``), the bars drawn."""
    drawn = {str(patch.get_label()): patch for patch in figure.axes[0].patches}
    return {label: boxes(patch) for label, patch in drawn.items() if label != "waiting"}


def expected(work, shade):
    found = {}
    for device, kind, _, microbatch, start, end in work:
        found.setdefault(f"{kind}{shade(microbatch)}", []).append((device, start, end))
    return found


def test_bars_are_the_spans(timeline):
    local = timeline["schedules"][0]
    assert bars(plots.schedule_figure(local, 10.0, 2)) == expected(local["work"], lambda batch: batch)


@pytest.mark.parametrize("planted", ["swapped", "late", "other device", "other kind", "other batch"])
def test_a_changed_span_is_seen(timeline, planted):
    local = timeline["schedules"][0]
    wrong = copy.deepcopy(local)
    span = wrong["work"][2]
    if planted == "swapped":
        span[4], span[5] = span[5], span[4]
    else:
        place, value = {"late": (5, 3.6), "other device": (0, 1), "other kind": (1, "F"), "other batch": (3, 1)}[
            planted
        ]
        span[place] = value
    assert bars(plots.schedule_figure(wrong, 10.0, 2)) != expected(local["work"], lambda batch: batch)


def test_shades_tell_batches_or_microbatches_apart(timeline):
    gpipe = timeline["schedules"][2]
    of_batches, of_parts = plots.schedule_figure(gpipe, 10.0, 2), plots.schedule_figure(gpipe, 10.0)
    assert bars(of_batches) == expected(gpipe["work"], lambda micro: micro // 2)
    assert bars(of_parts) == expected(gpipe["work"], lambda micro: micro % 2)
    assert bars(of_batches) != bars(of_parts)


def test_colours_are_those_of_the_legend(timeline):
    axes = plots.schedule_figure(timeline["schedules"][0], 10.0, 2).axes[0]
    colours = {patch.get_label(): to_hex(patch.get_facecolor()) for patch in axes.patches}
    legend = {label: style.colour for label, style in plots.legend("batches", "FHB")}
    named = {"F0": "forward", "H0": "heads", "B0": "backward and update"}
    assert {label: colours[label] for label in named} == {label: legend[name] for label, name in named.items()}
    assert len(set(colours.values())) == 7  # with the light shades and waiting
    assert "all-reduce" not in legend
    assert list(legend)[-2:] == ["batches 1, 3, ...", "batches 2, 4, ..."]


def test_rows_are_devices_from_top_to_bottom_and_modules_are_parted(timeline):
    axes = plots.schedule_figure(timeline["schedules"][0], 10.0, 2).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == timeline["schedules"][0]["devices"]
    assert list(axes.get_yticks()) == [0, 1, 2]
    assert axes.yaxis_inverted()
    (lines,) = axes.collections
    assert isinstance(lines, LineCollection)
    assert [segment.tolist() for segment in lines.get_segments()] == [[[0.0, 1.5], [8.0, 1.5]]]
    assert not plots.schedule_figure(timeline["schedules"][2], 10.0, 2).axes[0].collections


def test_thin_rows_are_not_all_named():
    devices = [f"copy {i + 1}" for i in range(128)]
    figure = plots.schedule_figure(schedule("data-parallel", devices, [[0, "R", 1, 0, 0.0, 1.0]]), 1.0, 1)
    assert list(figure.axes[0].get_yticks()) == list(range(0, 128, 4))
    assert figure.axes[0].get_yticklabels()[1].get_text() == "copy 5"
    assert figure.get_figheight() < 7


def test_one_axis_for_all_and_what_is_longer_is_cut_and_says_so(timeline):
    end = plots.axis_end(timeline["schedules"])
    assert end == 10.0  # not backpropagation's 60: more than 3 times local learning's 8
    figures = [plots.schedule_figure(s, end, 2) for s in timeline["schedules"]]
    places = {(f.axes[0].get_xlim(), f.axes[0].get_position().x0, f.axes[0].get_position().x1) for f in figures}
    assert len(places) == 1
    assert next(iter(places))[0] == (0, 10)
    texts = [[text.get_text() for text in figure.axes[0].texts] for figure in figures]
    assert texts == [["8 s"], ["goes on to 60 s"], []]
    ends = [[np.asarray(line.get_xdata()).tolist()[0] for line in figure.axes[0].lines] for figure in figures]
    assert ends == [[8.0], [], [10.0]]
    timeline["schedules"][1]["makespan"] = 24.0
    assert plots.axis_end(timeline["schedules"]) == 24.0


def test_the_closer_look_ends_with_the_first_batch(timeline):
    assert plots.first_batch_end(timeline) == 4.0
    timeline["schedules"][2]["work"][3][5] = 4.5
    assert plots.first_batch_end(timeline) == 4.5
    del timeline["schedules"][2]
    assert plots.first_batch_end(timeline) is None


def test_totals_are_in_full(timeline):
    figure = plots.makespan_figure(timeline["schedules"])
    drawn = bars(figure)
    assert drawn["makespan"] == [(0, 0.0, 8.0), (1, 0.0, 60.0), (2, 0.0, 10.0)]
    computing = [(6.5 + 1.0 + 4.5) / 3, 60.0, 6.0]
    assert [end for _, _, end in drawn["computing"]] == pytest.approx(computing)
    assert [text.get_text() for text in figure.axes[0].texts] == ["8 s", "60 s", "10 s"]


def test_times_have_a_fitting_unit(timeline):
    assert [time_text(s) for s in (12.345, 0.0268, 5e-5, 3e-10)] == ["12.3 s", "26.8 ms", "50 us", "0.3 ns"]
    assert time_unit(1e-3) == ("ms", 1e-3)
    axes = plots.schedule_figure(schedule("local", ["a"], [[0, "F", 1, 0, 0.0, 0.02]]), 0.02, 1).axes[0]
    assert axes.get_xlabel() == "time [ms]"
    assert axes.xaxis.get_major_formatter()(0.015, 0) == "15"


@pytest.fixture
def values(timeline):
    names = ("macs", "parameters", "activation_bytes", "output_bytes")
    nodes = [
        {"module": module, "group": group, **dict(zip(names, counts, strict=True))}
        for module, group, counts in [
            *((1, 1, (1000, 20, 3 << 20, 1 << 20)), (1, 2, (1000, 20, 3 << 20, 1 << 20))),
            (2, 1, (5_000_000, 7, 1 << 19, 0)),
        ]
    ]
    totals = {"e2e_macs": 9_000_000, "max_node_macs": 5_000_000, "inference_macs": 4321}
    return {"nodes": nodes, **totals, "training_speedup": 1.8, "inference_speedup": 2.0, "timeline": timeline}


def page(values, settings=None):
    html = cost_page.render(values, settings or {})
    return ET.fromstring("<html>" + html.partition("<body>")[2].partition("</body>")[0] + "</html>"), html


def rows(root, kind):
    table = next(table for table in root.iter("table") if table.get("class") == kind)
    return [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")][1:]


def test_the_tables_are_the_values(values):
    root, _ = page(values)
    assert rows(root, "nodes") == [
        ["1", "2", "1,000", "20", "3.0", "1.0"],
        ["2", "1", "5,000,000", "7", "0.5", "0.0"],
    ]
    assert rows(root, "schedules") == [
        ["Local learning", "3", "8 s", "0.50", "50.0", "12.5", "3.0"],
        ["Backpropagation on one device", "1", "60 s", "0.50", "100.0", "100.0", "3.0"],
        ["GPipe", "1", "10 s", "0.50", "60.0", "60.0", "3.0"],
    ]
    facts = [item.text for item in next(e for e in root.iter("dl") if e.get("class") == "facts").iter("dd")]
    assert facts == ["9,000,000", "5,000,000", "4,321", "1.800", "2.000"]


def test_groups_of_a_module_that_differ_have_rows_of_their_own(values):
    values["nodes"][1]["macs"] = 999
    assert [row[:3] for row in rows(page(values)[0], "nodes")][:2] == [["1", "1", "1,000"], ["1", "1", "999"]]


def test_the_page_has_a_chart_a_schedule_twice_and_the_totals(values):
    root, html = page(values)
    captions = [caption.text for caption in root.iter("figcaption")]
    charts = [
        "Local learning: 3 devices, 8 s",
        "Backpropagation on one device: 1 device, 60 s",
        "GPipe: 1 device, 10 s",
    ]
    assert captions[1:] == charts * 2
    assert "Longer than the axis: Backpropagation on one device." in html
    identities = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(identities) == len(set(identities))


def test_without_times_or_microbatches_charts_are_left_out(values):
    values["timeline"]["schedules"].pop()
    assert len(list(page(values)[0].iter("figcaption"))) == 3
    del values["timeline"]
    root, html = page(values)
    assert not list(root.iter("figcaption"))
    assert "No times are predicted" in html


def test_settings_are_shown_escaped_and_none_is_left_out(values):
    given = {
        "model": "<b>",
        "cuts": ("1.0", "2.0"),
        "bandwidth": 1e10,
        "microbatches": None,
        "json": True,
        "none": (),
    }
    root, html = page(values, given)
    listed = next(element for element in root.iter("dl") if element.get("class") == "settings")
    assert [item.text for item in listed.iter("dt")] == ["model", "cuts", "bandwidth", "json"]
    assert [item.text for item in listed.iter("dd")] == ["<b>", "1.0, 2.0", "1e+10", "yes"]
    assert "<b>" not in html


def test_the_page_needs_nothing_else(values):
    root, html = page(values)
    assert not [name for name in ("script", "img", "link", "iframe") if list(root.iter(name))]
    assert "default-src 'none'" in html
    assert html.startswith("<!doctype html>")


def test_many_spans_are_few_elements():
    work = [[d, "FB"[m % 2], d + 1, m, m / 1000, (m + 1) / 1000] for d in range(16) for m in range(1000)]
    figure = plots.schedule_figure(schedule("1f1b", [f"module {d + 1}" for d in range(16)], work), 1.0, 8)
    assert sum(map(len, bars(figure).values())) == 16_000
    assert len(figure.axes[0].patches) == 5  # two kinds in two shades, and waiting
    assert len(list(ET.fromstring(to_svg(figure, "p", "1F1B")).iter())) < 250


def test_lines_without_a_name_get_no_tooltip(timeline):
    root = ET.fromstring(to_svg(plots.schedule_figure(timeline["schedules"][0], 10.0, 2), "p", "local"))
    assert not list(root.iter("{*}title"))


def test_writing_replaces_an_old_page_and_a_folder_is_an_error(values, tmp_path):
    output = tmp_path / "cost.html"
    output.write_text("old")
    assert cost_page.write_cost_page(values, {}, output) == output
    assert output.read_text().startswith("<!doctype html>")
    assert list(tmp_path.iterdir()) == [output]
    with pytest.raises(UsageError, match="a folder"):
        cost_page.write_cost_page(values, {}, tmp_path)


@pytest.mark.parametrize(("more", "there"), [("", False), (", torch", True)])
def test_the_page_does_not_import_torch(more, there, tmp_path):
    (tmp_path / "torch.py").touch()  # stands for torch, so that the case that must find it is quick
    imports = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import locallearn.report.cost_page{more}"
    done = subprocess.run(
        [sys.executable, "-c", f"{imports}; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(there)
