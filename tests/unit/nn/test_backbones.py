import dataclasses

import pytest
import torch

from locallearn.config import RunConfig
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.errors import ConfigError
from locallearn.nn.backbones import backbones, build_backbone

IMAGE = ImageShape(3, 32, 10)


def resnet_parameters(n, factor):
    """Closed form of a CIFAR ResNet with 1x1 shortcuts: convolutions, batch norms (2 each), classifier."""
    widths = [16 * factor, 16 * factor, 32 * factor, 64 * factor]
    total = 27 * widths[0] + 2 * widths[0]
    for stage in (1, 2, 3):
        a, b = widths[stage - 1], widths[stage]
        if a != b:
            total += a * b + 2 * b
        total += 9 * a * b + 2 * b + 9 * b * b + 2 * b
        total += (n - 1) * 2 * (9 * b * b + 2 * b)
    return total + widths[3] * 10 + 10


@pytest.mark.parametrize(("depth", "n"), [(20, 3), (32, 5), (44, 7), (56, 9), (110, 18)])
@pytest.mark.parametrize("factor", [1, 2])
def test_resnet_parameter_counts(depth, n, factor):
    with torch.device("meta"):
        name = f"resnet{depth}" + ("" if factor == 1 else f"x{factor}")
        blocks = [b.make(groups=1, dense=True) for b in build_backbone(name, 3, 32).blocks]
    found = sum(p.numel() for block in blocks for p in block.parameters()) + 64 * factor * 10 + 10
    assert found == resnet_parameters(n, factor)


def test_known_totals():
    assert resnet_parameters(5, 1) == 466_906


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("vgg6a", [128, 256, 512, 512, 1024]),
        ("vgg6ax2", [256, 512, 1024, 1024, 2048]),
        ("vgg6ax0.5", [64, 128, 256, 256, 512]),
        ("resnet18x0.25", [16, 16, 16, 32, 32, 64, 64, 128, 128]),
        ("vgg8b", [128, 256, 256, 512, 512, 512, 1024]),
        ("vgg11b", [128, 128, 128, 256, 256, 512, 512, 512, 512, 1024]),
        ("resnet18", [64, 64, 64, 128, 128, 256, 256, 512, 512]),
    ],
)
def test_channels_of_blocks(name, channels):
    assert [block.channels for block in build_backbone(name, 3, 32).blocks] == channels


@pytest.mark.parametrize(("name", "n"), [("vgg16a", 14), ("vgg19a", 17), ("resnet50", 17), ("resnet110", 55)])
def test_number_of_blocks(name, n):
    """K = 14 and 17 of the thesis are one module a convolution plus the linear layer."""
    assert len(build_backbone(name, 3, 32).blocks) == n


def test_vgg6a_sees_8192_features_in_its_linear_layer():
    with torch.device("meta"):
        last = build_backbone("vgg6a", 3, 32).blocks[-1].make(groups=1, dense=True)
    assert last.linear.inputs == 8192


@pytest.mark.parametrize("name", sorted(set(backbones) - {"resnet50", "resnet110", "vgg19a", "vit-tiny", "vit-nano"}))
def test_every_backbone_runs_forward_split_in_two_groups(name):
    config = RunConfig(method="gn-dgl", model=name, depth=2, width=(2,))
    network = build_network(config, IMAGE).eval()
    with torch.no_grad():
        logits = network.all_logits(torch.randn(2, 3, 32, 32))
    assert [tuple(x.shape) for x in logits] == [(2, 2, 10), (2, 2, 10), (1, 2, 10)]
    assert all(x.isfinite().all() for x in logits)


def test_forward_is_the_last_layers_scores():
    network = build_network(RunConfig(method="gn-dgl", model="tiny-resnet", depth=2, width=(2,)), IMAGE).eval()
    x = torch.randn(3, 3, 32, 32)
    assert torch.equal(network(x), network.all_logits(x)[-1][0])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet33", "model: 'resnet33' is not known. Did you mean"),
        ("resnet32x0", "model: 'resnet32x0'"),
        ("x2", "model: 'x2'"),
        ("resnet18x0.3", "model: 'resnet18x0.3' is not valid; expected a width factor that makes whole numbers"),
        ("resnet18x0.0", "model: 'resnet18x0.0' is not valid; expected a width factor"),
        ("resnet18x1.5", "model: 'resnet18x1.5'"),
    ],
)
def test_unknown_models_are_one_line(name, message):
    with pytest.raises(ConfigError) as caught:
        build_backbone(name, 3, 32)
    assert message in str(caught.value)


def test_images_too_small_to_pool_are_refused():
    with pytest.raises(ConfigError, match="vgg16a.*on 4-pixel images"):
        build_backbone("vgg16a", 3, 4)


def test_groups_must_divide_channels():
    with pytest.raises(ConfigError, match="width: 3 is not valid; expected a divisor of the 8 channels"):
        build_network(RunConfig(method="gn-dgl", model="tiny-resnet", width=(3,)), IMAGE)


def test_weights_of_a_group_depend_on_its_place_alone():
    """A process that holds group 1 alone draws what one process with all groups draws; other groups differ."""
    config = RunConfig(method="gn-dgl", model="tiny-resnet", depth=2, width=(2,), seed=5)
    a, b = build_network(config, IMAGE), build_network(config, IMAGE)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    conv = a.stages[1].blocks[0].conv1.weight
    assert not torch.equal(conv.chunk(2)[0], conv.chunk(2)[1])
    wider = build_network(RunConfig(method="gn-dgl", model="tiny-resnet", depth=2, width=(1,), seed=5), IMAGE)
    assert wider.stages[0].blocks.stem.conv.weight.std() > 0


def test_the_initial_variance_counts_channels_of_a_group_or_of_all():
    config = RunConfig(method="gn-dgl", model="resnet32x4", depth=2, width=(4,))
    of_all = dataclasses.replace(config, initial_variance="module")
    group, whole = (build_network(c, IMAGE).stages[1] for c in (config, of_all))
    weight, same = group.blocks[-1].conv2.weight, whole.blocks[-1].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
    assert same.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)
    torch.testing.assert_close(same, weight / 2)  # the same draws
    for one, other in zip(group.objective.parameters(), whole.objective.parameters(), strict=True):
        assert torch.equal(one, other)  # heads belong to a group each


def test_initial_convolutions_have_the_thesis_variance():
    network = build_network(RunConfig(method="e2e", model="resnet32x4"), IMAGE)
    weight = network.stages[0].blocks[-1].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (9 * weight.shape[0])) ** 0.5, rel=0.02)
