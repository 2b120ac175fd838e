"""Auxiliary heads that score every token."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from locallearn.nn.groups import GroupLinear
from locallearn.nn.heads import parse_head

Readout = tuple[Tensor, Tensor, Tensor | None]
"""What a head's last linear layer is given [B, T, H], and the layer's weight [V, H] and bias [V]."""


class TokenHead(nn.Module):
    """Layer norm, then the linear layers of ``<n>c<m>f`` with ReLU between, for every token.

    ``0c1f`` is an unembedding of the module's own.

    Args:
        name: of the head; tokens have nothing to convolve, so only its linear layers are used.
        channels: C.
        outputs: V, scores of a token.
        hidden: hidden units of the linear layers.

    Shapes: input [B, T, C], output [B, T, V].
    """

    def __init__(self, name: str, channels: int, outputs: int, hidden: int) -> None:
        super().__init__()
        _, n_linears = parse_head(name)
        self.norm = nn.LayerNorm(channels)
        self.linears = nn.Sequential()
        for i in range(n_linears):
            last = i == n_linears - 1
            self.linears.append(GroupLinear(1, hidden if i else channels, outputs if last else hidden))
            if not last:
                self.linears.append(nn.ReLU(inplace=True))

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Scores of every token."""
        return self.linears(self.norm(x_BTC).flatten(0, 1)[None])[0].unflatten(0, x_BTC.shape[:2])

    def readout(self, x_BTC: Tensor) -> Readout:
        """What the last linear layer is given, and the layer."""
        *before, last = self.linears
        hidden_1NH = self.norm(x_BTC).flatten(0, 1)[None]
        for layer in before:
            hidden_1NH = layer(hidden_1NH)
        assert isinstance(last, GroupLinear)
        return hidden_1NH[0].unflatten(0, x_BTC.shape[:2]), last.weight, last.bias


class ReadsScorer(nn.Module):
    """A head that reads the model's last linear layer, which stays the model's: it is never trained from here.

    Args:
        scorer: the layer.
    """

    def __init__(self, scorer: nn.Linear) -> None:
        super().__init__()
        self._scorer = (scorer,)  # in a tuple, so that its weights are not registered a second time

    @property
    def scorer(self) -> nn.Linear:
        """The layer."""
        return self._scorer[0]

    @contextlib.contextmanager
    def reading(self, other: nn.Linear) -> Iterator[None]:
        """While it lasts another layer is read, such as a copy in a process that has nothing of the model's end."""
        own, self._scorer = self._scorer, (other,)
        try:
            yield
        finally:
            self._scorer = own


class SharedHead(ReadsScorer):
    """Layer norm of the module's own, then the model's unembedding, which is read and never trained from here.

    Args:
        channels: C.
        scorer: the model's last linear layer; it stays the model's and is no part of this head's weights.

    Shapes: input [B, T, C], output [B, T, V].
    """

    def __init__(self, channels: int, scorer: nn.Linear) -> None:
        super().__init__(scorer)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Scores of every token."""
        return F.linear(*self.readout(x_BTC))

    def readout(self, x_BTC: Tensor) -> Readout:
        """What the unembedding is given, and its weights, detached."""
        scorer = self.scorer
        return self.norm(x_BTC), scorer.weight.detach(), None if scorer.bias is None else scorer.bias.detach()
