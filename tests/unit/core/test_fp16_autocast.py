"""``network.step`` under a caller's autocast to fp16: small gradients are not lost."""

import pytest
import torch
from torch import nn

import locallearn as ll


def _small(scores, values):
    return (scores.float() - values).square().mean() * 1e-6


def _network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    batch = torch.rand(16, 8), torch.rand(16, 1)
    network = ll.split(
        model, cuts=["1"], example=batch, objective=_small, optimizer=lambda p: torch.optim.SGD(p, lr=1e5)
    )
    return network, batch


def _moved(fp16, scaler=None):
    network, batch = _network()
    before = network.model[2].weight.detach().clone()
    for step in network.steps:
        step.scaler = scaler
    with torch.autocast("cpu", dtype=torch.float16, enabled=fp16):
        network.step(batch)
    return network.model[2].weight.detach() - before


def test_updates_are_those_of_fp32():
    torch.testing.assert_close(_moved(fp16=True), _moved(fp16=False), rtol=0.05, atol=1e-4)


def test_without_a_scaler_they_are_not():
    off = torch.amp.GradScaler("cpu", enabled=False)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(_moved(fp16=True, scaler=off), _moved(fp16=False), rtol=0.05, atol=1e-4)


def test_a_training_state_holds_the_scalers(tmp_path):
    network, batch = _network()
    with torch.autocast("cpu", dtype=torch.float16):
        network.step(batch)
    network.steps[0].scaler.update(1024.0)
    torch.save(network.training_state(), tmp_path / "state.pt")
    later, _ = _network()
    later.load_training_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [step.scaler.get_scale() for step in later.steps] == [1024.0, 65536.0]
