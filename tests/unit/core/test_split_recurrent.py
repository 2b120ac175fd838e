"""Recurrent layers of users' own models: where their channels are, and that a stage may end after one."""

import pytest
import torch
from torch import nn

import locallearn as ll


class Tagger(nn.Module):
    """Two recurrent layers; with ``time_first`` they see [T, B, C]."""

    def __init__(self, kind, time_first):
        super().__init__()
        self.time_first = time_first
        self.embed = nn.Embedding(20, 8)
        self.first = kind(8, 6, bidirectional=True, batch_first=not time_first)
        self.second = kind(12, 12, batch_first=not time_first)
        self.out = nn.Linear(12, 3)

    def forward(self, x):
        x = self.embed(x)
        x, _ = self.first(x.transpose(0, 1) if self.time_first else x)
        x, _ = self.second(x)
        return self.out(x.mean(0 if self.time_first else 1))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_stage_may_end_after_a_recurrent_layer_whatever_its_order_of_axes(kind):
    draw = torch.Generator().manual_seed(0)
    batch = (torch.randint(20, (4, 7), generator=draw), torch.randint(3, (4,), generator=draw))
    losses = []
    for time_first in (False, True):
        torch.manual_seed(0)
        network = ll.split(Tagger(kind, time_first), depth=2, example=batch)
        first = network.stages[0].piece
        assert (first.path, first.layout.channels, first.layout.batch) == ("first", 2, int(time_first))
        losses.append({name: float(value) for name, value in network.step(batch).items()})
    assert losses[0] == pytest.approx(losses[1])
    assert losses[0]["loss/1"] != losses[0]["loss/2"]
