"""No gradient crosses a cut or a group."""

import pytest
import torch

import small
from locallearn.config import ObjectiveConfig, OptimizerConfig, RunConfig
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.core.local_step import LocalStep
from locallearn.runtime.inline import InlineRuntime
from locallearn.training.optim import build_optimizer

IMAGE = ImageShape(3, 8, 5)


def batch():
    torch.manual_seed(0)
    return torch.randn(8, 3, 8, 8), torch.arange(8) % 5


def network_of(depth=3, width=2, **objective):
    config = RunConfig(
        method="gn-dgl", model="tiny-resnet", depth=depth, width=(width,), objective=ObjectiveConfig(**objective)
    )
    return build_network(config, IMAGE)


def gradients_after_step(network):
    """Every module's gradients on one batch; the learning rate is 0, so weights stay."""
    x, y = batch()
    optimizer = OptimizerConfig(learning_rate=0.0)
    InlineRuntime([LocalStep(m, build_optimizer(optimizer, m.parameters())) for m in network]).step(
        small.batch_of(x, y), 0
    )
    return [{name: p.grad.clone() for name, p in m.named_parameters()} for m in network]


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def scramble(parameters):
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn_like(parameter))


@pytest.mark.parametrize("changed", [1, 2, 3])
def test_a_later_module_does_not_change_an_earlier_nodes_gradients(changed):
    before = gradients_after_step(network_of())
    network = network_of()
    scramble(network.stages[changed].parameters())
    after = gradients_after_step(network)
    assert all(same(before[k], after[k]) for k in range(changed))
    assert not same(before[changed], after[changed])


def test_a_planted_leak_across_a_cut_is_caught():
    """Without the detach of a module's output the later loss reaches the earlier module."""
    network = network_of()
    x, y = batch()
    features, leaked = x, []
    for module in network:
        features = module(features)  # the planted error: no detach
        leaked.append(module.objective(features, small.batch_of(x, y)).total.sum())
    last = torch.autograd.grad(leaked[-1], list(network.stages[0].blocks.parameters()), allow_unused=True)
    assert any(g is not None and g.abs().sum() > 0 for g in last)


def test_the_steps_output_has_no_graph():
    network = network_of()
    x, y = batch()
    for module in network:
        x, loss = LocalStep(module, build_optimizer(OptimizerConfig(), module.parameters()))(x, small.batch_of(x, y))
        assert x.grad_fn is None
        assert not x.requires_grad
        assert not loss.total.requires_grad


def rows_with_gradient(module, loss, group):
    """Which groups' rows get a non-zero gradient from one node's loss, over all parameters."""
    gradients = torch.autograd.grad(
        loss.total[group], list(module.parameters()), retain_graph=True, allow_unused=True
    )
    touched = set()
    for gradient in gradients:
        if gradient is not None:
            touched |= {g for g, rows in enumerate(gradient.chunk(module.groups)) if rows.abs().sum() > 0}
    return touched


@pytest.mark.parametrize("stop_gradient", [True, False])
@pytest.mark.parametrize("diversity", [0.0, 0.5])
def test_a_nodes_loss_reaches_its_own_rows_only(stop_gradient, diversity):
    network = network_of(2, 4, stop_gradient=stop_gradient, diversity_weight=diversity)
    x, y = batch()
    for module in network:
        features = module(x)
        loss = module.objective(features, small.batch_of(x, y))
        for group in range(module.groups):
            assert rows_with_gradient(module, loss, group) == {group}
        x = features.detach()


def test_a_planted_leak_between_groups_is_caught(monkeypatch):
    from locallearn.nn import heads

    network = network_of(2, 4, head="0c2f")
    monkeypatch.setattr(heads, "stop_gradient_vectors", lambda x, g: x[None].expand(g, *x.shape))
    x, y = batch()
    module = network.stages[0]
    assert rows_with_gradient(module, module.objective(module(x), small.batch_of(x, y)), 1) == {0, 1, 2, 3}


def test_with_naive_splitting_another_group_changes_nothing():
    """Without communication a node's gradients do not depend on the other groups of its module at all."""
    before = gradients_after_step(network_of(1, 2, stop_gradient=False, diversity_weight=0.0))
    network = network_of(1, 2, stop_gradient=False, diversity_weight=0.0)
    module = network.stages[0]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.chunk(2)[1].mul_(1.7)
    after = gradients_after_step(network)
    for name, gradient in before[0].items():
        assert torch.equal(gradient.chunk(2)[0], after[0][name].chunk(2)[0]), name
    assert any(not torch.equal(g.chunk(2)[1], after[0][n].chunk(2)[1]) for n, g in before[0].items())


def test_with_stop_gradient_another_groups_features_are_seen():
    """Communication is forward: the other group's weights do change a node's loss."""
    x, y = batch()
    network = network_of(1, 2)
    module = network.stages[0]
    before = module.objective(module(x), small.batch_of(x, y)).total[0].item()
    with torch.no_grad():
        for parameter in module.blocks.parameters():
            parameter.chunk(2)[1].mul_(1.7)
    assert module.objective(module(x), small.batch_of(x, y)).total[0].item() != before
