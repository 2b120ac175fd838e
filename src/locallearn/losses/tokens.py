"""Losses of every token: causal language models, and labels by token."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from locallearn.data.store import Batch
from locallearn.errors import ConfigError
from locallearn.losses.objectives import LocalLoss, Objective, ObjectiveInput, objectives
from locallearn.losses.scores import IGNORED
from locallearn.nn.heads import heads
from locallearn.nn.terminal_head import TerminalHead, TerminalOptions
from locallearn.nn.token_heads import SharedHead, TokenHead


def token_cross_entropy(logits_BTV: Tensor, labels_BT: Tensor, shift: bool) -> Tensor:
    """Mean cross entropy over tokens, computed in fp32; a scalar.

    Args:
        logits_BTV: scores of V classes for every token.
        labels_BT: classes, or -100 where a token does not count.
        shift: the label of token t is that of token t + 1: the labels are the inputs themselves, as in Hugging
            Face's causal language models.
    """
    if shift:
        logits_BTV, labels_BT = logits_BTV[:, :-1], labels_BT[:, 1:]
    return F.cross_entropy(logits_BTV.flatten(0, 1).float(), labels_BT.flatten(), ignore_index=IGNORED)


class TokenCrossEntropy(Objective):
    """Cross entropy of every token through a head of the module's own.

    Args:
        head: maps features [B, T, C] to logits [B, T, V].
        shift: as in :func:`token_cross_entropy`.
    """

    def __init__(self, head: nn.Module, shift: bool) -> None:
        super().__init__()
        self.head = head
        self.shift = shift

    def forward(self, features: Tensor, batch: Batch) -> LocalLoss:
        """Loss [1] of the node whose features are ``features``, [B, T, C]; labels are [B, T]."""
        total = token_cross_entropy(self.head(features), batch.labels, self.shift)[None]
        return LocalLoss(total, {"cross_entropy": total.detach()}, None)


def build_token_head(given: ObjectiveInput) -> nn.Module:
    """The head that the settings name, for tokens: ``shared``, ``terminal``, or the linear layers of ``<n>c<m>f``.

    Raises:
        ConfigError: the features are no tokens, or there is nothing to share.
    """
    name = given.config.head
    if len(given.shape) == 2 and name != "terminal":
        own = given.own_head(given.classes)
        if own is not None:
            return own
    if len(given.shape) != 2:
        raise ConfigError("objective.loss", "token", "another loss for features that are not B x T x C tokens")
    if name not in ("shared", "terminal"):
        return TokenHead(name, given.shape[1], given.classes, given.hidden)
    if given.scorer is None:
        raise ConfigError("objective.head", name, "another head for a model whose scores are not of a linear layer")
    if name == "shared":
        return SharedHead(given.shape[1], given.scorer)
    options: TerminalOptions = heads.options(name, given.config.head_options, "objective.head_options")
    causal = given.config.loss == "next-token"
    return TerminalHead(given.shape[1], given.scorer, options.blocks, causal, options.stale)


@objectives.register("next-token")
def next_token(given: ObjectiveInput) -> TokenCrossEntropy:
    """Causal language modelling: the label of a token is the next one."""
    return TokenCrossEntropy(build_token_head(given), shift=True)


@objectives.register("token")
def token(given: ObjectiveInput) -> TokenCrossEntropy:
    """A label for every token."""
    return TokenCrossEntropy(build_token_head(given), shift=False)
