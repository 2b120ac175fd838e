import dataclasses
from pathlib import Path

import pytest
import torch

from locallearn.core.assembly import build_network
from locallearn.core.methods import methods
from locallearn.errors import UsageError
from locallearn.thesis import sweep
from locallearn.thesis.catalogue import LAYOUTS, cells_of, layout
from locallearn.thesis.cell_records import comparable, read_records
from locallearn.thesis.claims import in_order
from locallearn.thesis.layout import Table
from locallearn.thesis.matrix import cells
from locallearn.thesis.protocols import Study

RESULTS = Path(__file__).parents[3] / "results"
QUICK, PAPER = Study("quick"), Study("paper")


def printed(table, row, column):
    """(cell, field, published) in one place of a table."""
    found = layout(table)
    value = next(r for r in found.rows if r.label == row).values[found.columns.index(column)]
    return value and (value.cell, value.field, value.published)


def test_number_of_cells_of_every_table():
    assert {name: len(cells_of(name)) for name in LAYOUTS} == {
        "table-3.1": 6, "table-3.2": 4, "table-3.3": 6, "table-3.4": 21, "table-3.5": 21, "table-3.6": 9,
        "figure-3.5": 48, "figure-3.6": 40, "figure-3.7": 48, "digits": 3,
        "table-4.1": 7, "table-4.2": 30, "table-4.3": 10, "table-4.4": 3, "figure-4.3": 6, "figure-4.4": 11,
        "figure-4.5": 6, "figure-4.6": 1, "figure-4.7": 6, "figure-4.8": 7, "figure-4.9": 10, "figure-a.3": 13,
        "figure-a.4": 10, "figure-a.5": 10, "digits-4": 3, "sweep": 6, "ablations": 11, "methods-2026": 27,
        "methods-2026-vit": 9, "methods-2026-depth": 29, "methods-2026-published": 11, "methods-2026-groups": 36,
        **{f"small-{figure}-{model}": 5 for figure in ("4.1", "4.8", "a.3") for model in ("vgg6a", "resnet18")},
    }  # fmt: skip
    assert {cell for name in LAYOUTS for cell in cells_of(name)} == set(cells())


@pytest.mark.parametrize(
    ("table", "row", "column", "expected"),
    [
        ("table-3.1", "Test accuracy [%]", "DGL", ("cifar10-vgg6a-dgl", "last_layer", "92.25")),
        ("table-3.1", "Test accuracy [%]", "6-Group", ("cifar10-vgg6a-gn-dgl-6group", "last_layer", "89.8")),
        ("table-3.2", "Test accuracy [%]", "DGL", ("cifar10-vgg6a-dgl", "last_layer", "92.2")),
        (
            "table-3.2",
            "Test accuracy [%]",
            "6-Group GN-DGL Stop Gradient + diversity",
            ("cifar10-vgg6a-gn-dgl-6group-diversity-stop-gradient", "last_layer", "91.9"),
        ),
        ("table-3.3", "6-Group GN-DGL", "3xVGG6a", ("cifar10-vgg6ax3-gn-dgl-6group", "last_layer", "93.28")),
        ("table-3.4", "1", "InfoPro accuracy [%]", ("cifar10-resnet32-e2e", "last_layer", "93.01")),
        ("table-3.4", "1", "G=2 accuracy [%]", None),
        ("table-3.4", "2", "G=2 accuracy [%]", ("cifar10-resnet32-gn-dgl-k1-g2", "ensemble", "91.41")),
        ("table-3.4", "2", "G=2 speed-up", ("cifar10-resnet32-gn-dgl-k1-g2", "training_speedup", "3.674")),
        ("table-3.4", "4", "G=4 speed-up", ("cifar10-resnet32-gn-dgl-k1-g4", "training_speedup", None)),
        ("table-3.4", "8", "InfoPro accuracy [%]", ("cifar10-resnet32-infopro-k8", "last_layer", "88.5")),
        ("table-3.4", "32", "G=2 accuracy [%]", ("cifar10-resnet32-gn-dgl-k16-g2", "ensemble", "83.38")),
        ("table-3.4", "32", "G=8 accuracy [%]", ("cifar10-resnet32-gn-dgl-k4-g8", "ensemble", "87.86")),
        ("table-3.5", "16", "G=2 speed-up", ("cifar10-resnet32-gn-dgl-k8-g2", "inference_speedup", "1.612")),
        ("table-3.5", "16", "InfoPro speed-up", ("cifar10-resnet32-infopro-k16", "inference_speedup", "1")),
        ("table-3.6", "last-layer only", "G=4 K=4", ("cifar10-resnet32-gn-dgl-k4-g4", "last_layer", "88.25")),
        ("table-3.6", "layerwise ensemble", "G=4 K=4", ("cifar10-resnet32-gn-dgl-k4-g4", "ensemble", "88.11")),
    ],
)
def test_published_values_stand_where_the_thesis_prints_them(table, row, column, expected):
    assert printed(table, row, column) == expected


