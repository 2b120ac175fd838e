"""The shared terminal readout: every module is scored by the model's own unembedding (SOLO)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from locallearn.config.own_parts import TerminalOptions
from locallearn.errors import ConfigError
from locallearn.nn.heads import HeadInput, heads
from locallearn.nn.token_heads import Readout, ReadsScorer
from locallearn.nn.vit import Attend, n_heads


class OwnBlock(nn.Module):
    """Self-attention and a multi-layer perceptron on tokens [B, T, C], each on what layer norm gives, and added.

    Args:
        width: C.
        causal: a token sees those before it and itself alone.
    """

    def __init__(self, width: int, causal: bool) -> None:
        super().__init__()
        attend = Attend(n_heads(width), causal)
        self.attention = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 3 * width), attend, nn.Linear(width, width)
        )
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Tokens of the same shape."""
        x_BTC = x_BTC + self.attention(x_BTC)
        return x_BTC + self.mlp(x_BTC)


class TerminalHead(ReadsScorer):
    r"""H own blocks, layer norm and a learnt temperature before the model's own unembedding (SOLO, arXiv 2609.35440).

    .. math:: W \, \mathrm{norm}(f(x)) \, e^{-t}

    with W the weights of the model's last linear layer, which are read and never trained from here, f the own
    blocks, and t learnt from 0. All modules so learn for the one readout that the model ends in. The weights may be
    some steps old, as in a process that is sent them only now and then.

    Args:
        channels: C.
        scorer: the model's last linear layer; it stays the model's.
        blocks: H.
        causal: whether tokens are scored on those before them, as the next token is.
        stale: read the weights every so many training steps; 0 reads them as they are.

    Shapes: input [B, T, C], output [B, T, V].
    """

    read: Tensor
    steps: Tensor

    def __init__(self, channels: int, scorer: nn.Linear, blocks: int, causal: bool, stale: int = 0) -> None:
        super().__init__(scorer)
        self.stale = stale
        self.blocks = nn.Sequential(*(OwnBlock(channels, causal) for _ in range(blocks)))
        self.norm = nn.LayerNorm(channels)
        self.temperature = nn.Parameter(torch.zeros(1))
        if stale:
            self.register_buffer("read", scorer.weight.detach().clone())
            self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Scores of every token."""
        scorer = self.scorer
        bias = None if scorer.bias is None else scorer.bias.detach()
        return F.linear(self.norm(self.blocks(x_BTC)), self._weight(scorer), bias) * (-self.temperature).exp()

    def readout(self, x_BTC: Tensor) -> Readout:
        """What the unembedding is given, times exp(-t), and its weights; a bias is one more column."""
        scorer = self.scorer
        hidden_BTC = self.norm(self.blocks(x_BTC)) * (-self.temperature).exp()
        if scorer.bias is None:
            return hidden_BTC, self._weight(scorer), None
        one_BT1 = (-self.temperature).exp().expand(*hidden_BTC.shape[:2], 1)
        weight_VC1 = torch.cat([self._weight(scorer), scorer.bias.detach()[:, None]], 1)
        return torch.cat([hidden_BTC, one_BT1], 2), weight_VC1, None

    def _weight(self, scorer: nn.Linear) -> Tensor:
        if not self.stale:
            return scorer.weight.detach()
        if self.training:
            if self.steps % self.stale == 0:
                self.read.copy_(scorer.weight.detach())
            self.steps += 1
        return self.read.clone()  # the graph keeps it, and a later step writes over the buffer


@heads.register("terminal", options=TerminalOptions)
def terminal(given: HeadInput) -> nn.Module:
    """Refuse the head where features are no tokens of a model that has an unembedding."""
    raise ConfigError("objective.head", "terminal", "another head for features that are not tokens, such as 1c2f")
