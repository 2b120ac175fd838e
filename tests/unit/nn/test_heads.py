import pytest
import torch

from locallearn.errors import ConfigError
from locallearn.nn.heads import AuxiliaryHead, GroupBatchNorm, MlpHead, build_head, parse_head
from locallearn.nn.macs import dry_run


def test_names():
    assert parse_head("1c2f") == (1, 2)
    assert parse_head("0c1f") == (0, 1)
    assert isinstance(build_head("2c3f", (4, 8, 8), 5), AuxiliaryHead)
    assert isinstance(build_head("mlp-sr", (4, 8, 8), 5), MlpHead)


@pytest.mark.parametrize("name", ["1c0f", "c2f", "", "1c2f "])
def test_an_unknown_head_is_one_line(name):
    known = "auglocal, flat, mlp-sr, momentum, patches, terminal, wide-projector, or <n>c<m>f"
    with pytest.raises(ConfigError, match=rf"objective.head: .* expected {known} .*, like 1c2f"):
        build_head(name, (4, 8, 8), 5)


@pytest.mark.parametrize("name", ["mlp", "mlp_sr"])
def test_a_near_miss_of_a_head_is_asked_about(name):
    with pytest.raises(ConfigError, match=f"objective.head: '{name}' is not known. Did you mean mlp-sr"):
        build_head(name, (4, 8, 8), 5)


def test_1c2f_counts_what_its_layers_say():
    """Conv 16 -> 32 of stride 2 on 32x32, batch norm, ReLU, pool, linear 32 -> 128, ReLU, linear 128 -> 10."""
    positions = 16 * 16
    expected = positions * 32 * (9 * 16 + 2 + 1 + 1) + 32 * 128 + 128 + 128 + 128 * 10 + 10
    assert dry_run(build_head("1c2f", (16, 32, 32), 10), (16, 32, 32)).macs == expected


@pytest.mark.parametrize(
    ("size", "reduced", "last"), [(32, 8, 2), (16, 4, 2), (8, 2, 2), (6, 2, 2), (4, 2, 2), (2, 2, 2), (1, 1, 1)]
)
def test_mlp_sr_reduces_to_a_quarter_but_not_below_two(size, reduced, last):
    head = MlpHead((4, size, size), 5)
    assert head.reduce(torch.zeros(2, 4, size, size)).shape == (2, 4, reduced, reduced)
    assert head.linears[0].inputs == 4 * last * last
    assert head(torch.randn(3, 4, size, size)).shape == (1, 3, 5)


def test_mlp_sr_has_three_convolutions_and_four_linear_layers():
    head = MlpHead((8, 16, 16), 5, groups=2, stop_gradient=True)
    assert [tuple(layer.weight.shape) for layer in head.convs[::3]] == [(16, 8, 1, 1)] * 3
    assert [tuple(layer.weight.shape) for layer in head.linears[::3]] == [(64, 32)] * 3 + [(10, 32)]
    naive = MlpHead((8, 16, 16), 5, groups=2)
    assert [tuple(layer.weight.shape) for layer in naive.convs[::3]] == [(8, 4, 1, 1)] * 3


def test_mlp_sr_pools_by_the_mean():
    head = MlpHead((1, 8, 8), 5)
    x = torch.arange(64.0).view(1, 1, 8, 8)
    assert head.reduce(x).flatten().tolist() == [13.5, 17.5, 45.5, 49.5]


def test_group_batch_norm_is_a_batch_norm_of_each_group():
    torch.manual_seed(0)
    norm = GroupBatchNorm(6)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    x = torch.randn(2, 5, 3)
    out = norm(x)
    for g in range(2):
        plain = torch.nn.BatchNorm1d(3)
        with torch.no_grad():
            plain.weight.copy_(norm.weight[3 * g : 3 * g + 3])
            plain.bias.copy_(norm.bias[3 * g : 3 * g + 3])
        torch.testing.assert_close(out[g], plain(x[g]))
        torch.testing.assert_close(norm.running_mean[3 * g : 3 * g + 3], plain.running_mean)


def test_every_parameter_is_stacked_by_group():
    for name in ("1c2f", "mlp-sr"):
        for parameter in build_head(name, (8, 8, 8), 5, groups=4, stop_gradient=True).parameters():
            assert parameter.shape[0] % 4 == 0
