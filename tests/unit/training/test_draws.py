"""What a forward pass draws is seeded by the step, from whichever generator it draws."""

import random

import numpy as np
import pytest
import torch
from torch import nn

import locallearn as ll

DATA = [(torch.rand(4, 8, generator=torch.Generator().manual_seed(i)), torch.arange(4)) for i in range(3)]


class _Noise(nn.Module):
    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def forward(self, x):
        return x * (0.5 + self.draw())


def _by_numpy():
    return float(np.random.rand())


def _by_python():
    return random.random()


def _trained(draw, runtime, state, seed=0):
    torch.manual_seed(0)
    layers = [nn.Linear(8, 8), _Noise(draw), nn.Linear(8, 8), _Noise(draw), nn.Linear(8, 5)]
    network = ll.split(nn.Sequential(*layers), cuts=["1"], example=DATA[0])
    np.random.seed(state)
    random.seed(state)
    before = np.random.get_state()[2], random.getstate()
    trainer = ll.Trainer(network, runtime=runtime, seed=seed, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    trainer.fit(DATA, epochs=2)
    assert (np.random.get_state()[2], random.getstate()) == before
    return torch.cat([p.flatten() for p in network.merge().parameters()])


@pytest.mark.parametrize("draw", [_by_numpy, _by_python])
def test_draws_of_numpy_and_python_are_seeded_by_the_step(draw):
    weights = _trained(draw, "inline", 1)
    assert torch.equal(weights, _trained(draw, "inline", 2))
    assert torch.equal(weights, _trained(draw, "threads", 3))
    assert not torch.equal(weights, _trained(draw, "inline", 1, seed=1))
