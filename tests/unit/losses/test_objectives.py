import pytest
import torch
from torch import nn

import small
from locallearn.config import ObjectiveConfig, OptimizerConfig, RunConfig
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.core.local_step import LocalStep
from locallearn.errors import ConfigError
from locallearn.losses import objectives as module_under_test
from locallearn.losses.objectives import LocalLoss, Objective, objectives
from locallearn.runtime.inline import InlineRuntime
from locallearn.training.optim import build_optimizer

IMAGE = ImageShape(3, 8, 5)


def test_the_losses_that_ship():
    on_labels = [
        "cross-entropy",
        "infopro",
        "next-token",
        "predsim",
        "random-targets",
        "supervised-contrastive",
        "token",
    ]
    on_views = ["barlow-twins", "nt-xent", "nt-xent-llm", "vicreg"]
    assert sorted(objectives) == sorted(
        [*on_labels, *on_views, "input-similarity", "masked-pixels", "patch-infonce", "rebuilt-input", "transport"]
    )


def test_an_unknown_loss_is_one_line():
    with pytest.raises(ConfigError, match=r"objective.loss: 'predism' is not known. Did you mean predsim"):
        build_network(RunConfig(model="tiny-resnet", depth=2, objective=ObjectiveConfig(loss="predism")), IMAGE)


class Quiet(Objective):
    """A user's own: keep features small."""

    def __init__(self, groups):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(groups))

    def forward(self, features, batch):
        power = features.square().flatten(1).view(len(features), len(self.scale), -1).mean((0, 2))
        total = self.scale * power
        return LocalLoss(total, {"power": total.detach()}, None)


@pytest.fixture
def quiet():
    return objectives.add("quiet", lambda given: Quiet(given.groups))


def test_a_users_own_objective_trains(quiet):
    config = RunConfig(model="tiny-resnet", depth=2, width=(2,), objective=ObjectiveConfig(loss="quiet"))
    network = build_network(config, IMAGE)
    steps = [LocalStep(m, build_optimizer(OptimizerConfig(learning_rate=0.01), m.parameters())) for m in network]
    data = small.batch_of(torch.randn(4, 3, 8, 8), torch.arange(4))
    before = InlineRuntime(steps).step(data, 0)[0].losses
    after = InlineRuntime(steps).step(data, 1)[0].losses
    assert [set(loss.terms) for loss in before] == [{"power"}, {"power"}, {"cross_entropy"}]
    assert after[0].total.sum() < before[0].total.sum()
    assert len(network.all_logits(data.images)) == 1


def test_a_detached_loss_keeps_its_values():
    total = torch.ones(2, requires_grad=True)
    loss = LocalLoss(total * 2, {"a": torch.ones(2)}, None).detached()
    assert loss.total.tolist() == [2.0, 2.0]
    assert not loss.total.requires_grad
    assert loss.logits is None


def test_children_of_an_objective_are_networks_of_the_features():
    """What costs and exports rely on."""
    for name in ("cross-entropy", "infopro", "predsim"):
        config = RunConfig(method="dgl", model="tiny-resnet", depth=2, objective=ObjectiveConfig(loss=name))
        module = next(iter(build_network(config, IMAGE)))
        features = module(torch.rand(4, 3, 8, 8))
        outputs = [child(features) for child in module.objective.children()]
        assert outputs
        assert module_under_test.Objective in type(module.objective).__mro__
