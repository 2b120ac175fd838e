import pytest
import torch

from locallearn.bench.planned import measure
from locallearn.config import RunConfig, TrainConfig
from locallearn.core.image_shape import ImageShape
from locallearn.costs.footprint import working_bytes
from locallearn.costs.nodes import cost


@pytest.mark.parametrize(
    ("method", "depth", "width", "precision"),
    [("e2e", 1, 1, "fp32"), ("gn-dgl", 2, 2, "fp32"), ("gn-dgl", 3, 4, "bf16"), ("predsim", 2, 2, "fp32")],
)
def test_real_steps_need_no_more_than_was_predicted(method, depth, width, precision):
    train = TrainConfig(batch_size=16, precision=precision)
    config = RunConfig(method=method, depth=depth, width=(width,), model="resnet8", train=train)
    image = ImageShape(3, 16, 10)
    found = measure(config, cost(config, image), image, torch.device("cpu"), repeats=1)
    assert len(found["modules"]) == depth
    for row in found["modules"]:
        assert 0.5 * row["predicted_bytes"] < row["bytes"] <= 1.05 * row["predicted_bytes"]
        assert row["seconds"] > 0
    if method == "predsim":  # gradients and reordered weights must be counted: without them it would not be enough
        first = cost(config, image).modules[0]
        assert found["modules"][0]["bytes"] > 1.05 * (found["modules"][0]["predicted_bytes"] - working_bytes(first))
    counted = cost(config, image)
    assert found["device_flops"] == pytest.approx(6 * counted.e2e_macs * 16 / found["e2e_seconds"])
    share = found["modules"][0]["predicted_seconds"] / found["e2e_seconds"]
    assert share == pytest.approx(width * counted.modules[0].macs / counted.e2e_macs)