def test_the_same_cell_has_the_same_published_accuracy_in_every_table_but_one():
    """The thesis rounds DGL's 92.25 to 92.2 in Table 3.2, and nothing else twice."""
    found = {}
    for table in (t for t in LAYOUTS.values() if isinstance(t, Table)):
        for value in (v for row in table.rows for v in row.values if v and v.published):
            found.setdefault((value.cell, value.field), set()).add(value.published)
    assert {key: texts for key, texts in found.items() if len(texts) > 1} == {
        ("cifar10-vgg6a-dgl", "last_layer"): {"92.25", "92.2"}
    }


def test_figures_have_published_values_for_resnet32_on_cifar10_only():
    panels = {panel.title: panel.points for name in LAYOUTS if "figure-3" in name for panel in LAYOUTS[name].panels}
    counts = {title: sum(point.published is not None for point in points) for title, points in panels.items()}
    assert counts.pop("ResNet-32 on CIFAR-10") == 21
    assert set(counts.values()) == {0}
    points = {point.label: point for point in panels["ResNet-32 on CIFAR-10"]}
    assert (points["GN-DGL G=8 K=4"].published, points["GN-DGL G=8 K=4"].field) == ("87.86", "ensemble")
    assert points["K=1 baseline G=4"].cell == "cifar10-resnet32-gn-dgl-k1-g4"
    assert points["single thread G=8"].cell == "cifar10-resnet32-single-thread-g8"
    assert not any("InfoPro" in point.label for point in panels["ResNet-32x2 on ImageNet32"])


def test_configurations_of_cells():
    config = cells()["cifar100-resnet32x2-gn-dgl-k2-g4"].config
    assert (config.method, config.model, config.depth, config.groups) == ("gn-dgl", "resnet32x2", 2, (4, 4))
    assert (config.data.name, config.objective.stop_gradient, config.objective.diversity_weight) == (
        "cifar100", True, 0.5,
    )  # fmt: skip
    switches = {
        extra: (c.groups, c.objective.loss, c.objective.stop_gradient, c.objective.diversity_weight)
        for extra in ("", "-diversity", "-diversity-stop-gradient")
        for c in [cells()[f"cifar10-vgg6a-gn-dgl-6group{extra}"].config]
    }
    groups = (6, 12, 6, 1, 1)
    assert switches == {
        "": (groups, "predsim", False, 0.0),
        "-diversity": (groups, "predsim", False, 0.5),
        "-diversity-stop-gradient": (groups, "predsim", True, 0.5),
    }
    assert cells()["cifar10-vgg6a-dgl"].config.groups == (1, 1, 1, 1, 1)


def test_protocols():
    paper = PAPER.config("cifar10-resnet32-dgl-k4", 3)
    assert (paper.train.epochs, paper.train.batch_size, paper.optimizer.learning_rate) == (160, 1024, 0.8)
    assert (paper.seed, paper.train.precision, paper.augment.padding_mode) == (3, "fp32", "reflect")
    quick = QUICK.config("cifar10-resnet32-dgl-k4", 0)
    assert (quick.train.epochs, quick.train.batch_size, quick.train.precision) == (2, 128, "bf16")
    assert (quick.optimizer.learning_rate, quick.optimizer.weight_decay, quick.optimizer.nesterov) == (
        0.2,
        5e-4,
        True,
    )
    assert (quick.schedule.name, quick.schedule.unit, quick.schedule.warmup_epochs) == ("cosine", "step", 1)
    standard = Study("standard").config("cifar10-resnet32-dgl-k4", 0)
    assert (standard.train.epochs, standard.train.batch_size, standard.train.precision) == (16, 128, "bf16")
    assert (standard.optimizer, standard.schedule.name, standard.schedule.unit, standard.schedule.warmup_epochs) == (
        cells()["cifar10-resnet32-e2e-rate0.4-decay0.0005"].config.optimizer, "cosine", "step", 1,
    )  # fmt: skip
    of_chapter4 = Study("standard").config("cifar10-vgg6ax0.5-dgssl-k4", 0)
    assert (of_chapter4.train.epochs, of_chapter4.data.train_limit, Study("standard").probe.epochs) == (30, 0, 20)
    assert (of_chapter4.optimizer.name, of_chapter4.optimizer.learning_rate, of_chapter4.schedule.warmup_rate) == (
        "adam", 1e-3, 0.0,
    )  # fmt: skip
    vgg = QUICK.config("cifar10-vgg6a-dgl", 0)
    assert (vgg.optimizer.name, vgg.optimizer.learning_rate, vgg.schedule.name) == ("adam", 1e-3, "cosine")
    assert (vgg.train.epochs, vgg.dropout) == (2, 0.01)


