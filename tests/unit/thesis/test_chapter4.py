import dataclasses
from pathlib import Path

import pytest
import torch

from locallearn.core.assembly import build_network
from locallearn.thesis import chapter4
from locallearn.thesis.catalogue import cells_of, layout
from locallearn.thesis.matrix import cells
from locallearn.thesis.protocols import Study
from locallearn.thesis.queue import CellJob, Queue
from locallearn.thesis.worker import Request, _placed


@pytest.mark.parametrize(
    ("table", "row", "column", "cell", "published"),
    [
        ("table-4.1", "DGSSL", "K=1", "cifar10-resnet50-simclr", "92.56"),
        ("table-4.1", "DGSSL-LLM", "K=4", "cifar10-resnet50-dgssl-llm-k4-r0.95", "91.96"),
        ("table-4.1", "DGSSL-LLM", "K=8", "cifar10-resnet50-dgssl-llm-k8-r0.97", "90.51"),
        ("table-4.1", "DGSSL-LLM", "K=16", "cifar10-resnet50-dgssl-llm-k16-r0.95", "89.8"),
        ("table-4.2", "DGSSL-LLM 0.81", "K=16", "cifar10-resnet50-dgssl-llm-k16-r0.81", "86.63"),
        ("table-4.3", "DGSSL-LLM (decreasing difficulty)", "K=8",
         "cifar10-resnet50-dgssl-llm-k8-r0.97-decreasing", "90.21"),
        ("table-4.4", "K=16", "DGSSL-LLM (Pos. Only)", "cifar10-resnet50-dgssl-llm-k16-r0.95-positive", "88.66"),
    ],
)  # fmt: skip
def test_what_the_thesis_prints(table, row, column, cell, published):
    found = layout(table)
    value = next(r for r in found.rows if r.label == row).values[found.columns.index(column)]
    assert (value.cell, value.field, value.published) == (cell, "linear_probe", published)


def test_cells_are_what_their_names_say():
    def modification(name):
        return cells()[name].config.objective.modification

    best = "cifar10-resnet50-dgssl-llm-k16-r0.95"
    assert (modification(best).positive_ratio, modification(best).negative_ratio) == (0.95, 0.95)
    assert modification(best).scorer == "pretrained"
    assert modification(f"{best}-decreasing").difficulty == "decreasing"
    assert modification(f"{best}-positive").pairs == "positive"
    assert cells()["cifar10-resnet50-dgssl-k8-0c2f"].config.objective.head == "0c2f"
    assert (
        cells()["cifar10-vgg19a-dgssl-k17"].config.depth,
        cells()["cifar10-resnet110-dgssl-k16"].config.depth,
    ) == (
        17,
        16,
    )


@pytest.mark.parametrize("name", [name for name in chapter4.configs() if "-r0.8" not in name and "-r0.9" not in name])
def test_networks_can_be_built(name):
    with torch.device("meta"):
        network = build_network(cells()[name].config, cells()[name].image)
    assert len(network.nodes) == cells()[name].config.depth
    assert network.views == 2


def test_loss_modification_is_scored_by_the_simclr_cell_of_its_model():
    scorers = {chapter4.scorer_of(name) for name in cells_of("table-4.2")}
    assert scorers == {None, "cifar10-resnet50-simclr"}
    assert all(scorer is None or scorer in cells() for scorer in map(chapter4.scorer_of, cells()))
    request = Request("digits-resnet8-dgssl-llm-k4-r0.95", {}, 0, "run", "record", scorer="/somewhere")
    config = Study("quick").config(request.cell, 0)
    assert _placed(config, request).objective.modification.scorer_run == "/somewhere"


def test_a_job_waits_for_what_it_needs_and_is_given_up_where_nobody_trains_that(tmp_path):
    def job(name, **changes):
        return CellJob(name, tmp_path / name, {"name": name}, (tmp_path / f"{name}.done").exists, **changes)

    first = job("first")
    own = "read line; name=$(echo $line | grep -o 'first\\|second')"
    touch = ["sh", "-c", f"{own}; sleep 0.3; touch {tmp_path}/$name.done"]
    second = dataclasses.replace(job("second"), is_ready=first.is_finished)
    orphan = dataclasses.replace(job("orphan"), is_ready=lambda: False)
    outcome = Queue([second, orphan, first], 2, command=touch).run(20)
    assert [done.name for done in outcome.finished] == ["first", "second"]
    assert [(failed.name, message.split(";")[0]) for failed, message in outcome.failed] == [
        ("orphan", "what it needs was not trained")
    ]
    assert not Path(tmp_path / "orphan.log").exists()
