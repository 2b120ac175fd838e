from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from locallearn.config import ObjectiveConfig, RunConfig
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.core.widths import divisible
from locallearn.errors import ConfigError
from locallearn.nn.backbones import build_backbone
from locallearn.nn.macs import dry_run

PREDSIM = ObjectiveConfig(loss="predsim", stop_gradient=False, diversity_weight=0.0)


def channels(model, groups):
    backbone = divisible(build_backbone(model, 3, 32), 3, groups)
    return [block.channels for block in backbone.blocks]


@pytest.mark.parametrize(
    ("model", "split", "expected"),
    [
        ("vgg6a", 2, [128, 256, 512, 512, 1024]),
        ("vgg6a", 6, [126, 252, 510, 512, 1024]),
        ("vgg6a", 8, [128, 256, 512, 512, 1024]),
        ("vgg6a", 10, [120, 240, 510, 512, 1024]),
        ("vgg6ax2", 6, [252, 504, 1020, 1024, 2048]),
        ("vgg6ax3", 6, [384, 768, 1536, 1536, 3072]),
    ],
)
def test_widths_of_table_3_1_and_3_3(model, split, expected):
    assert channels(model, [split, 2 * split, split, 1, 1]) == expected


@given(st.lists(st.integers(1, 12), min_size=4, max_size=4))
def test_narrowed_blocks_fit_together(groups):
    backbone = divisible(build_backbone("tiny-vgg", 3, 8), 3, groups)
    shape = (3, 8, 8)
    for block, original, n in zip(backbone.blocks, build_backbone("tiny-vgg", 3, 8).blocks, groups, strict=True):
        assert block.name == original.name
        shape = dry_run(block.make(groups=1, dense=True), shape).shape
        assert shape[0] == block.channels
        if n <= original.channels:
            assert block.channels % n == 0
            assert 0 <= original.channels - block.channels < n


def test_blocks_that_need_no_change_are_the_same():
    plain = build_backbone("vgg6a", 3, 32)
    same = divisible(plain, 3, [2, 4, 2, 1, 1])
    for a, b in zip(plain.blocks, same.blocks, strict=True):
        assert isinstance(a.make, partial)
        assert isinstance(b.make, partial)
        assert (a.make.func, a.make.args, a.make.keywords) == (b.make.func, b.make.args, b.make.keywords)


def test_residual_networks_are_refused_as_before():
    with pytest.raises(
        ConfigError, match="width: 3 is not valid; expected a divisor of the 8 channels of block stem"
    ):
        build_network(RunConfig(model="tiny-resnet", depth=2, width=(3,)), ImageShape(3, 8, 5))


def test_a_vgg_trains_with_groups_that_do_not_divide_its_channels():
    config = RunConfig(model="tiny-vgg", depth=4, width=(3, 6, 3, 1), objective=PREDSIM)
    network = build_network(config, ImageShape(3, 8, 5))
    assert [m.blocks[0].conv.out_channels for m in list(network)[:3]] == [6, 12, 15]
    assert network(torch.randn(2, 3, 8, 8)).shape == (2, 5)


def test_more_groups_than_channels_are_refused():
    with pytest.raises(
        ConfigError, match="width: 9 is not valid; expected a divisor of the 8 channels of block conv1"
    ):
        build_network(RunConfig(model="tiny-vgg", depth=2, width=(9, 1)), ImageShape(3, 8, 5))
