"""Learning without backward passes, against loops, and against backpropagation where the two must be the same."""

import math

import torch
import torch.nn.functional as F
from torch import nn

import small
from locallearn.config import ObjectiveConfig
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.losses.without_backward import direct_feedback, forward_forward


def two_layers():
    torch.manual_seed(0)
    first, last = nn.Linear(6, 8).double(), nn.Linear(8, 4, bias=False).double()
    return first, last, torch.randn(5, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0])


def gradients(feedback):
    """Of the first layer by direct feedback, and by backpropagation of the cross entropy."""
    first, last, x, labels = two_layers()
    hidden = torch.tanh(first(x))
    errors = last(hidden.detach()).softmax(1) - F.one_hot(labels, 4)
    (local,) = torch.autograd.grad(direct_feedback(hidden, errors, feedback(last)), first.weight)
    (exact,) = torch.autograd.grad(F.cross_entropy(last(torch.tanh(first(x))), labels), first.weight)
    return local, exact


def test_feedback_by_the_layers_own_weights_is_backpropagation():
    torch.testing.assert_close(*gradients(lambda last: last.weight.detach().T))


def test_feedback_by_random_weights_is_not():
    local, exact = gradients(lambda last: torch.randn(8, 4, dtype=torch.float64))
    assert not torch.allclose(local, exact, rtol=0.1)


def test_forward_forward_is_the_loop():
    torch.manual_seed(0)
    positive, negative = torch.randn(3, 5), torch.randn(3, 5)
    total = 0.0
    for rows, sign in ((positive, -1), (negative, 1)):
        for row in rows:
            good = sum(value.item() ** 2 for value in row) / 5
            total += math.log(1 + math.exp(sign * (good - 0.7))) / 3
    assert math.isclose(forward_forward(positive, negative, 0.7).item(), total, rel_tol=1e-5)
    summed = forward_forward(positive, negative, of="sum")
    logits = torch.cat([positive.square().sum(1) - 5, negative.square().sum(1) - 5])
    told = F.binary_cross_entropy_with_logits(logits, torch.tensor([1.0] * 3 + [0.0] * 3))
    torch.testing.assert_close(summed, 2 * told)
    assert not torch.isclose(forward_forward(positive, negative), summed)


def test_random_targets_pull_features_along_the_labels_directions():
    objective = ObjectiveConfig(loss="random-targets", diversity_weight=0.0)
    config = small.config("gn-dgl", 2, (2,), objective=objective)
    module = next(iter(build_network(config, ImageShape(3, 8, 5)))).double()
    images, labels = torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    features = module(images)
    loss = module.objective(features, small.batch_of(images, labels))
    (gradient,) = torch.autograd.grad(loss.total.sum(), features)
    feedback = module.objective.feedback
    assert feedback.shape == (8 * 8 * 8, 5)
    assert feedback.abs().max() <= (6 / 512) ** 0.5
    assert math.isclose(feedback.std().item(), (2 / 512) ** 0.5, rel_tol=0.05)
    for b, label in enumerate(labels):
        torch.testing.assert_close(gradient[b].flatten(), -feedback[:, label] / 4)
    for g in range(2):
        own = features.flatten(1).chunk(2, 1)[g]
        expected = -sum(own[b] @ feedback.chunk(2)[g][:, label] for b, label in enumerate(labels)) / 4
        torch.testing.assert_close(loss.total[g], expected)
    assert loss.logits is None


def test_the_weights_depend_on_the_seed_and_the_module_alone():
    objective = ObjectiveConfig(loss="random-targets")
    drawn = [
        [m.objective.feedback for m in build_network(small.config("dgl", 3, (1,), objective=objective, seed=s),
                                                     ImageShape(3, 8, 5)) if m.name != "3"]
        for s in (0, 0, 1)
    ]  # fmt: skip
    assert torch.equal(drawn[0][0], drawn[1][0])
    assert not torch.equal(drawn[0][0], drawn[2][0])
    assert not torch.equal(drawn[0][0], drawn[0][1])
