"""The benchmark's loop over groups trains the same network as the grouped step."""

import pytest
import torch

from locallearn.bench.group_loop import LoopNetwork
from locallearn.bench.step import step_config
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.core.local_step import LocalStep
from locallearn.data.store import Batch
from locallearn.errors import ConfigError
from locallearn.runtime.inline import InlineRuntime
from locallearn.training.optim import build_optimizer

IMAGE = ImageShape(3, 8, 5)


def batch():
    torch.manual_seed(0)
    images = torch.randn(6, 3, 8, 8, dtype=torch.float64)
    return Batch(images, torch.arange(6) % 5, images, 0)


def train_both(depth, width):
    config = step_config("tiny-resnet", "gn-dgl", depth, width)
    network = build_network(config, IMAGE).double()
    loop = LoopNetwork(network, config.objective, config.optimizer, "fp32")
    for nodes in loop.modules:
        for node in nodes:
            node.double()
    runtime = InlineRuntime([LocalStep(m, build_optimizer(config.optimizer, m.parameters())) for m in network])
    for index in range(2):
        runtime.step(batch(), index)
        loop.step(batch())
    for module, nodes in zip(network, loop.modules, strict=True):
        rows = {n.replace("objective.head", "head"): v for n, v in module.state_dict().items()}
        for g, node in enumerate(nodes):
            for name, value in node.state_dict().items():
                expected = rows[name].chunk(module.groups)[g] if value.dim() else rows[name]
                torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("depth", "width"), [(1, 2), (2, 4), (4, 2), (3, 1)])
def test_two_steps_give_the_same_weights(depth, width):
    train_both(depth, width)


def test_another_network_is_refused():
    network = build_network(step_config("vgg6a", "gn-dgl", 2, 2), ImageShape(3, 32, 5))
    config = step_config("vgg6a", "gn-dgl", 2, 2)
    with pytest.raises(ConfigError, match="basic blocks"):
        LoopNetwork(network, config.objective, config.optimizer, "fp32")


def test_another_weight_of_the_penalty_is_caught(monkeypatch):
    own = LoopNetwork.with_diversity
    monkeypatch.setattr(LoopNetwork, "with_diversity", lambda *a: [x * 2 for x in own(*a)])
    with pytest.raises(AssertionError):
        train_both(1, 2)
