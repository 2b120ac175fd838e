import dataclasses
import math
import re
from xml.etree import ElementTree as ET

import pytest
import small_results

from locallearn.thesis import results_plots as plots
from locallearn.thesis.catalogue import LAYOUTS
from locallearn.thesis.cell_records import comparable
from locallearn.thesis.results_grids import (
    Grid,
    Shown,
    grids,
    markdown,
    numbers,
    provenance,
    show,
    table_grid,
    without_empty_rows,
)
from locallearn.thesis.results_page import render

E2E, DGL, GN = (f"cifar10-resnet32-{name}" for name in ("e2e", "dgl-k4", "gn-dgl-k2-g2"))


def study(records, *names, claims=()):
    digests = {record["cell"]: record["digest"] for record in records}
    measured, notes = comparable(records, digests)
    layouts = [dataclasses.asdict(LAYOUTS[name]) for name in names]
    return {
        "name": "quick",
        "description": "Short & quick.",
        "tables": [layout for layout in layouts if "rows" in layout],
        "figures": [layout for layout in layouts if "panels" in layout and "lines" not in layout["panels"][0]],
        "curves": [layout for layout in layouts if "panels" in layout and "lines" in layout["panels"][0]],
        "claims": claims,
        "measured": measured,
        "notes": notes,
    }


@pytest.fixture
def three():
    """e2e with three seeds, DGL and GN-DGL with one."""
    return [
        *(small_results.record(E2E, seed, value) for seed, value in enumerate((92.0, 93.0, 94.0))),
        small_results.record(DGL, 0, 87.5, 88.0, speedups=(3.6221, 1.0)),
        small_results.record(GN, 0, 88.0, 89.1, speedups=(6.3036, 1.8986)),
    ]


def value(cell, field, published=None):
    return {"cell": cell, "field": field, "published": published}


def test_values_next_to_published_ones(three):
    measured = study(three)["measured"]
    assert show(value(E2E, "last_layer", "93.01"), measured) == Shown("93.01", "93.00", "± 1.00", "−0.01", 3)
    assert show(value(GN, "ensemble", "89.68"), measured) == Shown("89.68", "89.10", "", "−0.58", 1)
    assert show(value(GN, "last_layer"), measured) == Shown("–", "88.00", "", "", 1)
    assert show(value(GN, "training_speedup", "6.304"), measured) == Shown("6.304", "6.304", "", "0.000", None)
    assert show(value(GN, "inference_speedup", "1.9"), measured) == Shown("1.9", "1.899", "", "−0.001", None)
    assert show(value("other", "ensemble", "88.5"), measured) == Shown("88.5", "–", "", "", None)
    assert show(None, measured) == ""


def test_records_of_different_configurations_are_never_averaged(three):
    mixed = [three[0], {**three[1], "digest": "0123456789abcdef"}]
    with pytest.raises(ValueError, match="records of different configurations"):
        numbers(mixed, "last_layer")
    with pytest.raises(ValueError, match="records of different configurations"):
        render([{**study(three, "table-3.4"), "measured": {E2E: mixed}}])


def test_a_table_has_the_thesis_shape(three):
    grid = table_grid(study(three, "table-3.4")["tables"][0], study(three)["measured"])
    assert grid.headings[:3] == ["KxG", "InfoPro accuracy [%]", "InfoPro speed-up"]
    assert [label for label, _ in grid.rows] == ["1", "2", "4", "8", "16", "32"]
    four = dict(grid.rows)["4"]
    assert four[2] == Shown("88.62", "87.50", "", "−1.12", 1)
    assert four[5] == Shown("6.304", "6.304", "", "0.000", None)
    assert four[7] == Shown("–", "–", "", "", None)  # held out and not counted yet
    assert four[8:] == ["", ""]


def test_rows_without_any_value_are_named_in_the_note():
    shown, empty = Shown("–", "88.00", "", "", 1), Shown("–", "–", "", "", None)
    published = Shown("88.5", "–", "", "", None)
    rows = [("a", ["–", shown]), ("b", ["–", empty]), ("c", ["", published]), ("d", ["", ""])]
    grid = without_empty_rows(Grid("table", "A table", ["x", "y", "z"], rows, "Of a kind."))
    assert [label for label, _ in grid.rows] == ["a", "c"]
    assert grid.note == "Of a kind. Not measured yet: b; d."
    assert without_empty_rows(grid) == grid


def test_markdown(three):
    claims = [{"claim": "GN-DGL beats DGL", "verdict": "agrees", "numbers": ("89.10 − 87.50 = +1.60 points",)}]
    text = markdown(study([*three, {**three[0], "seed": 7, "data_source": "elsewhere"}], "table-3.6", claims=claims))
    lines = text.splitlines()
    assert "### Table 3.6. Layerwise ensembling of GN-DGL on CIFAR-10, ResNet-32 [%]" in lines
    row = next(line for line in lines if line.startswith("| layerwise ensemble |"))
    assert row.startswith("| layerwise ensemble | **89.10** (1)<br>89.68 −0.58 | –<br>87.94 |")
    assert row.count("|") == lines[lines.index(row) - 2].count("|") == 11
    assert "- **agrees**: GN-DGL beats DGL" in lines
    assert "  - 89.10 − 87.50 = +1.60 points" in lines
    assert lines[-1].startswith(f"- {E2E} seed 7: left out, it was trained on elsewhere")


