import json

import pytest

from locallearn.config import to_toml
from locallearn.costs.nodes import cost
from locallearn.thesis.estimate import Estimates, epoch_seconds
from locallearn.thesis.matrix import cells
from locallearn.thesis.protocols import Study

E2E, DGL = "digits-resnet8-e2e", "digits-resnet8-dgl-k4"
STUDY = Study("quick", epochs=5)


def trained(runs, cell, seconds, study=STUDY, **changes):
    """A run folder whose epochs took so long."""
    run = runs / study.name / f"{cell}-seed0-{study.digest(cell)}"
    run.mkdir(parents=True)
    (run / "config.toml").write_text(to_toml(study.config(cell, 0)))
    events = [{"event": "start"}] + [
        event
        for epoch, took in enumerate(seconds, start=1)
        for event in (
            {"event": "train", "epoch": epoch, "seconds": took},
            {"event": "evaluate", "epoch": epoch},
        )
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return run


def test_a_run_goes_on_as_fast_as_it_did(tmp_path):
    run = trained(tmp_path, E2E, [10.0, 20.0, 90.0])
    assert Estimates(tmp_path).seconds_left(run, STUDY.config(E2E, 0)) == 2 * 20.0
    assert Estimates(tmp_path).seconds_left(run, Study("quick", epochs=3).config(E2E, 0)) == 0


def test_other_cells_scale_with_the_multiply_accumulates_of_their_steps(tmp_path):
    trained(tmp_path, E2E, [10.0, 30.0])
    e2e, dgl = (STUDY.config(cell, 0) for cell in (E2E, DGL))
    macs = [cost(config, cells()[E2E].image).step_macs for config in (e2e, dgl)]
    assert macs[0] != macs[1]
    found = Estimates(tmp_path).seconds_left(tmp_path / "none", dgl)
    assert found == pytest.approx(5 * 20.0 * macs[1] / macs[0])
    half = Study("quick", epochs=5, train_limit=500).config(DGL, 0)
    assert Estimates(tmp_path).seconds_left(tmp_path / "none", half) == pytest.approx(found * 500 / 1437)
    more = Study("quick", epochs=5, train_limit=9_999).config(DGL, 0)  # there are no more than all
    assert Estimates(tmp_path).seconds_left(tmp_path / "none", more) == pytest.approx(found)


def test_nothing_is_told_from_nothing_or_from_another_precision(tmp_path):
    config = STUDY.config(E2E, 0)
    assert Estimates(tmp_path).seconds_left(tmp_path / "none", config) is None
    assert list(tmp_path.iterdir()) == []
    trained(tmp_path, E2E, [10.0], study=Study("paper", epochs=2))
    assert config.train.precision == "bf16"
    assert Estimates(tmp_path).seconds_left(tmp_path / "none", config) is None


def test_counts_are_kept_and_a_damaged_file_is_made_again(tmp_path):
    trained(tmp_path, E2E, [10.0])
    config = STUDY.config(DGL, 0)
    expected = Estimates(tmp_path).seconds_left(tmp_path / "none", config)
    kept = json.loads((tmp_path / "macs.json").read_text())
    assert kept[STUDY.digest(DGL)] == cost(config, cells()[DGL].image).step_macs
    (tmp_path / "macs.json").write_text(json.dumps({**kept, STUDY.digest(DGL): 2 * kept[STUDY.digest(DGL)]}))
    assert Estimates(tmp_path).seconds_left(tmp_path / "none", config) == pytest.approx(2 * expected)
    for damaged in (b"{", b"[" * 10_000, b"\xff\xfe", json.dumps({STUDY.digest(DGL): "many"}).encode(), b'["a"]'):
        (tmp_path / "macs.json").write_bytes(damaged)
        assert Estimates(tmp_path).seconds_left(tmp_path / "none", config) == pytest.approx(expected)


@pytest.mark.parametrize("damaged", [b"\xff\xfe\x00", b"[1]", b"3", b'{"event": "train"}', b"[" * 10_000])
def test_damaged_lines_and_settings_say_nothing_of_times(damaged, tmp_path):
    run = trained(tmp_path, E2E, [10.0, 20.0])
    expected = Estimates(tmp_path).seconds_left(tmp_path / "none", STUDY.config(DGL, 0))
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(b"\n" + damaged + b"\n")
    other = trained(tmp_path, DGL, [30.0])
    (other / "config.toml").write_bytes(b"\xff\xfe")
    assert epoch_seconds(run) == [10.0, 20.0]
    assert Estimates(tmp_path).seconds_left(tmp_path / "none", STUDY.config(DGL, 0)) == pytest.approx(expected)


def test_an_epoch_that_was_trained_again_and_a_line_that_is_being_written(tmp_path):
    run = trained(tmp_path, E2E, [10.0, 20.0])
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"event": "train", "epoch": 2, "seconds": 25.0}) + '\n{"event": "train", "ep')
    assert epoch_seconds(run) == [10.0, 25.0]
    assert epoch_seconds(tmp_path / "none") == []
