"""Losses of every token: causal language models, and labels by token."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from locallearn.config.own_parts import TokenOptions
from locallearn.data.store import Batch
from locallearn.errors import ConfigError
from locallearn.losses.chunked import linear_cross_entropy
from locallearn.losses.objectives import LocalLoss, Objective, ObjectiveInput, objectives
from locallearn.losses.scores import IGNORED
from locallearn.nn.heads import heads
from locallearn.nn.precision import precise
from locallearn.nn.terminal_head import TerminalHead, TerminalOptions
from locallearn.nn.token_heads import SharedHead, TokenHead


def token_cross_entropy(logits_BTV: Tensor, labels_BT: Tensor, shift: bool) -> Tensor:
    """Mean cross entropy over tokens, computed in at least fp32; a scalar.

    Args:
        logits_BTV: scores of V classes for every token.
        labels_BT: classes, or -100 where a token does not count.
        shift: the label of token t is that of token t + 1: the labels are the inputs themselves, as in Hugging
            Face's causal language models.
    """
    if shift:
        logits_BTV, labels_BT = logits_BTV[:, :-1], labels_BT[:, 1:]
    return F.cross_entropy(precise(logits_BTV.flatten(0, 1)), labels_BT.flatten(), ignore_index=IGNORED)


class TokenCrossEntropy(Objective):
    """Cross entropy of every token, or of some drawn at random, through a head of the module's own.

    Args:
        head: maps features [B, T, C] to logits [B, T, V]. Where options are not at their defaults it has a method
            ``readout`` that gives what its last linear layer is given [B, T, H], and the layer's weight and bias.
        shift: as in ``token_cross_entropy``.
        options: which tokens, and how many scores at a time.
    """

    def __init__(self, head: nn.Module, shift: bool, options: TokenOptions | None = None) -> None:
        super().__init__()
        self.head = head
        self.shift = shift
        self.options = options or TokenOptions()

    def forward(self, features: Tensor, batch: Batch) -> LocalLoss:
        """Loss [1] of the node whose features are ``features``, [B, T, C]; labels are [B, T]."""
        positions = self.options.positions if self.training else 1.0
        if positions == 1 and not self.options.chunk:
            total = token_cross_entropy(self.head(features), batch.labels, self.shift)[None]
        else:
            total = self._of_some(features, batch.labels, positions)[None]
        return LocalLoss(total, {"cross_entropy": total.detach()}, None)

    def _of_some(self, features: Tensor, labels_BT: Tensor, positions: float) -> Tensor:
        head: Any = self.head
        hidden_BTH, weight, bias = head.readout(features)
        hidden_NH, labels_N = by_token(hidden_BTH, labels_BT, self.shift)
        if positions < 1:
            drawn = draw_tokens(labels_N, positions)
            hidden_NH, labels_N = hidden_NH[drawn], labels_N[drawn]
        if self.options.chunk:
            return linear_cross_entropy(hidden_NH, weight, bias, labels_N, self.options.chunk)
        return F.cross_entropy(precise(F.linear(hidden_NH, weight, bias)), labels_N, ignore_index=IGNORED)


def by_token(x_BTC: Tensor, labels_BT: Tensor, shift: bool) -> tuple[Tensor, Tensor]:
    """Tokens [N, C] with their labels [N], the next token's where ``shift``."""
    if shift:
        x_BTC, labels_BT = x_BTC[:, :-1], labels_BT[:, 1:]
    return x_BTC.flatten(0, 1), labels_BT.flatten()


def draw_tokens(labels_N: Tensor, share: float) -> Tensor:
    """Indices of ceil(share N) tokens, drawn at random; those whose label does not count come last."""
    order_N = torch.rand(len(labels_N), device=labels_N.device) + (labels_N == IGNORED)
    return order_N.topk(math.ceil(share * len(labels_N)), largest=False).indices


_OF_MAPS = ("flat", "mlp-sr", "patches", "wide-projector")
"""Heads of the package's own that give one vector."""


def build_token_head(given: ObjectiveInput) -> nn.Module:
    """The head that the settings name, for tokens: ``shared``, ``terminal``, or the linear layers of ``<n>c<m>f``.

    Raises:
        ConfigError: the features are no tokens, or there is nothing to share.
    """
    if len(given.shape) != 2:
        expected = "another loss, like cross-entropy, for features that are not B x T x C tokens"
        raise ConfigError("objective.loss", given.config.loss or "token", expected)
    name = given.config.head
    if name in _OF_MAPS and given.make_head is None:
        expected = "0c1f or another <n>c<m>f, shared, terminal, auglocal or momentum where every token is scored"
        raise ConfigError("objective.head", name, expected)
    if name != "terminal":
        own = given.own_head(given.classes)
        if own is not None:
            return own
    if name not in ("shared", "terminal"):
        return TokenHead(name, given.shape[1], given.classes, given.hidden)
    if given.scorer is None:
        raise ConfigError("objective.head", name, "another head for a model whose scores are not of a linear layer")
    if name == "shared":
        return SharedHead(given.shape[1], given.scorer)
    options: TerminalOptions = heads.options(name, given.config.head_options, "objective.head_options")
    causal = given.config.loss == "next-token"
    return TerminalHead(given.shape[1], given.scorer, options.blocks, causal, options.stale)


def _objective(given: ObjectiveInput, shift: bool) -> TokenCrossEntropy:
    head, options = build_token_head(given), given.options
    if options != TokenOptions() and not hasattr(head, "readout"):
        expected = "no options with a head of your own, which scores all tokens at once and keeps its scores"
        raise ConfigError("objective.options", options, expected)
    return TokenCrossEntropy(head, shift, options)


@objectives.register("next-token", options=TokenOptions)
def next_token(given: ObjectiveInput) -> TokenCrossEntropy:
    """Causal language modelling: the label of a token is the next one."""
    return _objective(given, shift=True)


@objectives.register("token", options=TokenOptions)
def token(given: ObjectiveInput) -> TokenCrossEntropy:
    """A label for every token."""
    return _objective(given, shift=False)