def test_a_figure_as_a_table(three):
    grid = grids(study(three, "figure-3.5"))[0]
    assert grid.title == "ResNet-32 on CIFAR-10"
    rows = dict(grid.rows)
    assert rows["e2e"] == ["70.063", "70.063", Shown("93.01", "93.00", "± 1.00", "−0.01", 3)]
    assert rows["GN-DGL G=2 K=2"][:2] == ["11.115", "36.902"]
    assert rows["DGL K=8"] == ["–", "–", Shown("85.53", "–", "", "", None)]


def bubble(**changes):
    plain = plots.Bubble("DGL", "DGL K=4", 88.0, math.nan, largest_node=19.3, inference=1.0, published=None)
    return dataclasses.replace(plain, **changes)


def test_bubbles():
    small = bubble(label="GN-DGL G=2 K=2", method="GN-DGL G=2", inference=0.25, published=89.68, spread=0.5)
    axes = plots.bubble_figure([bubble(), small]).axes[0]
    drawn = {str(line.get_label()): line for line in axes.lines}
    filled = drawn["DGL K=4: 88.00 %, largest node 19.30 M, inference 1.00 of e2e"]
    assert (list(filled.get_xdata()), list(filled.get_ydata())) == ([19.3], [88.0])
    quarter = drawn["GN-DGL G=2 K=2: 88.00 %, largest node 19.30 M, inference 0.25 of e2e"]
    assert quarter.get_markersize() ** 2 == pytest.approx(filled.get_markersize() ** 2 / 4)  # area is cost
    assert quarter.get_color() != filled.get_color()
    hollow = drawn["GN-DGL G=2 K=2: 89.68 % published"]
    assert (list(hollow.get_ydata()), hollow.get_fillstyle()) == ([89.68], "none")
    assert list(drawn["spread of GN-DGL G=2 K=2"].get_ydata()) == [87.5, 88.5]
    assert not any("DGL K=4: 88 % published" in label for label in drawn)
    assert axes.get_xscale() == "log"


def test_curves_are_one_line_a_run():
    points = [{"epoch": 1, "last_layer": 0.5}, {"epoch": 2, "last_layer": 0.75}]
    curves = [plots.Curve("e2e", "a, seed 0", points), plots.Curve("e2e", "a, seed 1", points)]
    lines = plots.curve_figure(curves).axes[0].lines
    assert [list(line.get_ydata()) for line in lines] == [[50.0, 75.0]] * 2
    assert [line.get_label() for line in lines] == ["a, seed 0", "a, seed 1"]


def test_methods_have_names_and_colours():
    def method(method, depth, *width):
        return plots.method_of({"method": method, "depth": depth, "width": list(width)})

    assert (method("gn-dgl", 1, 4), method("gn-dgl", 2, 4)) == ("K=1 baseline", "GN-DGL G=4")
    assert (method("gn-dgl", 5, 6, 12, 6, 1, 1), method("dgl", 4, 1)) == ("GN-DGL G=6", "DGL")
    assert [name for name, _ in plots.legend(["GN-DGL G=2", "e2e", "GN-DGL G=2", "new"])] == [
        "e2e", "GN-DGL G=2", "new",
    ]  # fmt: skip
    figures = {
        point.method for name in ("figure-3.5", "figure-3.6") for p in LAYOUTS[name].panels for point in p.points
    }
    assert len({plots.colour(name) for name in figures}) == len(figures) == 8


def test_the_page(three):
    html = render([study(three, "table-3.4", "figure-3.5", "digits")])
    text = " ".join(re.sub(r"<[^>]+>", " ", html).split())
    assert "93.00 ± 1.00 (3) 93.01 −0.01" in text
    assert "Short &amp; quick." in html
    assert "Table 3.4. ResNet-32 on CIFAR-10: training speed-up against end to end" in text
    pictures = re.findall(r"<svg xmlns.*?</svg>", html, flags=re.DOTALL)
    assert len(pictures) == 2  # one panel and one set of curves: of the others nothing is measured
    titles = [title.text for title in ET.fromstring(pictures[0]).iter("{http://www.w3.org/2000/svg}title")]
    assert "GN-DGL G=2 K=2: 89.10 %, largest node 11.11 M, inference 0.53 of e2e" in titles
    assert "GN-DGL G=2 K=2: 89.68 % published" in titles
    assert "None" not in titles
    assert not re.search(r"""(?:src|href)=["'](?!#)|@import|url\((?!["']?#)|<script""", html)  # one file, no network
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_two_studies_on_one_page(three):
    html = render([study(three, "table-3.4"), {**study(three, "table-3.4"), "name": "paper"}])
    assert re.findall(r"<h2>(.*?)</h2>", html) == ["Protocol quick", "Protocol paper"]
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_panels_of_which_nothing_is_measured_are_left_out(three):
    titles = [grid.title for grid in grids(study(three, "figure-3.5"))]
    panels = [panel.title for panel in LAYOUTS["figure-3.5"].panels]
    assert len(panels) == 2
    assert titles == panels[:1]  # ResNet-32, and not ResNet-32x2


def test_records_say_where_they_were_measured(three):
    moved = {**three[0], "commit": "0" * 40}
    found = provenance(study([moved, *three[1:]])["measured"])
    assert len(found) == 2
    assert found[0].startswith("1 record: ")
    assert f"commit {'0' * 40}" in found[0]
    assert found[1].startswith("4 records: ")
    assert all(line in markdown(study([moved, *three[1:]])) for line in found)
