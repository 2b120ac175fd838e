"""One stage of a user's model computed alone: the model's own forward pass, answered up to the cut.

The forward pass runs as its author wrote it. Submodules that gradients pass and that ended before the cut do not
compute: they answer with placeholders of the structure and shape that they would have given. The submodule at the cut
answers with the features that the stage before handed on. From there on everything runs, and where the stage ends the
pass is left. Submodules without part in the gradients' path (masks, rotary embeddings) run as they are.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from locallearn.core.batches import ModelCall
from locallearn.core.first_passes import FirstPasses
from locallearn.core.module import each_of
from locallearn.core.own_errors import told_of
from locallearn.core.recorder import Ran, Recorder
from locallearn.core.stage_ends import ResidualSums
from locallearn.core.user_hooks import UserHooks
from locallearn.errors import ConfigError, UsageError
from locallearn.nn.fast_paths import layer_by_layer
from locallearn.nn.features import features_of, map_tensors, tensors_of, with_features
from locallearn.nn.pieces import Piece


class Receives(nn.Module):
    """A submodule whose features are kept for later: a stage that computes alone hands it those that it received."""

    def receive(self, features: Tensor) -> None:
        """Keep what the submodule gave in another stage, instead of computing it."""
        raise NotImplementedError


class _EndOfStageError(BaseException):
    """Leaves the model's forward pass where a stage ends; no model catches it."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


def _instead(tensor: Tensor, _placeholder: Tensor) -> Tensor:
    return tensor


def _placeholder(device: torch.device, changed: bool, other: bool) -> Callable[[Tensor], Tensor]:
    """Zeros that take the memory of one number, where the model does not write into them; or other numbers."""
    if other:
        draw = torch.Generator().manual_seed(0)
        return lambda x: _other(x, draw).to(device)
    if changed:
        return lambda x: torch.zeros(x.shape, dtype=x.dtype, device=device)
    return lambda x: torch.zeros((), dtype=x.dtype, device=device).expand(x.shape)


def _other(like: Tensor, draw: torch.Generator) -> Tensor:
    """Random numbers, and zeros and ones where there are whole numbers: of masks, or indices."""
    if like.is_floating_point():
        return torch.randn(like.shape, generator=draw).to(like.dtype)
    return torch.randint(2, like.shape, generator=draw).to(like.dtype)


