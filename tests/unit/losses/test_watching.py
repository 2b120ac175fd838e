"""Losses that watch a module at work: the transport penalty and the rebuilt input, against loops over blocks."""

import pytest
import torch
import torch.nn.functional as F

import reference_losses
import small
from locallearn.config import ObjectiveConfig
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.core.local_step import LocalStep
from locallearn.errors import ConfigError
from locallearn.losses.input_similarity import InputSimilarity
from locallearn.losses.objectives import Passage
from locallearn.losses.rebuilt_input import RebuiltInput
from locallearn.losses.trgl import transport
from locallearn.nn.decoder import InputDecoder
from locallearn.nn.init import initialise
from locallearn.nn.similarity import SimilarityHead

IMAGE = ImageShape(3, 8, 5)


def module_of(loss, options=None, method="dgl", depth=2, width=1, model="tiny-resnet"):
    head = "0c1f" if loss == "transport" else "1c2f"
    objective = ObjectiveConfig(loss=loss, options=options or {}, head=head)
    config = small.config(method, depth, (width,), objective=objective, model=model)
    return next(iter(build_network(config, IMAGE))).double()


def batch():
    torch.manual_seed(0)
    return small.batch_of(torch.randn(6, 3, 8, 8, dtype=torch.float64), torch.arange(6) % 5)


def residuals(module, x):
    """What the blocks of a module of tiny-resnet's stem and first block add, written out."""
    stem, block = module.blocks
    x = F.relu(stem.bn(stem.conv(x)))
    y = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
    return [y], F.relu(y + x)


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("tau", [1.0, 0.1])
def test_transport_adds_the_mean_squared_residuals(width, tau):
    module = module_of("transport", {"tau": tau}, "gn-dgl", width=width)
    data = batch()
    moves, features = residuals(module, data.images)
    out = module(data.images, data)
    torch.testing.assert_close(out.features, features)
    loss = module.loss(out, data)
    for g in range(width):
        expected = 0.0
        for move in moves:
            own = move.chunk(width, 1)[g]
            expected = expected + sum(value**2 for value in own.flatten()) / own.numel()
        alone = module.objective.inner(features, data).total[g]
        torch.testing.assert_close(loss.total[g], alone + expected / (2 * tau))
        torch.testing.assert_close(loss.terms["transport"][g], expected.detach())


def test_the_gradient_is_that_of_the_sum():
    module, data = module_of("transport"), batch()
    module.loss(module(data.images, data), data).total.sum().backward()
    found = {name: p.grad.clone() for name, p in module.named_parameters()}
    module.zero_grad()
    moves, features = residuals(module, data.images)
    (module.objective.inner(features, data).total.sum() + moves[0].square().mean() / 2).backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


def test_blocks_that_are_not_residual_move_by_their_difference():
    module, data = module_of("transport", model="tiny-vgg", depth=1 + 1), batch()
    out = module(data.images, data)
    assert out.moves == ()  # convolutions of other shapes
    assert "transport" not in module.loss(out, data).terms
    one, two = torch.tensor([[[[1.0]], [[2.0]]]]), torch.tensor([[[[3.0]], [[4.0]]]])
    assert transport((one, two), 1).tolist() == [2.5 + 12.5]
    assert transport((one, two), 2).tolist() == [1 + 9, 4 + 16]


def test_the_input_is_rebuilt_through_the_bottleneck():
    module, data = module_of("rebuilt-input", {"bottleneck": 2}), batch()
    loss = module.loss(module(data.images, data), data)
    features = module(data.images)
    norm, first, _, last = module.objective.decoder.layers
    assert (first.weight.shape, last.weight.shape) == ((4, 8), (3, 4))
    total = 0.0
    for b in range(6):
        for i in range(8):
            for j in range(8):
                inner = F.gelu(first(norm(features[b, :, i, j])))
                total = total + (last(inner) - data.images[b, :, i, j]).square().sum()
    torch.testing.assert_close(loss.total[0], total / data.images.numel())
    assert loss.logits is None


def test_a_smaller_map_is_enlarged_to_the_input():
    torch.manual_seed(0)
    inputs, features = torch.randn(2, 3, 4, 4), torch.randn(2, 8, 2, 2)
    objective = RebuiltInput(InputDecoder(8, 2, 3))
    loss = objective.of_passage(Passage(inputs, features, ()), small.batch_of(inputs, torch.zeros(2)))
    rebuilt = objective.decoder(features)
    expected = sum(
        (rebuilt[:, :, i // 2, j // 2] - inputs[:, :, i, j]).square().sum() for i in range(4) for j in range(4)
    )
    torch.testing.assert_close(loss.total[0], expected / inputs.numel())


def test_a_step_hands_on_features_and_learns():
    module, data = module_of("rebuilt-input"), batch()
    step = LocalStep(module, torch.optim.SGD(module.parameters(), 0.1))
    features, first = step(data.images, data)
    for _ in range(10):
        _, last = step(data.images, data)
    assert features.shape == (6, 8, 8, 8)
    assert last.total < first.total


def test_what_cannot_be_watched_is_one_line():
    with pytest.raises(ConfigError, match=r"objective.options.of: 'transport' is not valid"):
        module_of("transport", {"of": "transport"})
    with pytest.raises(ConfigError, match=r"width: 2 is not valid; expected 1 with rebuilt-input"):
        module_of("rebuilt-input", method="gn-dgl", width=2)


def plain_vectors(x):
    """The standard deviation over positions of every channel, written out."""
    found = []
    for image in x:
        positions = image.flatten(1)
        mean = positions.sum(1) / positions.shape[1]
        found.append((((positions - mean[:, None]) ** 2).sum(1) / (positions.shape[1] - 1)).sqrt())
    return torch.stack(found)


@pytest.mark.parametrize("channels", [3, 5])
def test_similarities_of_features_are_to_be_those_of_the_input(channels):
    """Pair by pair; a picture of three channels is compared pixel by pixel. Each of two groups has its own loss."""
    torch.manual_seed(0)
    inputs, features = (torch.randn(6, c, 4, 4, dtype=torch.float64) for c in (channels, 8))
    head = SimilarityHead((8, 4, 4), 2, False)
    initialise(head, 2, 0, "1", "head")
    objective = InputSimilarity(head.double(), 2)
    features.requires_grad_()
    loss = objective.of_passage(Passage(inputs.requires_grad_(), features, ()), small.batch_of(inputs, None))
    given = inputs.flatten(1) if channels == 3 else plain_vectors(inputs)
    wanted = reference_losses.plain_similarity(given)
    for g in range(2):
        own = F.conv2d(features[:, 4 * g : 4 * g + 4], head.layer.weight[4 * g : 4 * g + 4], padding=1)
        found = reference_losses.plain_similarity(plain_vectors(own))
        expected = sum((found[i, j] - wanted[i, j]) ** 2 for i in range(6) for j in range(6)) / 36
        torch.testing.assert_close(loss.total[g], expected)
    loss.total.sum().backward()
    assert inputs.grad is None
    assert features.grad.abs().sum() > 0
    assert loss.logits is None


def test_similarity_without_labels_needs_something_to_compare():
    module, data = module_of("input-similarity"), batch()
    assert module.loss(module(data.images, data), data).total.item() > 0
    assert module.objective(module(data.images), data).total.tolist() == [0.0]
    expected = "objective.diversity_weight: 0.5 is not valid; expected 0 with objective.loss input-similarity"
    with pytest.raises(ConfigError, match=expected):
        module_of("input-similarity", method="gn-dgl", width=2)