def test_the_sweep_trains_every_rate_and_decay_and_not_the_images_that_score_it():
    study = Study("sweep")
    configs = [study.config(cell, 0) for cell in cells_of("sweep")]
    rates = [(config.optimizer.learning_rate, config.optimizer.weight_decay) for config in configs]
    assert rates == [(0.1, 1e-4), (0.2, 1e-4), (0.4, 1e-4), (0.1, 5e-4), (0.2, 5e-4), (0.4, 5e-4)]
    assert {(config.train.epochs, config.data.train_limit) for config in configs} == {(4, 20_000)}
    assert all(dataclasses.replace(config, optimizer=configs[0].optimizer) == configs[0] for config in configs)
    assert study.held_out == 5_000 <= 50_000 - 20_000
    assert Study("sweep", train_limit=100).config(cells_of("sweep")[0], 0).data.train_limit == 100


def test_records_in_the_repository_are_of_the_cells_of_now():
    """Nothing that is added to the program makes them strangers."""
    folders = [folder for folder in RESULTS.iterdir() if folder.is_dir()]
    assert {"quick", "quick-train10000"} <= {folder.name for folder in folders}
    for folder in folders:
        records = read_records(folder)
        study = Study(**records[0]["study"])
        measured, notes = comparable(records, {record["cell"]: study.digest(record["cell"]) for record in records})
        assert notes == []
        assert sum(map(len, measured.values())) == len(records)


def test_digests_tell_cells_and_studies_apart_and_not_seeds():
    studies = [
        QUICK,
        PAPER,
        Study("standard"),
        Study("quick", epochs=3),
        Study("quick", train_limit=1000),
        Study("quick", 3, 1000),
    ]
    digests = [study.digest(cell) for study in studies for cell in cells() if cell not in sweep.configs()]
    assert len(set(digests)) == len(digests)
    assert [study.name for study in studies] == [
        "quick", "paper", "standard", "quick-epochs3", "quick-train1000", "quick-epochs3-train1000",
    ]  # fmt: skip
    short = Study("paper", epochs=2, train_limit=64).config("cifar10-resnet32-e2e", 0)
    assert (short.train.epochs, short.schedule.warmup_epochs, short.data.train_limit) == (2, 10, 64)


BUILT = {
    "cifar10-resnet32-e2e": 1,
    "cifar10-resnet32-infopro-k16": 16,
    "cifar10-resnet32-dgl-k8": 8,
    "cifar10-resnet32-gn-dgl-k1-g4": 4 + 1,
    "cifar10-resnet32-gn-dgl-k16-g2": 32 + 1,
    "cifar10-resnet32-gn-dgl-k4-g8": 32 + 1,
    "imagenet32-resnet32x2-gn-dgl-k8-g4": 32 + 1,
    "cifar100-resnet32-single-thread-g8": 1,
    "cifar10-vgg6a-dgl": 5 + 1,
    "cifar10-vgg6a-gn-dgl-10group": 10 + 20 + 10 + 1 + 1 + 1,
    "cifar10-vgg6ax3-gn-dgl-6group": 6 + 12 + 6 + 1 + 1 + 1,
    "cifar10-vgg6a-gn-dgl-6group-diversity-stop-gradient": 6 + 12 + 6 + 1 + 1 + 1,
    "digits-resnet8-dgl-k4": 4,
}
"""Cells that differ in how they are built, the deepest and widest of each kind, and their number of nodes."""


@pytest.mark.parametrize("name", BUILT)
def test_networks_can_be_built(name):
    with torch.device("meta"):
        network = build_network(QUICK.config(name, 0), cells()[name].image)
    assert len(network.nodes) == BUILT[name]


def test_the_method_of_every_cell_takes_its_configuration():
    for name, cell in cells().items():
        for study in (QUICK, PAPER):
            config = study.config(name, 1)
            layout = methods.get(config.method)(config)
            assert len(layout.modules) == config.depth == cell.config.depth
    broken = dataclasses.replace(QUICK.config("cifar10-resnet32-e2e", 0), depth=2)
    with pytest.raises(UsageError):  # the sibling: a cell that cannot be trained is noticed
        methods.get(broken.method)(broken)


def test_cells_are_trained_in_the_order_of_the_claims():
    order = in_order(cells_of("table-3.4"))
    assert order[:3] == ["cifar10-resnet32-e2e", "cifar10-resnet32-dgl-k4", "cifar10-resnet32-gn-dgl-k2-g2"]
    assert sorted(order) == sorted(cells_of("table-3.4"))
    assert in_order(["cifar10-vgg6a-dgl", "cifar10-resnet32-infopro-k4"])[0] == "cifar10-resnet32-infopro-k4"


def test_unknown_names_are_named():
    with pytest.raises(UsageError, match=r"TABLE: 'table-3.7' is not known; expected a cell or one of table-3.1, "):
        layout("table-3.7")
    with pytest.raises(
        UsageError, match=r"--protocol: 'fast' is not known; expected one of paper, quick, standard, sweep"
    ):
        Study("fast")
