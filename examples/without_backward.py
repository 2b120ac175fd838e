"""Learning without a backward pass through the network, beside backpropagation: what four rules reach.

A perceptron of two hidden layers (tanh; ReLU with Forward-Forward) on scikit-learn's digits, ten epochs each, one
setting for all.
Run it with: python examples/without_backward.py
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from locallearn.config import DataConfig
from locallearn.data.datasets import load
from locallearn.losses.without_backward import direct_feedback, forward_forward, goodness

WIDTH, CLASSES, EPOCHS = 200, 10, 10


def layers(inputs: int) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    return nn.Linear(inputs, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    found = load(DataConfig())
    train, test = found.train, found.test
    flat = [images.flatten(1).float() / 255 for images in (train.images, test.images)]
    return flat[0], train.labels, flat[1], test.labels


def with_error(rule: str) -> float:
    """Accuracy where hidden layers get their error by ``backprop``, by ``feedback`` or as ``targets``."""
    x, y, test_x, test_y = digits()
    first, second, last = layers(x.shape[1])
    optimizer = torch.optim.Adam([*first.parameters(), *second.parameters(), *last.parameters()], 1e-3)
    feedback = [torch.randn(WIDTH, CLASSES) / WIDTH**0.5 for _ in range(2)]
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(x)).split(32):
            labels = y[chosen]
            one = first(x[chosen]).tanh()
            two = second(one if rule == "backprop" else one.detach()).tanh()
            scores = last(two if rule == "backprop" else two.detach())
            loss = F.cross_entropy(scores, labels)
            if rule != "backprop":
                targets = F.one_hot(labels, CLASSES).float()
                errors = scores.softmax(1) - targets if rule == "feedback" else -targets
                loss = loss + sum(direct_feedback(h, errors, m) for h, m in zip((one, two), feedback, strict=True))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        scores = last(second(first(test_x).tanh()).tanh())
    return (scores.argmax(1) == test_y).float().mean().item()


def labelled(x: Tensor, labels: Tensor) -> Tensor:
    """Images with a label beside the pixels."""
    return torch.cat([x, F.one_hot(labels, CLASSES).float()], 1)


def unit(x: Tensor) -> Tensor:
    """Of length sqrt(n), so that a layer learns nothing from how good the one before it was."""
    return F.normalize(x, dim=1) * x.shape[1] ** 0.5


def without_error() -> float:
    """Accuracy of Forward-Forward: the label whose image is best in the second layer."""
    x, y, test_x, test_y = digits()
    first, second, _ = layers(x.shape[1] + CLASSES)
    optimizer = torch.optim.Adam([*first.parameters(), *second.parameters()], 1e-3)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(x)).split(32):
            wrong = (y[chosen] + torch.randint(1, CLASSES, (len(chosen),))) % CLASSES
            inputs = [labelled(x[chosen], labels) for labels in (y[chosen], wrong)]
            one = [first(unit(each)).relu() for each in inputs]
            two = [second(unit(each.detach())).relu() for each in one]
            optimizer.zero_grad()
            (forward_forward(*one) + forward_forward(*two)).backward()
            optimizer.step()
    with torch.no_grad():
        every = [labelled(test_x, torch.full((len(test_x),), label)) for label in range(CLASSES)]
        good = torch.stack([goodness(second(unit(first(unit(each)).relu())).relu()) for each in every])
    return (good.argmax(0) == test_y).float().mean().item()


for rule, what in (
    ("backprop", "backpropagation"),
    ("feedback", "direct feedback alignment"),
    ("targets", "direct random target projection"),
):
    print(f"{what:32s} {with_error(rule):.1%}")
print(f"{'Forward-Forward':32s} {without_error():.1%}")
