import pytest
import torch

from locallearn.bench.activations import backprop, bench_memory, equal_terms
from locallearn.bench.cells import TABLE_3_4
from locallearn.bench.step import Setting
from locallearn.core.image_shape import ImageShape

SETTING = Setting(ImageShape(3, 16, 10), 16, torch.device("cpu"), "fp32", 0)


def weights_after_a_step(**kind):
    contender = backprop("resnet8", SETTING, **kind)
    contender.step()
    return contender.parameters


def test_checkpointing_is_backpropagation():
    plain, checkpointed = weights_after_a_step(), weights_after_a_step(segments=2)
    assert all(torch.equal(a, b) for a, b in zip(plain, checkpointed, strict=True))


def test_accumulation_normalises_over_fewer_images():
    plain, accumulated = weights_after_a_step(), weights_after_a_step(microbatches=2)
    assert all(torch.allclose(a, b, atol=0.02) for a, b in zip(plain, accumulated, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(plain, accumulated, strict=True))


def test_bytes_of_every_way():
    rows = {row["name"]: row for row in bench_memory("resnet8", (2, 4), 1, SETTING)}
    assert rows["backprop"]["memory"] == 1
    assert rows["accumulation, 2 micro-batches"]["memory"] == pytest.approx(0.5, rel=0.03)
    assert rows["checkpointing, 2 segments"]["memory"] < 0.8
    assert rows["dgl K=4 G=1"]["memory"] < rows["dgl K=2 G=1"]["memory"] < 0.8
    assert "time" not in rows["backprop"]


def test_equal_terms_by_hand():
    peers = [{"memory": 1.0, "time": 1.0}, {"memory": 0.5, "time": 1.4}, {"memory": 0.25, "time": 1.6}]
    found = equal_terms({"memory": 0.5, "time": 1.5}, peers)
    assert found == {"time_at_equal_memory": 1.4 / 1.5, "memory_at_equal_time": 1.0}
    assert equal_terms({"memory": 0.1, "time": 0.5}, peers) == {
        "time_at_equal_memory": None,
        "memory_at_equal_time": None,
    }


def test_table_3_4_has_21_cells():
    assert len(set(TABLE_3_4)) == 21
