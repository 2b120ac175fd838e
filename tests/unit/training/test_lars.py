"""LARS equals a slow loop of the paper's equations over nodes of their own."""

import math

import pytest
import torch

from locallearn.config import OptimizerConfig
from locallearn.training.optim import build_optimizer

SHAPES = ((8, 3, 3, 3), (8, 5), (8,))
SETTINGS = {"learning_rate": 0.7, "momentum": 0.9, "weight_decay": 0.05}


def slow(weights, gradients, steps, vectors, trust=0.002):
    """You et al. (2017), Algorithm 1, number by number, of one node."""
    velocity = [0.0] * len(weights)
    for step in range(steps):
        gradient = gradients[step]
        scale, decay = 1.0, 0.0
        if vectors is not None:
            decay = SETTINGS["weight_decay"]
            w, g = (math.sqrt(sum(x * x for x in values)) for values in (weights, gradient))
            scale = trust * w / (g + decay * w) if w and g else 1.0
        for i, (x, y) in enumerate(zip(weights, gradient, strict=True)):
            velocity[i] = SETTINGS["momentum"] * velocity[i] + SETTINGS["learning_rate"] * scale * (y + decay * x)
        weights = [x - v for x, v in zip(weights, velocity, strict=True)]
    return weights


def trained(groups, vectors, told=None):
    draw = torch.Generator().manual_seed(3)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=draw, dtype=torch.float64)) for shape in SHAPES]
    with torch.no_grad():
        parameters[1][:4] = 0  # a node whose weights are zero
    start = [parameter.detach().clone() for parameter in parameters]
    options = {"trust": 0.002, "eps": 0.0, "vectors": vectors}
    config = OptimizerConfig("lars", **SETTINGS, options=options)
    optimizer = build_optimizer(config, parameters, groups if told is None else told)
    gradients = []
    for _ in range(4):
        gradients.append([torch.randn(shape, generator=draw, dtype=torch.float64) for shape in SHAPES])
        gradients[-1][0][4:] *= 50  # another size in another node
        for parameter, gradient in zip(parameters, gradients[-1], strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    return start, gradients, parameters


def furthest(groups, vectors, told=None):
    """The largest difference from the loop."""
    start, gradients, parameters = trained(groups, vectors, told)
    worst = 0.0
    for i, parameter in enumerate(parameters):
        for rows in torch.arange(8).chunk(groups):
            own = [each[i][rows].flatten().tolist() for each in gradients]
            adapted = True if parameter.dim() > 1 or vectors else None
            expected = torch.tensor(slow(start[i][rows].flatten().tolist(), own, 4, adapted), dtype=torch.float64)
            worst = max(worst, (parameter.detach()[rows].flatten() - expected).abs().max().item())
    return worst


@pytest.mark.parametrize("vectors", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_every_node_is_updated_as_if_it_were_alone(groups, vectors):
    assert furthest(groups, vectors) < 1e-12


def test_norms_over_all_groups_would_not_pass():
    assert furthest(2, False, told=1) > 1e-4
