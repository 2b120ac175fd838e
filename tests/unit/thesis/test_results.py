import json

import pytest
import small_results

import small
from locallearn.config import digest
from locallearn.costs.nodes import cost
from locallearn.errors import UsageError
from locallearn.thesis import cell_records
from locallearn.thesis.matrix import cells
from locallearn.thesis.protocols import Study
from locallearn.training import runs
from locallearn.training.record import RunFolder

E2E, DGL = "cifar10-resnet32-e2e", "cifar10-resnet32-dgl-k4"
DIGESTS = {name: small_results.QUICK.digest(name) for name in (E2E, DGL)}


def test_a_record_of_a_real_run_names_no_place_on_this_machine(tmp_path):
    config = small.config(data=small.DataConfig(root="/home/somebody", train_limit=64, test_limit=20))
    summary = runs.train(config, tmp_path / "run")
    config = RunFolder(tmp_path / "run").config()
    curve = [{"epoch": 2, "last_layer": 0.5, "ensemble": 0.5}]
    counted = cost(config, cells()["digits-resnet8-e2e"].image)
    record = cell_records.make_record("a", Study("quick", epochs=2), config, summary, curve, counted)
    path = tmp_path / "results" / "a-seed0.json"
    cell_records.write_record(path, record)
    assert cell_records.read_record(path) == record
    assert "/home/somebody" not in path.read_text()
    assert str(tmp_path) not in path.read_text()
    assert [p.name for p in path.parent.iterdir()] == ["a-seed0.json"]  # no temporary file is left
    assert record["digest"] == digest(config) == summary["digest"]
    assert record["study"] == {"protocol": "quick", "epochs": 2}
    assert record["accuracy"]["ensemble"] == summary["accuracy"]["ensemble"]
    assert record["macs"]["largest_node"] == counted.max_node_macs < record["macs"]["e2e"] == counted.e2e_macs
    assert record["training_speedup"] == counted.e2e_macs / counted.max_node_macs
    assert record["nodes"] == summary["nodes"]
    assert {"seconds", "images_per_second", "memory", "hardware", "versions", "commit", "finished"} <= set(record)


def test_records_of_other_configurations_are_left_out_with_a_line():
    other = small_results.record(E2E, seed=1, study=Study("quick", epochs=3))
    kept, notes = cell_records.comparable([small_results.record(E2E), other, small_results.record(DGL)], DIGESTS)
    assert {cell: [record["seed"] for record in records] for cell, records in kept.items()} == {E2E: [0], DGL: [0]}
    assert notes == [f"{E2E} seed 1: left out, its digest is {other['digest']} and the cell's is now {DIGESTS[E2E]}"]


def test_a_cell_that_is_no_more_is_left_out():
    kept, notes = cell_records.comparable([{**small_results.record(E2E), "cell": "gone"}], DIGESTS)
    assert kept == {}
    assert "there is no such cell now" in notes[0]


def test_other_data_under_the_same_name_are_left_out():
    records = [small_results.record(E2E), small_results.record(E2E, seed=1, data_source="CIFAR-10 (JPEG)")]
    kept, notes = cell_records.comparable(records, DIGESTS)
    assert [record["seed"] for record in kept[E2E]] == [0]
    assert notes == [f"{E2E} seed 1: left out, it was trained on CIFAR-10 (JPEG) and seeds before it on CIFAR-10"]


def test_seeds_of_one_configuration_are_put_together_in_their_order():
    kept, notes = cell_records.comparable([small_results.record(E2E, seed=seed) for seed in (2, 0, 1)], DIGESTS)
    assert [record["seed"] for record in kept[E2E]] == [0, 1, 2]
    assert notes == []


def test_an_older_record_of_another_configuration_is_kept(tmp_path):
    path = cell_records.record_path(tmp_path, small_results.QUICK, E2E, 0)
    assert path == tmp_path / "quick" / f"{E2E}-seed0.json"
    old, new = small_results.record(E2E, study=Study("quick", epochs=3)), small_results.record(E2E)
    cell_records.write_record(path, old)
    assert not cell_records.is_finished(path, DIGESTS[E2E], 0)
    cell_records.write_record(path, new)
    assert cell_records.is_finished(path, DIGESTS[E2E], 0)
    assert not cell_records.is_finished(path, DIGESTS[E2E], 1)
    assert cell_records.read_record(path.with_name(f"{E2E}-seed0-{old['digest']}.json")) == old
    cell_records.write_record(path, {**new, "commit": "later"})  # the same configuration is replaced
    assert len(list(path.parent.iterdir())) == 2


def test_a_setting_that_is_new_in_the_program_does_not_make_old_records_strangers(tmp_path):
    record = small_results.record(E2E)
    del record["config"]["objective"]["predsim_weight"]  # as if it had not been there when this was written
    record["digest"] = "0123456789abcdef"
    cell_records.write_record(tmp_path / "old-seed0.json", record)
    assert cell_records.is_finished(tmp_path / "old-seed0.json", DIGESTS[E2E], 0)
    record["config"]["objective"]["setting_of_then"] = 1
    cell_records.write_record(tmp_path / "older-seed0.json", record)
    assert not cell_records.is_finished(tmp_path / "older-seed0.json", DIGESTS[E2E], 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a result of reproduce (Expecting"),
        ("[]", "not a result of reproduce (the whole"),
        ("[" * 10_000, "not a result of reproduce (maximum recursion"),
        (json.dumps({**small_results.record(E2E), "accuracy": {"last_layer": 0.9}}), "accuracy.ensemble"),
        (json.dumps({**small_results.record(E2E), "seed": "0"}), "(seed: "),
    ],
)
def test_a_damaged_record_is_named(text, message, tmp_path):
    path = tmp_path / "bad-seed0.json"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        cell_records.read_records(tmp_path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    other = small_results.record(E2E)
    cell_records.write_record(tmp_path / "good-seed0.json", other)
    problems = []
    assert [record["cell"] for record in cell_records.read_records(tmp_path, problems)] == [E2E]
    assert len(problems) == 1
    assert message in problems[0]
    assert not cell_records.is_finished(path, DIGESTS[E2E], 0)  # so that it is trained again
    cell_records.write_record(path, other)
    assert (tmp_path / "bad-seed0.json.damaged").read_text() == text
    assert cell_records.is_finished(path, DIGESTS[E2E], 0)
