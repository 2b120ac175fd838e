"""Our kernels as torch's operators: their rules hold, and compiled networks compute with them, bit for bit."""

import pytest
import torch
from functorch.compile import make_boxed_func  # pyright: ignore[reportPrivateImportUsage]
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode

from locallearn.kernels import build
from locallearn.kernels import conv as native
from locallearn.kernels import norm as native_norm
from locallearn.nn.group_conv import GroupConv2d
from locallearn.nn.norm_relu import norm_relu, norm_relu_mean

here = build.kernels()
pytestmark = pytest.mark.skipif(len(here.libraries) < 2, reason=f"no native kernels here: {here}")
OPS = torch.ops.locallearn


def drawn(*shape, dtype=torch.float32):
    torch.manual_seed(0)
    return torch.randn(shape).to(dtype).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("outputs", "stride"), [(16, 1), (32, 2)])
def test_rules_of_convolutions_hold(dtype, outputs, stride):
    x, weight = drawn(2, 16, 7, 5, dtype=dtype), torch.randn(outputs, 4, 3, 3)
    grad = native.convolution(x, weight, stride, 4)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(OPS.convolution, (x, weight, stride, 4), test_utils=checks)
    torch.library.opcheck(OPS.convolution_input_gradient, (grad, weight, stride, 4, 7, 5), test_utils=checks)
    torch.library.opcheck(OPS.convolution_weight_gradient, (grad, x, stride, 4), test_utils=checks)
    given = (x.requires_grad_(), weight.requires_grad_(), stride, 4)
    torch.library.opcheck(OPS.convolution, given, test_utils="test_autograd_registration")


@pytest.mark.parametrize("adds", [True, False])
def test_rules_of_norms_hold(adds):
    x, more = drawn(2, 16, 7, 5), drawn(2, 16, 7, 5) if adds else None
    weight, bias = torch.rand(16), torch.rand(16)
    mean, variance = OPS.batch_statistics(x)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(OPS.batch_statistics, (x,), test_utils=checks)
    for pooled in (False,) if adds else (False, True):
        given = (x, more, weight, bias, mean, variance, 1e-5, pooled)
        out = OPS.norm_relu(*given)
        torch.library.opcheck(OPS.norm_relu, given, test_utils=checks)
        seen = (out, x, out if adds else None, weight, bias, mean, variance, 1e-5, pooled)
        torch.library.opcheck(OPS.norm_relu_gradients, seen, test_utils=checks)


def both(call, *leaves):
    """Output and gradients."""
    given = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    out = call(*given)
    torch.manual_seed(1)
    return out.detach(), *torch.autograd.grad(out, given, torch.randn_like(out))


def same(found, wanted):
    return all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups", [1, 4])
def test_operators_have_the_values_and_gradients_of_the_functions(dtype, groups):
    x, weight = drawn(2, 16, 7, 5, dtype=dtype), torch.randn(32, 16 // groups, 3, 3)
    found = both(lambda x, weight: OPS.convolution(x, weight, 2, groups), x, weight)
    assert same(found, both(lambda x, weight: native.grouped(x, weight, 2, groups), x, weight))
    assert not torch.equal(found[0], both(lambda x, weight: OPS.convolution(x, -weight, 2, groups), x, weight)[0])


@pytest.mark.parametrize("kind", ["plain", "adds", "pooled"])
def test_norms_have_the_values_and_gradients_of_the_functions(kind):
    x, more, pooled = drawn(2, 16, 7, 5), drawn(2, 16, 7, 5).neg(), kind == "pooled"
    weight, bias = torch.rand(16), torch.rand(16)
    mean, variance, numbers = native_norm.statistics(x)
    assert same(OPS.batch_statistics(x), (mean, variance))

    def operator(x, more, weight, bias):
        out = OPS.norm_relu(x, more if kind == "adds" else None, weight, bias, mean, variance, 1e-5, pooled)
        return out + 0 * more.sum()

    def function(x, more, weight, bias):
        of_batch = native_norm.Statistics(mean, variance, numbers)
        added = more if kind == "adds" else None
        return native_norm.norm_relu(x, added, weight, bias, of_batch, 1e-5, mean=pooled) + 0 * more.sum()

    assert same(both(operator, x, more, weight, bias), both(function, x, more, weight, bias))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = GroupConv2d(16, 16, 3, padding=1, groups=4, bias=False)
        self.norm, self.relu, self.pool = nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten()
        self.again, self.last = GroupConv2d(16, 16, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(16)

    def forward(self, x):
        y = norm_relu(self.norm, self.relu, self.conv(x), x)
        return norm_relu_mean(self.last, self.relu, self.pool, self.again(y))


def gradients_of(call, x):
    return torch.autograd.grad(call(x).square().sum(), tuple(call.parameters()))


def test_compiled_layers_compute_with_them_in_one_graph():
    """No graph is broken, forward and backward are ours, and all values are those of the layers as they are."""
    torch.manual_seed(0)
    plain, compiled, graphs = Block(), Block(), []
    compiled.load_state_dict(plain.state_dict())

    def backend(graph, inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return make_boxed_func(graph.forward)

    torch.compiler.reset()
    run = torch.compile(compiled, backend=aot_autograd(fw_compiler=backend, bw_compiler=backend), fullgraph=True)
    x = drawn(4, 16, 6, 6)
    found, wanted = ((*both(call, x), *gradients_of(call, x)) for call in (run, plain))
    assert same(found, wanted)
    buffers = zip(plain.buffers(), compiled.buffers(), strict=True)
    assert all(torch.equal(a, b) for a, b in buffers)
    forward, backward = graphs[:2]
    assert sum("locallearn.convolution" in name for name in forward) == 2
    assert sum("locallearn.norm_relu" in name for name in forward) == 2
    assert any("convolution_input_gradient" in name for name in backward)
    assert any("norm_relu_gradients" in name for name in backward)


def test_tensors_without_data_have_shapes():
    with FakeTensorMode():
        x = torch.empty(2, 16, 7, 5).to(memory_format=torch.channels_last)
        out = OPS.convolution(x, torch.empty(32, 4, 3, 3), 2, 4)
    assert out.shape == (2, 32, 4, 3)
    x = torch.empty(2, 16, 7, 5, device="meta")
    assert OPS.convolution(x, torch.empty(32, 4, 3, 3, device="meta"), 1, 4).shape == (2, 32, 7, 5)
