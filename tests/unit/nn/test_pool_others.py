"""Pooled stop-gradient communication (Sec. 3.2.3): what travels."""

import pytest
import torch

import small
from locallearn.config import ObjectiveConfig
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.core.shard import shard
from locallearn.nn.groups import enlarged
from locallearn.nn.peers import Peers, computing_with


class TwoRanks(Peers):
    """Two ranks that share a module, of which the other has what this one has; counts what this one sends."""

    ways = 2

    def __init__(self):
        self.sent = 0

    def gather_groups(self, x, dim):
        self.sent += x.numel() * x.element_size()
        return torch.cat([x, x], dim)


def sent(precision, **objective):
    """Bytes that one of two ranks sends for one batch of 6 images of 16 channels of 4 x 4 over both."""
    config = small.config(depth=1, objective=ObjectiveConfig(diversity_weight=0.0, **objective))
    part = shard(next(iter(build_network(config, ImageShape(3, 8, 5)))), range(1))
    x, ranks = torch.rand(6, 3, 8, 8), TwoRanks()
    with computing_with(ranks), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        part.objective(part(x), small.batch_of(x, torch.arange(6) % 5)).total.sum().backward()
    return ranks.sent


@pytest.mark.parametrize(("precision", "size"), [("fp32", 4), ("bf16", 2)])
@pytest.mark.parametrize("loss", ["cross-entropy", "predsim"])
def test_bytes_fall_by_the_side_squared(precision, size, loss):
    settings = {"loss": loss} | ({"predsim_weight": 1.0} if loss == "predsim" else {})
    whole = sent(precision, **settings)
    assert whole == 6 * 8 * 4 * 4 * size
    assert [whole / sent(precision, pool_others=side, **settings) for side in (2, 4, 100)] == [4, 16, 16]


def test_a_square_has_its_mean_and_ends_with_the_map():
    x = torch.arange(15.0).view(1, 1, 3, 5)
    pooled = torch.nn.AvgPool2d(2, ceil_mode=True)(x)
    assert pooled.flatten().tolist() == [3, 5, 6.5, 10.5, 12.5, 14]
    assert enlarged(pooled, 2, (3, 5))[0, 0].tolist() == [
        [3, 3, 5, 5, 6.5],
        [3, 3, 5, 5, 6.5],
        [10.5, 10.5, 12.5, 12.5, 14],
    ]
