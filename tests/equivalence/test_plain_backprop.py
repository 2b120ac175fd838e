"""K = 1, G = 1 is plain backpropagation of the same network, bit for bit."""

import pytest
import torch
from torch import nn

import small
from locallearn.config import OptimizerConfig, RunConfig
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.core.local_step import LocalStep
from locallearn.nn.native import norm
from locallearn.runtime.inline import InlineRuntime
from locallearn.training.optim import build_optimizer

SGD = OptimizerConfig(learning_rate=0.1, weight_decay=1e-2)
ADAM = OptimizerConfig(name="adam", learning_rate=1e-2)


class Residual(nn.Module):
    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.shortcut(x))


class PlainTinyResNet(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.body = nn.Sequential(Residual(width, width), Residual(width, width), Residual(width, 2 * width, 2))
        self.classifier = nn.Linear(2 * width, 5)

    def forward(self, x):
        return self.classifier(nn.functional.adaptive_avg_pool2d(self.body(self.stem(x)), 1).flatten(1))


def by_kind(state):
    """Weights in an order that does not depend on names: sorted by shape, then by content."""
    return sorted((tuple(v.shape), v.flatten().tolist()) for v in state.values())


def pair(optimizer_config, model="tiny-resnet", width=8):
    config = RunConfig(method="e2e", model=model, seed=1, optimizer=optimizer_config)
    network = build_network(config, ImageShape(3, 8, 5))
    plain = PlainTinyResNet(width)
    renamed = {}
    for name, value in network.state_dict().items():
        name = name.removeprefix("stages.0.")
        for old, new in (
            ("blocks.stem.conv.", "stem.0."),
            ("blocks.stem.bn.", "stem.1."),
            ("blocks.1_0.", "body.0."),
            ("blocks.1_1.", "body.1."),
            ("blocks.2_0.", "body.2."),
            ("objective.head.linears.0.", "classifier."),
        ):
            name = name.replace(old, new)
        renamed[name] = value.clone()
    plain.load_state_dict(renamed)
    return config, network, plain


def train_both(config, network, plain, batches, precision="fp32"):
    runtime = InlineRuntime(
        [LocalStep(m, build_optimizer(config.optimizer, m.parameters()), precision) for m in network]
    )
    if config.optimizer.name == "sgd":
        optimizer = torch.optim.SGD(plain.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=1e-2)
    else:
        optimizer = torch.optim.Adam(plain.parameters(), 1e-2, weight_decay=1e-4)
    for index, (x, y) in enumerate(batches):
        runtime.step(small.batch_of(x, y), index)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = nn.functional.cross_entropy(plain(x), y)
        loss.backward()
        optimizer.step()


def some_batches(n=5, seed=0):
    torch.manual_seed(seed)
    return [(torch.randn(16, 3, 8, 8), torch.randint(0, 5, (16,))) for _ in range(n)]


def channels_last(batches):
    return [(x.to(memory_format=torch.channels_last), y) for x, y in batches]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "memory", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels-last"]
)
@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=["sgd", "adam"])
def test_e2e_is_plain_backpropagation_bit_for_bit(optimizer, memory, precision, torch_kernels):
    config, network, plain = pair(optimizer)
    batches = some_batches() if memory is torch.contiguous_format else channels_last(some_batches())
    train_both(config, network.to(memory_format=memory), plain.to(memory_format=memory), batches, precision)
    assert by_kind(network.state_dict()) == by_kind(plain.state_dict())


def largest_distance(network, plain):
    """Of two networks' entries with equal shapes, in units of the largest entry of the tensor."""
    pairs = zip(by_kind(network.state_dict()), by_kind(plain.state_dict()), strict=True)
    tensors = ((torch.tensor(a), torch.tensor(b)) for (_, a), (_, b) in pairs)
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1e-3)).item() for a, b in tensors)


def distance_after_a_step():
    """Of networks whose channels fill a vector: median of five draws, of which one may have a ReLU that flips."""
    found = []
    for seed in range(5):
        config, network, plain = pair(SGD, "tiny-resnetx2", 16)
        network, plain = (n.to(memory_format=torch.channels_last) for n in (network, plain))
        train_both(config, network, plain, channels_last(some_batches(1, seed)))
        found.append(largest_distance(network, plain))
    return sorted(found)[2]


@pytest.mark.parametrize("kernels", ["pairs"], indirect=True)
def test_with_kernels_of_our_own_it_is_plain_backpropagation_but_for_rounding(kernels):
    assert 0 < distance_after_a_step() < 1e-4


@pytest.mark.parametrize("kernels", ["pairs"], indirect=True)
def test_a_statistic_of_too_many_numbers_is_caught(kernels, monkeypatch):
    own = norm.statistics
    monkeypatch.setattr(norm, "statistics", lambda x: own(x)._replace(variance=own(x).variance * 1.001))
    assert distance_after_a_step() > 1e-4


def test_a_halved_gradient_is_caught(monkeypatch):
    config, network, plain = pair(SGD)
    network.stages[0].blocks[0].conv.weight.register_hook(lambda g: g / 2)
    train_both(config, network, plain, some_batches())
    assert by_kind(network.state_dict()) != by_kind(plain.state_dict())


@pytest.mark.parametrize("method", ["dgl", "gn-dgl"])
def test_every_local_method_at_k1_g1_is_e2e(method):
    x, y = some_batches(1)[0]
    image = ImageShape(3, 8, 5)
    results = []
    for name in ("e2e", method):
        network = build_network(RunConfig(method=name, model="tiny-resnet"), image)
        module = network.stages[0]
        step = LocalStep(module, build_optimizer(SGD, module.parameters()))
        step(x, small.batch_of(x, y))
        results.append(network.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(r.values() for r in results), strict=True))
