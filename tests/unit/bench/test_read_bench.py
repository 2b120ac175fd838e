import numpy as np
import pytest
import torch
from PIL import Image

from locallearn.bench.read import bench_read
from locallearn.cli.main import main
from locallearn.config import DataConfig
from locallearn.data.packing import pack
from locallearn.errors import ConfigError, UsageError


@pytest.fixture
def packed(tmp_path):
    for i in range(30):
        path = tmp_path / "images" / ("train" if i < 24 else "test") / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 24, 3), i * 8, np.uint8)).save(path)
    pack(tmp_path / "images", tmp_path / "packed")
    return DataConfig("packed", root=str(tmp_path / "packed"), image_size=16, workers=1)


def test_reading_and_steps_are_timed_on_the_same_batches(packed):
    seen = []
    row = bench_read(packed, 4, torch.device("cpu"), "fp32", 3, lambda images, labels: seen.append(images.shape))
    assert (row["workers"], row["batch_size"]) == (1, 4)
    assert all(row[f"{name}_images_per_second"] > 0 for name in ("read", "step", "together"))
    assert 0 < row["waiting"] <= 1
    assert seen == [(4, 3, 16, 16)] * (2 + 3 + 2 + 3)  # alone with a warm-up, and together with a warm-up


def test_sets_that_are_too_small_or_in_memory_are_refused(packed, capsys):
    with pytest.raises(ConfigError, match="--batch-size: 8 is not valid; expected at most 4, for 3 batches"):
        bench_read(packed, 8, torch.device("cpu"), "fp32", 3)
    with pytest.raises(UsageError, match="digits is held in memory; expected a packed set"):
        bench_read(DataConfig(), 8, torch.device("cpu"), "fp32", 3)
    assert main(["bench", "read", "/nowhere"]) == 2
    assert "/nowhere (data.root) is no packed set" in capsys.readouterr().err
