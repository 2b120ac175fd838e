"""How many operators a step dispatches: the same for every G, and linear in K."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from locallearn.bench.step import Contender, Setting, local, loop, step_config
from locallearn.core.image_shape import ImageShape
from locallearn.nn import group_conv

SETTING = Setting(ImageShape(3, 8, 5), 4, torch.device("cpu"), "fp32", 1)


class Count(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[str(func)] += 1
        return func(*args, **(kwargs or {}))


def operators(contender: Contender) -> int:
    contender.step()  # the first step also makes the optimizers' buffers
    with Count() as count:
        contender.step()
    return sum(count.calls.values())


def step(depth, width, model="resnet8"):
    return local(step_config(model, "gn-dgl", depth, width), SETTING)


@pytest.mark.parametrize("depth", [1, 2])
def test_the_number_of_operators_does_not_depend_on_the_number_of_groups(depth, pack_nothing, torch_kernels):
    assert operators(step(depth, 2)) == operators(step(depth, 4)) == operators(step(depth, 16))


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("kernels", ["pairs"], indirect=True)
def test_nor_with_kernels_of_our_own(depth, pack_nothing, kernels):
    two, four, eight = (operators(step(depth, n)) for n in (2, 4, 8))
    assert two == pytest.approx(four, abs=4)  # gradients of weights of large groups are torch's in fp32
    assert four == pytest.approx(eight, abs=4)


def test_packing_adds_little_and_the_same_for_every_number_of_groups(pack_nothing, torch_kernels, monkeypatch):
    unpacked = operators(step(1, 8))
    monkeypatch.setattr(group_conv, "WHOLE", 16)
    monkeypatch.setattr(group_conv, "LANES", 16)
    eight, sixteen = operators(step(1, 8)), operators(step(1, 16))  # all grouped convolutions are packed at both
    assert eight == pytest.approx(sixteen, rel=0.02)  # but for layouts of weights, which single channels do not have
    assert unpacked < eight < 2 * unpacked


def test_a_loop_over_groups_is_caught():
    config = [step_config("resnet8", "gn-dgl", 1, g) for g in (2, 4, 8)]
    two, four, eight = (operators(loop(c, SETTING, "fp32")) for c in config)
    assert four > 1.7 * two
    assert eight > 1.7 * four
    assert two > operators(step(1, 2))


def test_the_number_of_operators_is_linear_in_the_number_of_modules(pack_nothing, torch_kernels):
    four, eight, sixteen = (operators(step(k, 2, "resnet32")) for k in (4, 8, 16))
    assert sixteen - eight == pytest.approx(2 * (eight - four), rel=0.02)
    assert sixteen < 4 * four
