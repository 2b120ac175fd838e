import pytest
import torch

import small
from locallearn.config import OptimizerConfig, RunConfig
from locallearn.core.assembly import build_network
from locallearn.core.clipping import clip_gradients, per_node
from locallearn.core.image_shape import ImageShape
from locallearn.core.local_step import LocalStep
from locallearn.nn.native import build
from locallearn.training.optim import build_optimizer

IMAGE = ImageShape(3, 8, 5)


def module_with_gradients():
    network = build_network(RunConfig(method="gn-dgl", model="tiny-resnet", depth=2, width=(2,)), IMAGE)
    module = network.stages[0]
    batch = small.batch_of(torch.randn(8, 3, 8, 8), torch.arange(8) % 5)
    (module.objective(module(batch.images), batch).total * torch.tensor([1.0, 50.0])).sum().backward()
    return module


def norms(module):
    """The gradient norm of each node, in a slow loop."""
    return [
        sum(p.grad.chunk(2)[g].double().pow(2).sum().item() for p in module.parameters()) ** 0.5 for g in range(2)
    ]


def test_clipping_is_by_node():
    """A node with large gradients is scaled down to the limit, its neighbour keeps its own."""
    module = module_with_gradients()
    before, limit = norms(module), 0.0
    limit = (before[0] * before[1]) ** 0.5
    assert before[0] < limit < before[1]
    kept = [p.grad.chunk(2)[0].clone() for p in module.parameters()]
    clip_gradients(module.parameters(), module.groups, limit)
    assert norms(module) == pytest.approx([before[0], limit], rel=1e-4)
    assert all(torch.equal(a, p.grad.chunk(2)[0]) for a, p in zip(kept, module.parameters(), strict=True))


def test_one_norm_for_all_nodes_would_be_caught():
    module = module_with_gradients()
    before = norms(module)
    torch.nn.utils.clip_grad_norm_(module.parameters(), (before[0] * before[1]) ** 0.5)
    assert norms(module)[0] != pytest.approx(before[0], rel=1e-4)


def test_a_value_a_node_is_spread_over_its_rows():
    spread = per_node(torch.tensor([2.0, 3.0]), torch.empty(4, 5, 3, 3))
    assert spread.shape == (4, 1, 1, 1)
    assert spread.flatten().tolist() == [2.0, 2.0, 3.0, 3.0]


def test_a_step_uses_its_clipping():
    batch = small.batch_of(torch.randn(8, 3, 8, 8), torch.arange(8) % 5)
    moved = []
    for clip in (0.0, 1e-3):
        network = build_network(RunConfig(method="e2e", model="tiny-resnet"), IMAGE)
        module = network.stages[0]
        before = [p.detach().clone() for p in module.parameters()]
        config = OptimizerConfig(learning_rate=1.0, momentum=0.0, nesterov=False, weight_decay=0.0)
        LocalStep(module, build_optimizer(config, module.parameters()), clip_norm=clip)(batch.images, batch)
        squares = [(p - b).pow(2).sum() for p, b in zip(module.parameters(), before, strict=True)]
        moved.append(sum(squares).sqrt().item())
    assert moved[1] == pytest.approx(1e-3, rel=1e-2)
    assert moved[0] > 0.1


def test_dropout_depends_on_seed_and_step_alone():
    def features(seed, index, noise):
        network = build_network(RunConfig(method="e2e", model="tiny-vgg", dropout=0.5), IMAGE)
        module = network.stages[0]
        torch.manual_seed(noise)
        state = torch.get_rng_state()
        step = LocalStep(module, build_optimizer(OptimizerConfig(), module.parameters()), seed=seed)
        x = torch.ones(4, 3, 8, 8)
        out, _ = step(x, small.batch_of(x, torch.zeros(4, dtype=torch.int64)), index)
        assert torch.equal(torch.get_rng_state(), state)  # the user's generator is left alone
        return out

    first = features(1, 7, 0)
    assert torch.equal(first, features(1, 7, 99))
    assert not torch.equal(first, features(1, 8, 0))
    assert not torch.equal(first, features(2, 7, 0))


LAYOUTS = (torch.contiguous_format, torch.channels_last)


def features_of(module, images):
    return [module(images.contiguous(memory_format=layout)).detach() for layout in LAYOUTS]


def test_contiguous_images_reach_our_kernels():
    """What the kernels compute is the same to the bit and channels-last, whatever the layout of the images."""
    module = build_network(RunConfig(method="gn-dgl", model="resnet8", depth=2, width=(2,)), IMAGE).stages[0]
    if not build.kernels().libraries:
        pytest.skip("needs kernels of our own")
    given, last = features_of(module, torch.randn(8, 3, 8, 8))
    assert given.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(given, last)


def test_a_module_that_keeps_the_layout_would_not():
    module = build_network(RunConfig(method="gn-dgl", model="resnet8", depth=2, width=(2,)), IMAGE).stages[0]
    module.lay_out(channels_last=False)
    given, last = features_of(module, torch.randn(8, 3, 8, 8))
    assert given.is_contiguous()
    torch.testing.assert_close(given, last.contiguous())
