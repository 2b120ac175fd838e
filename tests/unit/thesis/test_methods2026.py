"""The table of all methods: every cell can be built, and what stands in its columns and its figure."""

import dataclasses

import pytest
import torch
from small_results import record

from locallearn.core.assembly import build_network
from locallearn.costs.nodes import cost
from locallearn.thesis.catalogue import cells_of, layout
from locallearn.thesis.cell_records import comparable
from locallearn.thesis.matrix import cells
from locallearn.thesis.methods2026 import E2E, FIGURE_DEPTHS, LAYERWISE, NOTE, configs, name_of
from locallearn.thesis.protocols import Study
from locallearn.thesis.results_curves import curves_figure, measured_curves
from locallearn.thesis.results_grids import table_grid

NAMES = ("methods-2026", "methods-2026-vit", "methods-2026-depth")
AUGLOCAL = name_of("auglocal", 16)


BUILT = [name for name in {cell for table in NAMES for cell in cells_of(table)} if not name.endswith(("-k2", "-k8"))]


@pytest.mark.parametrize("name", sorted(BUILT))
def test_every_cell_can_be_built_with_every_protocol(name):
    for protocol in ("quick", "standard"):
        config = Study(protocol).config(name, 0)
        assert config.data.name == "cifar10"
        if protocol == "quick":
            with torch.device("meta"):
                network = build_network(config, cells()[name].image)
            assert len([module for module in network if module.name.isdigit()]) == config.depth


def test_what_sets_cells_apart_is_the_method():
    """Depth, head, loss, context, overlap, cuts and groups alone differ; the protocol has one optimizer for all."""
    found = [Study("quick").config(name, 0) for name in configs()]
    assert len({(config.optimizer, config.schedule, config.train, config.augment) for config in found}) == 1
    vits = [Study("quick").config(name, 0) for name in cells_of("methods-2026-vit")]
    assert {config.optimizer.name for config in vits} == {"adam"}
    assert {config.depth for config in vits} == {1, 4}


def measured_of(records):
    found, notes = comparable(records, {each["digest"] and each["cell"]: each["digest"] for each in records})
    assert notes == []
    return found


def test_columns_are_read_from_records():
    more = {"memory": {"activation_bytes": 3 * 2**20}, "parameters": 1_036_016, "images_per_second": 256.0}
    full = record(AUGLOCAL, 0, 60.0, speedups=(7.0, 1.0), traffic_bytes=5 * 2**19, **more)
    measured = measured_of([full, record(LAYERWISE, 0, 50.0)])
    grid = table_grid(dataclasses.asdict(layout("methods-2026")), measured)
    assert grid.headings[1:] == [
        "Accuracy [%]",
        "Largest node [million MACs]",
        "Activations [MiB]",
        "Parameters [thousand]",
        "A step in training [ms]",
        "Traffic a step [MiB]",
    ]
    assert grid.note == NOTE
    rows = dict(grid.rows)
    assert [value.measured for value in rows["AugLocal (2024), K = 16"]] == [
        "60.00", "10.01", "3.0", "1036", "500", "2.5",
    ]  # fmt: skip
    assert [value.measured for value in rows["Mono-Forward (2025), K = 16"]][3:] == ["–", "–", "–"]
    assert {value.measured for value in rows["MAN (2024), K = 4"]} == {"–"}


def test_traffic_of_a_record_is_what_nodes_send_each_other():
    found = cost(cells()["cifar10-resnet32-gn-man-k4-g2"].config, cells()[AUGLOCAL].image, batch_size=8)
    expected = 0
    for k, module in enumerate(found.modules):
        receivers = found.modules[k + 1].groups if k < 3 else 0
        to_others = module.shared_bytes + module.score_bytes
        back = found.modules[k - 1].followed_bytes if k else 0
        expected += 2 * (receivers * module.output_bytes + to_others + back)
    assert found.traffic_bytes == expected
    assert all(module.followed_bytes for module in found.modules[:3])


def test_the_figure_is_k_against_accuracy_with_the_spread():
    values = {2: (60.0, 62.0), 4: (58.0, 58.0), 16: (40.0, 44.0)}
    records = [
        record(name_of("auglocal", depth), seed, value)
        for depth, pair in values.items()
        for seed, value in enumerate(pair)
    ]
    (panel,) = dataclasses.asdict(layout("methods-2026-depth"))["panels"]
    (curve,) = measured_curves(panel, measured_of(records))
    assert (curve.label, curve.x, curve.seeds) == ("AugLocal (2024)", [2, 4, 16], 2)
    assert curve.y == pytest.approx([61, 58, 42])
    assert curve.spread == pytest.approx([2**0.5, 0, 8**0.5])
    assert measured_curves(panel, measured_of(records[:2])) == []  # one K alone
    end_to_end = [record(E2E, seed, 65.0) for seed in range(2)]
    assert measured_curves(panel, measured_of(end_to_end)) == []  # a level alone
    level, other = measured_curves(panel, measured_of([*end_to_end, *records]))
    assert (level.label, level.x, level.y) == ("End to end (K = 1)", [2, 4, 8, 16], [65.0] * 4)
    assert other == curve
    assert FIGURE_DEPTHS == (2, 4, 8, 16)
    axes = curves_figure([curve], panel["field"]).axes[0]
    assert axes.get_xlabel() == "number of modules K"
    assert list(axes.get_xticks()) == [2, 4, 16]
    few, many = (curves_figure([level, *[curve] * n], panel["field"], legend=True) for n in (1, 6))
    assert many.get_figwidth() > few.get_figwidth()  # so many are named beside the plot, and hide nothing
    assert [line.get_marker() for line in few.axes[0].lines] == ["", "o"]
