import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import small
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.core.local_step import LocalStep
from locallearn.nn import macs
from locallearn.nn.groups import GroupLinear, StopGradientConv2d
from locallearn.nn.macs import counting, dry_run, layer_macs
from small import config


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv2d(3, 16, 3, padding=1, bias=False), (3, 32, 32), 9 * 3 * 16 * 32 * 32),
        (nn.Conv2d(3, 16, 3, padding=1), (3, 32, 32), (9 * 3 + 1) * 16 * 32 * 32),
        (nn.Conv2d(8, 16, 3, 2, padding=1, groups=4, bias=False), (8, 10, 10), 9 * 2 * 16 * 5 * 5),
        (nn.Conv2d(8, 16, 1, 2, bias=False), (8, 9, 9), 8 * 16 * 5 * 5),
        (StopGradientConv2d(8, 6, 2, 4), (8, 10, 10), 9 * 8 * 24 * 5 * 5),
        (nn.BatchNorm2d(8), (8, 5, 7), 2 * 8 * 5 * 7),
        (nn.BatchNorm1d(8), (8,), 2 * 8),
        (nn.ReLU(), (8, 5, 7), 8 * 5 * 7),
        (nn.MaxPool2d(2), (8, 6, 6), 8 * 6 * 6),
        (nn.AdaptiveAvgPool2d(1), (8, 6, 6), 8 * 6 * 6),
        (nn.Linear(20, 10), (20,), 20 * 10 + 10),
        (nn.Linear(20, 10, bias=False), (20,), 20 * 10),
        (nn.Sigmoid(), (3, 32, 32), 0),
        (nn.Dropout(0.5), (8, 5, 7), 0),
    ],
)
def test_single_layers(layer, shape, macs):
    assert dry_run(layer, shape).macs == macs


def test_grouped_linear_layers_count_every_group():
    layer = GroupLinear(4, 20, 10).to("meta")
    with counting(layer) as calls:
        layer(torch.empty(4, 1, 20, device="meta"))
    assert [(call.macs, call.outputs) for call in calls] == [(4 * (20 * 10 + 10), 40)]


def test_a_layer_that_is_called_twice_counts_twice():
    relu = nn.ReLU()
    with counting(nn.ModuleList([relu])) as calls:
        relu(torch.empty(1, 7))
        relu(torch.empty(1, 5))
    assert [call.macs for call in calls] == [7, 5]
    relu(torch.empty(1, 9))
    assert len(calls) == 2  # the hooks are gone


def test_containers_may_take_and_give_anything():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, *, x):
            return {"out": self.linear(x)}

    odd = Odd()
    with counting(odd) as calls:
        odd(x=torch.empty(1, 4))
    assert [call.macs for call in calls] == [10]


def test_a_dry_run_leaves_the_module_as_it_was():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert dry_run(module, (3, 8, 8)).shape == (4, 6, 6)
    assert module.training
    assert next(module.parameters()).device.type == "cpu"
    assert not any(layer._forward_hooks for layer in module.modules())
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])


def test_users_can_register_a_layer_of_their_own():
    class Scale(nn.Module):
        def forward(self, x):
            return 2 * x

    assert dry_run(Scale(), (3, 4, 4)).macs == 0
    layer_macs.register(Scale, lambda layer, inputs, output: output.numel())
    assert dry_run(Scale(), (3, 4, 4)).macs == 3 * 4 * 4


WEIGHTED = (nn.Conv2d, nn.Linear, GroupLinear, StopGradientConv2d)


def weighted_macs(module, images):
    """Our count of convolutions and linear layers alone, biases left out."""
    with counting(module) as calls:
        module(images)
    calls = [call for call in calls if isinstance(call.layer, WEIGHTED)]
    biased = [call for call in calls if getattr(call.layer, "bias", None) is not None]
    return sum(call.macs for call in calls) - sum(call.outputs for call in biased)


def network(model, method, depth, width, **changes):
    with torch.device("meta"):
        return build_network(config(method, depth, width, model=model, **changes), ImageShape(3, 32, 10))


class EveryHead(nn.Module):
    """A network with all of its heads."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network.all_logits(images)


@pytest.mark.parametrize(
    ("model", "method", "depth", "width"),
    [
        ("resnet20", "e2e", 1, (1,)),
        ("resnet32", "dgl", 4, (1,)),
        ("resnet32x2", "gn-dgl", 4, (4,)),
        ("resnet50", "gn-dgl", 3, (2,)),
        ("vgg6a", "gn-dgl", 5, (2, 4, 2, 1, 1)),
        ("vgg11b", "single-thread", 1, (2,)),
    ],
)
def test_agrees_with_the_flop_counter_of_torch(model, method, depth, width):
    net = EveryHead(network(model, method, depth, width)).eval()
    images = torch.empty(1, 3, 32, 32, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(images)
    assert 2 * weighted_macs(net, images) == counter.get_total_flops()


def test_a_count_that_forgets_groups_disagrees_with_the_flop_counter():
    net = network("resnet20", "single-thread", 1, (2,)).eval()
    images = torch.empty(1, 3, 32, 32, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(images)
    with counting(net) as calls:
        net(images)
    dense = [
        c.outputs * c.layer.weight[0].numel() * getattr(c.layer, "groups", 1)
        for c in calls
        if isinstance(c.layer, WEIGHTED)
    ]
    assert 2 * sum(dense) > 1.5 * counter.get_total_flops()


class Dispatched(TorchDispatchMode):
    """Multiply-accumulates of the convolutions and matrix products that torch is asked for."""

    def __init__(self):
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name == "convolution":
            self.macs += out.numel() * args[1][0].numel()
        elif name == "convolution_backward":
            self.macs += args[0].numel() * args[2][0].numel() * sum(args[10][:2])
        elif name in ("mm", "bmm"):
            self.macs += out.numel() * args[0].shape[-1]
        elif name in ("addmm", "baddbmm"):
            self.macs += out.numel() * args[1].shape[-1]
        return out


def counted_and_dispatched(method, depth, width):
    """A step's multiply-accumulates in layers with weights but norms: as counted, and as torch is asked for them."""
    net = build_network(config(method, depth, (width,), model="resnet8"), ImageShape(3, 16, 10))
    batch, counted = small.batch_of(torch.randn(4, 3, 16, 16), torch.randint(10, (4,))), 0
    features = batch.images
    with Dispatched() as dispatched:
        for module in net:
            with counting(module) as calls:
                features, _ = LocalStep(module, torch.optim.SGD(module.parameters(), 0.1))(features, batch)
            counted += sum(call.step_macs for call in calls if isinstance(call.layer, WEIGHTED))
    return counted, dispatched.macs


STEPS = [("e2e", 1, 1), ("dgl", 3, 1), ("gn-dgl", 3, 4), ("infopro", 2, 1), ("predsim", 2, 2)]


@pytest.mark.parametrize(("method", "depth", "width"), STEPS)
def test_a_step_counts_what_torch_is_asked_for(method, depth, width, pack_nothing, torch_kernels):
    counted, dispatched = counted_and_dispatched(method, depth, width)
    assert counted == pytest.approx(dispatched, rel=2e-3)  # biases, and similarities in losses


def test_a_gradient_of_detached_channels_is_noticed(pack_nothing, torch_kernels, monkeypatch):
    monkeypatch.setattr(macs, "StopGradientConv2d", type(None))
    counted, dispatched = counted_and_dispatched("gn-dgl", 3, 4)
    assert counted > 1.05 * dispatched
