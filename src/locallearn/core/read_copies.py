"""Copies of weights that other stages train, for a stage of a user's model that computes without them."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from locallearn.core.placed import move
from locallearn.losses.objectives import Objective
from locallearn.nn.copies import copied
from locallearn.nn.momentum import MomentumHead
from locallearn.nn.token_heads import ReadsScorer


class ReadCopies:
    """What a stage that computes alone reads of others: tied weights, and what its heads look at.

    Args:
        number: of the stage, counted from 0.
        model: the whole model.
        objective: the stage's, whose heads read.
        reads: the stage's ``reads``, which ``make`` fills.
    """

    def __init__(
        self,
        number: int,
        model: nn.Module,
        objective: Objective,
        reads: dict[int, list[tuple[nn.Parameter, nn.Parameter]]],
    ) -> None:
        self._number, self._model, self._objective, self._reads = number, model, objective, reads
        self._scorers: dict[ReadsScorer, nn.Linear] = {}
        self._followed: dict[MomentumHead, nn.Module] = {}
        self._of_heads: list[tuple[str, nn.Parameter]] = []

    def make(
        self, view: nn.Module, tied: Sequence[str], owners: Mapping[str, int], device: torch.device | None
    ) -> None:
        """Copy what the stage reads.

        Args:
            view: the model's modules for this stage alone; its ``tied`` weights are copies already.
            tied: names of weights of the model that the stage uses and an earlier one trains.
            owners: which stage, counted from 0, trains a parameter.
            device: the stage's own one, where it has one.
        """
        self._reads.clear()
        self._of_heads.clear()
        for name in tied:
            pair = self._model.get_parameter(name), view.get_parameter(name)
            self._reads.setdefault(owners[name], []).append(pair)
        names = {id(self._model.get_parameter(name)): name for name in owners}
        heads = [part for part in self._objective.modules() if isinstance(part, ReadsScorer)]
        self._scorers = {part: self._copied_scorer(part.scorer, names, owners, device) for part in heads}
        for head, block in self.followed():
            self._follow_copy(head, block, names, owners, device)

    def followed(self) -> list[tuple[MomentumHead, nn.Module]]:
        """Heads that follow a block of the next stage, and the block in the whole model."""
        following = [part for part in self._objective.modules() if isinstance(part, MomentumHead) and part.followed]
        return [(head, self._followed.setdefault(head, cast(nn.Module, head.followed))) for head in following]

    def _copied_scorer(
        self, scorer: nn.Linear, names: Mapping[int, str], owners: Mapping[str, int], device: torch.device | None
    ) -> nn.Linear:
        """The layer, for a head of the stage, with a copy of what other stages train of it."""
        here = self._number
        others = {id(p): names[id(p)] for p in scorer.parameters() if owners.get(names.get(id(p), ""), here) != here}
        here_already = [p for p in scorer.parameters() if id(p) not in others and device in (None, p.device)]
        layer = copy.deepcopy(scorer, {id(p): p for p in here_already})
        if device is not None:
            move(layer.parameters(), device)
        for theirs, own in zip(scorer.parameters(), layer.parameters(), strict=True):
            if id(theirs) in others:
                self._note(others[id(theirs)], owners, theirs, own)
        return layer

    def _follow_copy(
        self,
        head: MomentumHead,
        block: nn.Module,
        names: Mapping[int, str],
        owners: Mapping[str, int],
        device: torch.device | None,
    ) -> None:
        """Let a head follow a copy of the block, which whoever runs the stages keeps as it was a step before."""
        copy_here = copied(block)
        if device is not None:
            move(copy_here.parameters(), device)
        head.look_at(copy_here)
        for theirs, own in zip(block.parameters(), copy_here.parameters(), strict=True):
            self._note(names[id(theirs)], owners, theirs, own)

    def _note(self, name: str, owners: Mapping[str, int], theirs: nn.Parameter, own: nn.Parameter) -> None:
        self._reads.setdefault(owners[name], []).append((theirs, own))
        self._of_heads.append((name, own))

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """While it lasts, heads read the copies in place of the model's own layers."""
        with contextlib.ExitStack() as stack:
            for part, layer in self._scorers.items():
                stack.enter_context(part.reading(layer))
            yield

    @torch.no_grad()
    def read_now(self) -> None:
        """Set copies of what other stages train to what it is now; for whoever lets stages compute in turn."""
        for theirs, own in (pair for pairs in self._reads.values() for pair in pairs):
            own.copy_(theirs)

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Set the copies of what heads read to the weights of the whole network, by the names in its ``weights``."""
        for name, own in self._of_heads:
            own.copy_(values[f"model.{name}"])
