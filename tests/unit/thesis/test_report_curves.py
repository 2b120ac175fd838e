import dataclasses
from xml.etree import ElementTree as ET

import pytest
import small_results

from locallearn.thesis.catalogue import LAYOUTS
from locallearn.thesis.results_curves import curves_figure, measured_curves
from locallearn.thesis.results_grids import curve_grid, grids, markdown
from locallearn.thesis.results_page import pictures, render

SIMCLR, DGSSL = "cifar10-resnet18x0.25-simclr", "cifar10-resnet18x0.25-dgssl-k4"


def record(cell, seed, accuracies, losses=(5.0, 4.0)):
    points = [{"depth": i, "accuracy": value / 100} for i, value in enumerate(accuracies, start=1)]
    curve = [
        {"epoch": i, "last_layer": 0.1 * i, "ensemble": None, "loss": loss} for i, loss in enumerate(losses, start=1)
    ]
    probes = [{"epoch": 2, "accuracy": accuracies[-1] / 100}]
    return small_results.record(cell, seed, probe={"points": points}, curve=curve, probes=probes)


@pytest.fixture
def measured():
    return {
        SIMCLR: [record(SIMCLR, 0, (30, 40, 50)), record(SIMCLR, 1, (34, 44, 52), (7.0, 5.0))],
        DGSSL: [record(DGSSL, 0, (45, 46, 46))],
    }


def panel(field, *cells):
    return {"title": "Small", "field": field, "lines": [{"cell": cell, "label": cell[-6:]} for cell in cells]}


def test_curves_are_means_over_seeds_with_their_spread(measured):
    simclr, dgssl = measured_curves(panel("probe", SIMCLR, DGSSL, "other"), measured)
    assert (simclr.label, simclr.seeds, simclr.x) == ("simclr", 2, [1, 2, 3])
    assert simclr.y == pytest.approx([32, 42, 51])
    assert simclr.spread == pytest.approx([8**0.5, 8**0.5, 2**0.5])
    assert (dgssl.seeds, dgssl.spread) == (1, [0.0, 0.0, 0.0])
    assert dgssl.style != simclr.style
    (loss,) = measured_curves(panel("loss", SIMCLR), measured)
    assert (loss.x, loss.y) == ([1, 2], [6.0, 4.5])
    (knn,) = measured_curves(panel("last_layer", DGSSL), measured)
    assert knn.y == pytest.approx([10, 20])
    (probes,) = measured_curves(panel("probes", DGSSL), measured)
    assert (probes.x, probes.y) == ([2], [pytest.approx(46)])


def test_records_without_the_curve_are_left_out_and_mixed_ones_refused(measured):
    plain = {SIMCLR: [small_results.record(SIMCLR)]}  # neither probes nor losses
    assert measured_curves(panel("probe", SIMCLR), plain) == []
    assert measured_curves(panel("loss", SIMCLR), plain) == []
    measured[SIMCLR][1]["digest"] = "0123456789abcdef"
    with pytest.raises(ValueError, match="records of different configurations"):
        measured_curves(panel("probe", SIMCLR), measured)


def test_a_panel_as_a_table(measured):
    grid = curve_grid({"name": "small-4.8"}, panel("probe", SIMCLR, DGSSL), measured)
    assert grid.headings == ["network (seeds)", "1", "2", "3"]
    assert grid.rows == [
        ("simclr (2)", ["32.00 ± 2.83", "42.00 ± 2.83", "51.00 ± 1.41"]),
        ("ssl-k4 (1)", ["45.00", "46.00", "46.00"]),
    ]
    long = {DGSSL: [record(DGSSL, 0, range(40))]}
    assert curve_grid({"name": "x"}, panel("probe", DGSSL), long).headings[1:] == [str(x) for x in range(4, 41, 4)]


def test_the_page_and_the_markdown_show_every_measured_panel(measured):
    figures = [dataclasses.asdict(LAYOUTS[name]) for name in ("small-4.8-resnet18", "small-a.3-resnet18")]
    study = {
        "name": "quick", "description": "Short.", "tables": [], "figures": [], "curves": figures, "claims": (),
        "measured": measured, "notes": [],
    }  # fmt: skip
    assert len(grids(study)) == 6  # K = 4 and K = 9: depth, loss and neighbours
    html = render([study])
    assert html.count("<svg") >= 6
    assert "Fig. 4.8 with ResNet-18 x 0.25" in html
    assert "| SimCLR (K=1) (2) | 32.00 ± 2.83 | 42.00 ± 2.83 | 51.00 ± 1.41 |" in markdown(study)
    assert grids({**study, "measured": {}}) == []
    found = pictures(study)
    assert list(found) == [grid.title for grid in grids(study)]
    title, (name, svg) = next(iter(found.items()))
    assert name == "quick-small-4.8-resnet18-1"
    assert "SimCLR (K=1)" in "".join(ET.fromstring(svg).itertext())  # the legend stands in the picture
    assert f"![{title}](results/{name}.svg)" in markdown(study, {title: f"results/{name}.svg"})


def test_a_band_is_drawn_for_several_seeds_only(measured):
    curves = measured_curves(panel("probe", SIMCLR, DGSSL), measured)
    axes = curves_figure(curves, "probe").axes[0]
    assert [line.get_label() for line in axes.lines] == ["simclr", "ssl-k4"]
    assert len(axes.collections) == 1
    assert axes.get_xlabel() == "depth [blocks]"
