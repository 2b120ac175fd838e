"""The first passes of a stage that computes alone, which tell whether it uses what it is not handed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from locallearn.core.generators import keeping, nothing, seed_all
from locallearn.core.kept_attributes import Attributes
from locallearn.errors import ConfigError
from locallearn.nn.features import features_of, prediction
from locallearn.nn.pieces import Piece

_Pass = Callable[[bool], Any]
"""A pass of the stage, in which placeholders of what other stages gave are zeros; if true, random numbers."""

_AGAIN = 3
"""So many passes tell whether a stage gives the same twice."""

_ELSEWHERE = 0x5EED
"""Seeds what a forward pass draws before the cut, in a pass that tells whether the stage uses that."""


class FirstPasses:
    """The first pass of a stage in training, and the first one in evaluation.

    Placeholders stand in its forward pass for what the stages before gave. Gradients tell what of that the stage
    uses, and that is handed on. A value that is used without a gradient (of ``x.detach()``, an index, statistics that
    a layer keeps) is noticed here: with other placeholders the stage gives or keeps something else. So are numbers
    that the forward pass draws before the cut and the stage uses: every stage would draw others.

    Args:
        model: with which the stage computes.
        piece: the stage.
        start: the submodule at whose end it begins; empty for the first stage, which needs no placeholders.
    """

    def __init__(self, model: nn.Module, piece: Piece, start: str) -> None:
        self._model, self._piece, self._start = model, piece, start
        self._modes: set[bool] = set()

    def __call__(self, run: _Pass, crossed: Mapping[Any, Tensor], given: Tensor, begin: Callable[[], None]) -> Any:
        """What a pass gives.

        Args:
            run: the pass.
            crossed: what the stage hands on beside its features, after the pass.
            given: the stage's features.
            begin: puts generators to where the stage's draws begin; ``nothing`` where it draws nothing.

        Raises:
            ConfigError: what it gives or keeps depends on placeholders; the stage's buffers are as before then.
        """
        if not self._start or self._model.training in self._modes or type(given) is not Tensor or given.is_meta:
            return run(False)
        self._modes.add(self._model.training)
        before = {name: x.detach().clone() for name, x in self._written().items()}

        def tried(others: bool = False, draws: bool = False) -> dict[str, Tensor] | None:
            with torch.no_grad(), contextlib.nullcontext() if begin is nothing else keeping(given.device):
                if draws and begin is not nothing:
                    seed_all(_ELSEWHERE)  # before the cut, where generators are put back
                return self._tried(partial(run, others), crossed, before)

        usual = tried()
        if usual is not None:  # else zeros do not do, and the model says why
            value = "a value from before the cut that no gradient passes, and that it is not handed"
            self._compare(usual, tried(others=True), tried, value)
            drawn = tried(draws=True) if self._model.training and begin is not nothing else usual
            if drawn is not None:  # else a layer is left out at random
                value = "numbers drawn before the cut (dropout of positions, a random mask), which it would draw anew"
                self._compare(usual, drawn, tried, value)
        return run(False)

    def _compare(
        self,
        usual: Mapping[str, Tensor],
        other: Mapping[str, Tensor] | None,
        again: Callable[[], Mapping[str, Tensor] | None],
        value: str,
    ) -> None:
        """Refuse a stage that makes something else, though it makes the same of the same.

        Args:
            usual: what it makes.
            other: what it makes where something differs that it must not use; None where it fails then.
            again: makes the usual once more; a model may draw without a seed.
            value: what must not be used.

        Raises:
            ConfigError: it uses that.
        """
        for made in _differing(usual, other)[:1]:
            if all(made not in _differing(usual, again()) for _ in range(_AGAIN)):
                expected = f"another one for stages that compute apart: the stage after it makes {made} of {value}"
                raise ConfigError("cuts", self._start, f"{expected}; runtime inline trains it")

    def _tried(
        self, run: Callable[[], Any], crossed: Mapping[Any, Tensor], before: Mapping[str, Tensor]
    ) -> dict[str, Tensor] | None:
        """What a pass makes, of which nothing is kept; None where it fails."""
        attributes = Attributes(self._model)
        try:
            return self._made(run(), crossed)
        except Exception:  # an index out of range, or what comes again with zeros
            return None
        finally:
            attributes.put_back()
            self._put(before)

    def _made(self, output: Any, crossed: Mapping[Any, Tensor]) -> dict[str, Tensor]:
        """Copies of what the stage gives and keeps, by name.

        The model's own loss is not among it: the numbers of other stages that it adds are theirs, and 0 here.
        """
        features = features_of(output) if self._piece.path else prediction(output)
        made = {name: self._model.get_buffer(name) for name in self._piece.buffers}
        made |= {"what it gives": features} if features is not None else {}
        made |= {f"what it hands on of {path} ({n})": x for (path, n), x in crossed.items()}
        return {name: x.detach().clone() for name, x in made.items()}

    def _written(self) -> dict[str, Tensor]:
        """What a pass may write into: the stage's buffers and frozen parameters."""
        frozen = {name: self._model.get_parameter(name) for name in self._piece.parameters}
        buffers = {name: self._model.get_buffer(name) for name in self._piece.buffers}
        return {name: p for name, p in frozen.items() if not p.requires_grad} | buffers

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, x in self._written().items():
            x.copy_(values[name])


def _differing(found: Mapping[str, Tensor], other: Mapping[str, Tensor] | None) -> list[str]:
    return ["what it gives"] if other is None else [name for name in found if _differ(found[name], other[name])]


def _differ(a: Tensor, b: Tensor) -> bool:
    return a.shape != b.shape or not bool(((a == b) | (a.isnan() & b.isnan())).all())
