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
"""A pass of the stage, in which placeholders of what other stages gave are zeros; if true, large and random."""

_SEEN = 0.01
"""Share of a tensor's largest value that placeholders change where it depends on them; rounding changes less."""

_ROUNDED = 1e-6
"""The same share for what two passes make of the same placeholders."""

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

        def tried(others: bool, draws: bool = False) -> dict[str, Tensor] | None:
            with torch.no_grad(), contextlib.nullcontext() if begin is nothing else keeping(given.device):
                if draws and begin is not nothing:
                    seed_all(_ELSEWHERE)  # before the cut, where generators are put back
                return self._tried(partial(run, others), crossed, before)

        other = tried(True)
        if self._model.training and begin is not nothing:
            self._check_draws(tried)
        output = run(False)
        if not _differing(self._made(output, crossed), other):
            return output
        self._put(before)
        again = tried(False) or {}  # without gradients, which layers may round otherwise, as the other one was
        once_more = tried(False) or again  # a model may draw without a seed
        used = [name for name in _differing(again, other) if name not in _differing(again, once_more)]
        if not used:
            return run(False)
        raise self._refusal(used[0], "a value from before the cut that no gradient passes, and that it is not handed")

    def _check_draws(self, tried: Callable[..., dict[str, Tensor] | None]) -> None:
        """Refuse a stage that uses what the forward pass draws before the cut.

        Args:
            tried: what a pass makes, with other placeholders, or with other draws before the cut.

        Raises:
            ConfigError: with other draws the stage gives or keeps something else.
        """
        usual, elsewhere = tried(False), tried(False, draws=True)
        if usual is None or elsewhere is None:  # zeros do not do, or a layer is left out at random
            return
        used = _differing(usual, elsewhere, _ROUNDED)
        if used and used[0] not in _differing(usual, tried(False), _ROUNDED):
            drawn = "numbers drawn before the cut (dropout of positions, a random mask), which it would draw anew"
            raise self._refusal(used[0], drawn)

    def _refusal(self, made: str, value: str) -> ConfigError:
        expected = f"another one for stages that compute apart: the stage after it makes {made} of {value}"
        return ConfigError("cuts", self._start, f"{expected}; runtime inline trains it")

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


def _differing(found: Mapping[str, Tensor], other: Mapping[str, Tensor] | None, seen: float = _SEEN) -> list[str]:
    if other is None:
        return ["what it gives"]
    return [name for name in found if _differ(found[name], other[name], seen)]


def _differ(a: Tensor, b: Tensor, seen: float) -> bool:
    if a.shape != b.shape:
        return True
    if not a.numel():
        return False
    a, b = a.double(), b.double()
    if not b.isfinite().all():  # of numbers as large as the placeholders; or in both, of weights that are none
        return bool(a.isfinite().all())
    return float((a - b).abs().amax()) > seen * float(a.abs().amax())