class StagePass:
    """Computes one stage of a model alone.

    Args:
        model: the model, for this stage alone: its tensors may be shared with other stages, its modules may not, for
            their forward methods are replaced. Tensors of other stages need not hold anything.
        recorder: knows which submodules run.
        hooks: of the model's own.
        before: the stage before it; None for the first.
        piece: where the stage ends.
        received: (path, number of the tensor in its output) of the other tensors that cross the stage's start.
        sent: the same of those that cross its end.

    Attributes:
        crossed: the tensors that crossed the stage's end in the last pass.
        autocast: what the model had autocast to there: kind of device, type of numbers, and whether it did.
    """

    def __init__(
        self,
        model: nn.Module,
        recorder: Recorder,
        hooks: UserHooks,
        before: Piece | None,
        piece: Piece,
        received: Sequence[tuple[str, int]] = (),
        sent: Sequence[tuple[str, int]] = (),
    ) -> None:
        self.model, self.recorder, self.received = model, recorder, received
        self._hooks = hooks
        self.start = "" if before is None else before.path
        self._end = piece.path
        self._starts_in_sum, self._ends_in_sum = before is not None and before.summed, piece.summed
        self._sums = ResidualSums()
        self.crossed: dict[tuple[str, int], Tensor] = {}
        self.autocast: tuple[str, torch.dtype, bool] | None = None
        self._slots: dict[int, int] = {}
        self._kept: dict[str, int] = {}
        self._plan: dict[str, list[Any]] = {}
        self._seen: Counter[str] = Counter()
        self._begin: Callable[[], None] = lambda: None
        self._given: tuple[Tensor, ...] = ()
        self._writes: bool | None = None  # whether the model writes into its inputs, which other stages are given
        self._answering: set[str] = set()
        self._found: dict[str, Any] = {}
        self._first, self._other = FirstPasses(model, piece, self.start), False
        for path, number in sent:
            model.get_submodule(path).register_forward_hook(partial(self._note, (path, number)))
        if piece.path:
            model.get_submodule(piece.path).register_forward_hook(self._leave)

    def __call__(self, features: Any, call: ModelCall, begin: Callable[[], None]) -> Any:
        """What the submodule at the stage's end gives; of the last stage, what the model gives.

        Args:
            features: what the stage before handed on.
            call: the batch.
            begin: is called where the stage's own computation begins.

        Raises:
            ConfigError: it computes from something that does not cross the cut where it begins.
        """

        def run(other: bool) -> Any:
            self._other = other
            return self._pass(features, call, begin)

        with told_of("batch", "a step on it fails"):
            return self._first(run, self.crossed, each_of(features)[0], begin)

    def _pass(self, features: Any, call: ModelCall, begin: Callable[[], None]) -> Any:
        self._given = each_of(features)
        self._begin = begin
        self._plan = self._answers(self.recorder(call)) if self.start else {}
        for path, name in self._kept.items():
            part = self.model.get_submodule(path)
            assert isinstance(part, Receives)
            part.receive(self._given[self._slots[name]])
        for path in self._plan:
            if path not in self._answering:
                self._replace(path)
        self._seen.clear()
        if not self.start:
            begin()
        self._sums = ResidualSums()
        summing = self._sums if self._starts_in_sum or self._ends_in_sum else contextlib.nullcontext()
        inputs: Any = (call.args, call.kwargs)
        if self._writes is not False:
            inputs = tree_map_only(Tensor, torch.clone, inputs)
        args, kwargs = inputs
        try:
            with layer_by_layer(), summing:
                output = self.model(*args, **kwargs)
        except _EndOfStageError as ended:
            return ended.output
        finally:
            self._given = ()
            if self._writes is None:
                self._writes = any(isinstance(x, Tensor) and x._version > 0 for x in tree_leaves(inputs))
        if self._end:
            raise UsageError(_did_not_run(self._end))
        return output

    def _answers(self, ran: Sequence[Ran]) -> dict[str, list[Any]]:
        """By path, what each of its calls before the cut answers; None where it computes."""
        cut = next((each for each in ran if each.path == self.start), None)
        if cut is None:
            raise UsageError(_did_not_run(self.start))
        places = {each.path: each for each in reversed(ran)}
        self._slots = {places[path].tensors[number]: slot for slot, (path, number) in enumerate(self.received, 1)}
        receivers = {path for path, part in self.model.named_modules() if isinstance(part, Receives)}
        kept = [
            each for each in ran if each.path in receivers and each.tensors[:1] and each.tensors[0] in self._slots
        ]
        self._kept = {each.path: each.tensors[0] for each in kept}
        inside: set[int] = set()
        answers: dict[str, list[Any]] = {}
        for each in ran:
            if each.parent is not None and id(each.parent) in inside:
                inside.add(id(each))
                continue
            answered = each.path != "" and each.ended <= cut.ended and each.output is not None
            if answered:
                inside.add(id(each))
            answers.setdefault(each.path, []).append(each if answered else None)
        return {path: calls for path, calls in answers.items() if any(call is not None for call in calls)}

    def _replace(self, path: str) -> None:
        """Let a submodule answer where the plan says so."""
        module = self.model.get_submodule(path)
        self._answering.add(path)
        module.register_forward_pre_hook(partial(self._decide, path), prepend=True)
        module.forward = partial(self._forward, path, module.forward)

    def _decide(self, path: str, *_: Any) -> None:
        """Look whether the call that begins is to be answered."""
        number, calls = self._seen[path], self._plan.get(path, ())
        self._seen[path] += 1
        self._found[path] = calls[number] if number < len(calls) else None
        (self._hooks.answering.discard if self._found[path] is None else self._hooks.answering.add)(path)

    def _forward(self, path: str, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        found = self._found.pop(path, None)
        return own(*args, **kwargs) if found is None else self._answer(found)

    def _answer(self, ran: Ran) -> Any:
        device = self._given[0].device
        answer = map_tensors(ran.output, _placeholder(device, ran.changed, self._other))
        for number, name in enumerate(ran.tensors):
            if name in self._slots:
                tensor = self._given[self._slots[name]]
                given = tensor.clone() if ran.changed else tensor
                answer = map_tensors(answer, partial(_instead, given), only=number)
        if ran.path != self.start:
            return answer
        if self._starts_in_sum:
            self._sums.wait(answer, lambda _: self._received(changed=True))
            return answer
        return with_features(answer, self._received(ran.changed))

    def _received(self, changed: bool) -> Tensor:
        """The features; where the model writes into them a copy, for the stage before may not have learnt yet."""
        self._begin()
        return self._given[0].clone() if changed else self._given[0]

    def _note(self, key: tuple[str, int], _module: nn.Module, _args: Any, output: Any) -> None:
        self.crossed[key] = tensors_of(output)[key[1]]

    def _leave(self, _module: nn.Module, _args: Any, output: Any) -> None:
        if self._ends_in_sum:
            self._sums.wait(output, self._leave_stage)
        else:
            self._leave_stage(output)

    def _leave_stage(self, output: Any) -> None:
        features = features_of(output)
        assert features is not None
        kind = features.device.type
        if kind != "meta":
            self.autocast = kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        raise _EndOfStageError(output)


def _did_not_run(path: str) -> str:
    return (
        f"cuts: {path} did not run on this batch, as it did on the example; a model that leaves layers out at random "
        "trains with runtime inline, or with cuts at layers that always run"
    )


def places_of(piece: Piece) -> list[tuple[str, int]]:
    """Where the tensors come from that cross a stage's end beside the features."""
    for crossing in piece.crossing:
        if crossing.path is None:
            shape = " x ".join(map(str, crossing.shape))
            expected = f"another one for stages in different processes: a tensor of {shape} that no submodule gives"
            raise ConfigError("cuts", piece.path, f"{expected} crosses it")
    return [(crossing.path or "", crossing.index) for crossing in piece.crossing]
