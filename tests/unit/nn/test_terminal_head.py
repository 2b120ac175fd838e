"""The shared terminal readout: its equation, what it trains, and how old the weights are that it reads."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import locallearn as ll
from locallearn.config import ObjectiveConfig
from locallearn.errors import ConfigError
from locallearn.nn.heads import build_head
from locallearn.nn.terminal_head import TerminalHead


def test_scores_are_those_of_the_unembedding():
    torch.manual_seed(0)
    scorer = nn.Linear(8, 5)
    head = TerminalHead(8, scorer, blocks=0, causal=True)
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        head.temperature.fill_(0.7)
    expected = (F.layer_norm(x, (8,)) @ scorer.weight.T + scorer.bias) / torch.tensor(0.7).exp()
    torch.testing.assert_close(head(x), expected)
    head(x).sum().backward()
    assert scorer.weight.grad is None
    assert scorer.bias.grad is None
    assert head.temperature.grad.abs() > 0


@pytest.mark.parametrize("causal", [True, False])
def test_causal_blocks_see_no_later_token(causal):
    torch.manual_seed(0)
    head = TerminalHead(8, nn.Linear(8, 5), blocks=2, causal=causal)
    x = torch.randn(1, 4, 8)
    other = x.clone()
    other[0, 3] = torch.randn(8)
    same = torch.isclose(head(x)[0], head(other)[0]).all(1)
    assert same.tolist() == [causal] * 3 + [False]


def test_weights_may_be_some_steps_old():
    scorer = nn.Linear(4, 3, bias=False)
    head = TerminalHead(4, scorer, blocks=0, causal=True, stale=3)
    x, versions = torch.randn(1, 1, 4), []
    for step in range(7):
        with torch.no_grad():
            scorer.weight.fill_(float(step))
        head(x)
        versions.append(head.read[0, 0].item())
    assert versions == [0, 0, 0, 3, 3, 3, 6]
    head.eval()(x)
    assert head.read[0, 0].item() == 6
    assert head.steps == 7


class Language(nn.Module):
    """Three blocks between an embedding and an unembedding."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 16)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.ReLU()) for _ in range(3)))
        self.out = nn.Linear(16, 6)

    def forward(self, ids):
        return self.out(self.blocks(self.embed(ids)))


def test_a_users_model_learns_through_it():
    torch.manual_seed(0)
    ids = torch.arange(12).repeat(8, 1) % 6
    settings = ObjectiveConfig(head="terminal", head_options={"blocks": 1, "stale": 2})
    network = ll.split(
        Language(),
        example=(ids, ids),
        cuts=["blocks.0", "blocks.1"],
        objective="next-token",
        head="terminal",
        settings=settings,
        optimizer=lambda parameters: torch.optim.Adam(parameters, 1e-2),
    )
    losses = [network.step((ids, ids)) for _ in range(40)]
    for k in (1, 2, 3):
        assert losses[-1][f"loss/{k}"] < 0.3 * losses[0][f"loss/{k}"]


def test_maps_have_no_such_head():
    with pytest.raises(ConfigError, match="objective.head: 'terminal' is not valid; expected another head"):
        build_head("terminal", (8, 4, 4), 5)
