"""A user's own model as stages of a local network."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from locallearn.arguments import checked, checked_on_failure
from locallearn.core.batches import CalledBatch, ModelCall, model_call
from locallearn.core.last_layer import LastLayerLoss
from locallearn.core.module import Features, LocalStep, Stage, autocast
from locallearn.core.network import LocalNetwork, OptimizerFactory, network_name
from locallearn.core.placed import brought, devices_of, move, view_on
from locallearn.core.plain import check_plain
from locallearn.core.shares import listen, listening, share_of
from locallearn.core.stage_ends import at_ends
from locallearn.core.stage_pass import Recorder, StagePass, share
from locallearn.core.tasks import Task
from locallearn.data.store import Batch
from locallearn.errors import ConfigError, UsageError
from locallearn.losses.objectives import LocalLoss, Objective, Passage
from locallearn.nn.checkpointing import non_reentrant
from locallearn.nn.copies import copied
from locallearn.nn.features import features_of, fitted_mask, prediction, seen_by_objective, with_features
from locallearn.nn.split import Piece, Share
from locallearn.nn.token_heads import ReadsScorer
from locallearn.nn.width import join_channels


class ModelStage(Stage):
    """The part of a user's model between two cuts.

    Args:
        k: 1 .. K.
        model: the whole model; the stage computes its part of the model's own forward pass.
        piece: where the stage ends, and what it trains.
        objective: its loss; of the last stage, on the model's own output.
        tokens: what the objective sees of B x T x C features.
        groups: G.
        before: the piece before it; None for the first.

    Attributes:
        given: what the stage was given in this training step, until its loss is computed; None elsewhere.
        noted: tensors of the present pass that the stage's shares of the model's own loss are made of.
        rest: names of parameters and buffers that belong to no stage (frozen or never used), kept with this one.
    """

    def __init__(
        self,
        k: int,
        model: nn.Module,
        piece: Piece,
        objective: Objective,
        tokens: str,
        groups: int,
        before: Piece | None,
    ) -> None:
        super().__init__(str(k), objective, groups)
        self.piece, self.before, self.tokens = piece, before, tokens
        self._model = [model]  # not a submodule: what the stage owns is its part of it
        self._computes = [model]
        self.given: Tensor | None = None
        self.noted: dict[Share, Tensor] = {}
        self.rest: tuple[str, ...] = ()
        self._alone: StagePass | None = None
        self._copies: dict[ReadsScorer, nn.Linear] = {}
        self._copied_names: list[tuple[str, nn.Parameter]] = []
        self._reads_copies = False
        self.device: torch.device | None = None
        self._first: torch.device | None = None

    @property
    def model(self) -> nn.Module:
        """The whole model."""
        return self._model[0]

    @property
    def last(self) -> bool:
        """Whether the stage ends with the model's own output."""
        return not self.piece.path

    def run_alone(self, recorder: Recorder, owners: Mapping[str, int], pieces: Sequence[Piece]) -> None:
        """Let the stage compute without the others, on copies of the model's modules that share its tensors.

        Args:
            recorder: knows which submodules run.
            owners: which stage, counted from 0, trains a parameter.
            pieces: all stages; what those before it train of the model's own loss is 0 in this one's.
        """
        before = self.before
        received = () if before is None else _places(before)
        view = self._view(owners, pieces)
        self._computes = [view]
        listen(view, self.piece.shares, self.noted)  # before the hook that leaves the pass
        self._alone = StagePass(view, recorder, before, self.piece, received, _places(self.piece))
        for each in itertools.chain(*(piece.shares for piece in pieces[: int(self.name) - 1])):
            if isinstance(each.place, str):
                setattr(view.get_submodule(each.path), each.place, next(self.model.parameters()).new_zeros(()))
        self.reads.clear()
        for name in self.piece.reads:
            pair = self.model.get_parameter(name), view.get_parameter(name)
            self.reads.setdefault(owners[name], []).append(pair)
        names = {id(self.model.get_parameter(name)): name for name in owners}
        self._copied_names.clear()
        heads = [part for part in self.objective.modules() if isinstance(part, ReadsScorer)]
        self._copies = {part: self._copy(part.scorer, names, owners) for part in heads}

    def _view(self, owners: Mapping[str, int], pieces: Sequence[Piece]) -> nn.Module:
        """The model's modules for this stage alone, on its device where it has one of its own."""
        if self.device is None:
            return share(self.model, apart=self.piece.reads)
        own = [self.model.get_parameter(name) for name in self.piece.parameters]
        own += [self.model.get_buffer(name) for name in self.piece.buffers]
        absent = [self.model.get_parameter(name) for name in {*owners} - {*self.piece.parameters, *self.piece.reads}]
        absent += [
            self.model.get_buffer(name) for piece in pieces if piece is not self.piece for name in piece.buffers
        ]
        return view_on(self.model, self.device, own, absent)

    def put_on(self, device: torch.device, first: torch.device | None) -> None:
        """Put what the stage trains on a device.

        Args:
            device: the device.
            first: where all stages' losses are looked at, for a stage that computes alone on the device from then on;
                None for one that is part of a whole model there.
        """
        self.device, self._first = (None, None) if first is None else (device, first)
        move(map(self.model.get_parameter, self.piece.parameters), device)
        move([*map(self.model.get_buffer, self.piece.buffers), *self.objective.parameters()], device)
        move(self.objective.buffers(), device)

    def brought(self, features: Features, batch: Batch) -> tuple[Features, Batch]:
        """What the stage is given, on its device where it has one of its own."""
        return (features, batch) if self.device is None else brought(features, batch, self.device)

    def told(self, loss: LocalLoss) -> LocalLoss:
        """Its losses, detached, where all stages' losses are looked at."""
        loss, first = loss.detached(), self._first
        if first is None or loss.total.device == first:
            return loss
        terms = {name: term.to(first) for name, term in loss.terms.items()}
        logits = None if loss.logits is None else loss.logits.to(first)
        return LocalLoss(loss.total.to(first), terms, logits)

    def train(self, mode: bool = True) -> ModelStage:
        """Training or eval mode, also of the modules with which the stage computes alone."""
        if self._alone is not None:
            self._alone.model.train(mode)
        return super().train(mode)

    def _copy(self, scorer: nn.Linear, names: Mapping[int, str], owners: Mapping[str, int]) -> nn.Linear:
        """The layer, for a head of the stage, with a copy of what other stages train of it."""
        here = int(self.name) - 1
        others = {id(p): names[id(p)] for p in scorer.parameters() if owners.get(names.get(id(p), ""), here) != here}
        here_already = [p for p in scorer.parameters() if id(p) not in others and self.device in (None, p.device)]
        layer = copy.deepcopy(scorer, {id(p): p for p in here_already})
        if self.device is not None:
            move(layer.parameters(), self.device)
        for theirs, own in zip(scorer.parameters(), layer.parameters(), strict=True):
            if id(theirs) in others:
                name = others[id(theirs)]
                self.reads.setdefault(owners[name], []).append((theirs, own))
                self._copied_names.append((name, own))
        return layer

    @torch.no_grad()
    def read_now(self) -> None:
        """Set copies of what other stages train to what it is now; for whoever lets stages compute in turn."""
        for theirs, own in (pair for pairs in self.reads.values() for pair in pairs):
            own.copy_(theirs)

    @torch.no_grad()
    def load_copies(self, values: Mapping[str, Tensor]) -> None:
        """Set the copies of what heads read to the weights of the whole network, by the names in its ``weights``."""
        for name, own in self._copied_names:
            own.copy_(values[f"model.{name}"])

    def forward(self, features: Features, batch: Batch | None = None) -> Any:
        """What the submodule at the stage's end gives, and the model itself for the last stage.

        Args:
            features: what the stage before handed on; the first stage looks at the batch alone.
            batch: a batch of the network's.
        """
        assert self._alone is not None
        assert isinstance(batch, CalledBatch)
        assert batch.call is not None
        device = batch.images.device
        self.give(features)
        begin = partial(_set_draws, device, _draws(device)) if self.random else _nothing
        self._reads_copies = True  # the loss that follows is of a stage that computes alone
        with self.calling(self._alone.model, batch.call) as call:
            return self._alone(features, call, begin)

    def give(self, features: Features) -> None:
        """Note what the stage is given, for an objective that watches how far it moves its features."""
        if self.objective.watches:
            self.given = features[0] if isinstance(features, tuple) else features

    def calling(self, model: nn.Module, call: ModelCall) -> contextlib.AbstractContextManager[ModelCall]:
        """While it lasts the model does what the stage needs of it: it may leave out its last layer."""
        if isinstance(self.objective, LastLayerLoss):
            return self.objective.instead_of_scores(model, call)
        return contextlib.nullcontext(call)

    def handed_on(self, output: Any) -> Features:
        """What the next stage is given, detached: features and what else crosses; of the last stage the scores."""
        features = prediction(output) if self.last else features_of(output)
        assert features is not None
        if not self.piece.crossing:
            return features.detach()
        assert self._alone is not None
        return (features.detach(), *(self._alone.crossed[key].detach() for key in _places(self.piece)))

    def loss(self, output: Any, batch: Batch) -> LocalLoss:
        """Losses [G] of the nodes, from what the submodule at the stage's end gave."""
        assert isinstance(batch, CalledBatch)
        alone, self._reads_copies = self._reads_copies, False
        with contextlib.ExitStack() as reading:
            for part, layer in self._copies.items() if alone else ():
                reading.enter_context(part.reading(layer))
            return self._loss(output, batch)

    def _loss(self, output: Any, batch: CalledBatch) -> LocalLoss:
        if self.last:
            return self.objective(output, batch)
        features = features_of(output)
        assert features is not None
        ordered = self.piece.layout.ordered(features)
        kept = None if batch.call is None or ordered.dim() != 3 else fitted_mask(batch.call.kept, ordered.shape[1])
        seen, labelled = seen_by_objective(ordered, self.tokens, kept), batch.without_padding()
        if self.given is None:
            loss = self.objective(seen, labelled)
        else:
            loss = self.objective.of_passage(self._passage(ordered, seen), labelled)
        return self._with_shares(loss, batch) if self.piece.shares else loss

    def _passage(self, ordered: Tensor, seen: Tensor) -> Passage:
        """How the features came to be: the stage's own move is what it added, where it keeps their shape."""
        assert self.given is not None
        inputs, self.given = self.given, None
        if self.before is not None:
            inputs = self.before.layout.ordered(inputs)
        moves = (ordered - inputs,) if inputs.shape == ordered.shape and inputs.is_floating_point() else ()
        return Passage(inputs, seen, moves)

    def _with_shares(self, loss: LocalLoss, batch: CalledBatch) -> LocalLoss:
        """The loss and the stage's shares of the model's own one, which all groups have a part of."""
        assert batch.call is not None
        more = share_of(self._computes[0], self.piece.shares, self.noted, batch.call)
        self.noted.clear()
        terms = {**loss.terms, "own": more.detach().expand(self.groups)}
        return LocalLoss(loss.total + more / self.groups, terms, loss.logits)

    def own_parameters(self) -> dict[str, nn.Parameter]:
        """The stage's part of the model (``model.NAME``, the user's own names), and its head."""
        own = {f"model.{name}": self.model.get_parameter(name) for name in self.piece.parameters}
        return own | {f"objective.{name}": p for name, p in self.objective.named_parameters()}

    def weights(self) -> dict[str, Tensor]:
        """``own_parameters``, and buffers."""
        state = self.model.state_dict()
        own = {f"model.{name}": state[name] for name in (*self.piece.parameters, *self.piece.buffers, *self.rest)}
        return own | {f"objective.{name}": value for name, value in self.objective.state_dict().items()}

    def load_weights(self, values: Mapping[str, Tensor]) -> None:
        """Put back what ``weights`` gave."""
        own = self.weights()
        with torch.no_grad():
            for name, value in values.items():
                own[name].copy_(value)


class SplitNetwork(LocalNetwork):
    """A user's model whose K stages train locally. Use ``ll.split``.

    Calling it calls the model, without heads. ``step`` trains it: the model's own forward pass runs once, and
    where a stage ends its head, its loss, its backward pass and its update come at once; what the pass goes on with
    are the features, detached. So one stage's graph is gone before the next one's begins, and the model may do
    whatever it does in its forward pass.

    Attributes:
        model: the user's model (a copy); names in its ``state_dict`` are the user's own, after ``model.``.
        pieces: the K stages: where each ends, its features' shape, what it trains and reads, what it costs.
        task: what the stages learn.
        grouped: paths of the convolutions that width groups made grouped ones.
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        found: Sequence[Piece],
        local: Sequence[Objective],
        tokens: Sequence[str],
        task: Task,
        optimizer: OptimizerFactory,
        clip_norm: float = 0.0,
        groups: int = 1,
        grouped: Sequence[str] = (),
    ) -> None:
        super().__init__(
            [
                ModelStage(k, model, piece, objective, sees, groups if piece.path else 1, before)
                for k, (piece, objective, sees, before) in enumerate(
                    zip(found, local, tokens, (None, *found[:-1]), strict=True), start=1
                )
            ]
        )
        self.model = model
        self.task = task
        owned = {name for piece in found for name in (*piece.parameters, *piece.buffers)}
        named = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
        kept = model.state_dict()
        self.model_stages[0].rest = tuple(name for name in named if name in kept and name not in owned)
        self.clip_norm = clip_norm
        self.grouped = tuple(grouped)
        self.set_optimizers(optimizer)

    @checked_on_failure
    def set_optimizers(self, optimizer: OptimizerFactory) -> None:
        """Give every stage a fresh optimizer over the parameters that it trains."""
        super().set_optimizers(optimizer)
        self._plain = False  # what was wrapped or sharded since is refused at the next step

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """DistributedDataParallel asks for this first."""
        raise UsageError(
            "network: DistributedDataParallel does not average the gradients of stages; use runtime='distributed'"
        )

    @property
    def model_stages(self) -> list[ModelStage]:
        """The stages, in order."""
        return [stage for stage in self.stages if isinstance(stage, ModelStage)]

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """What every stage is of the model."""
        return tuple(stage.piece for stage in self.model_stages)

    @property
    def objectives(self) -> list[Objective]:
        """Local losses of stages 1 .. K-1, with their heads; the last stage's is of the model's own output."""
        return [stage.objective for stage in self.model_stages[:-1]]

    @property
    def depth(self) -> int:
        """K."""
        return len(self.stages)

    def module_parameters(self, k: int) -> dict[str, nn.Parameter]:
        """What stage k = 1..K trains, by the names in ``state_dict``: its part of the model, and its head."""
        if k not in range(1, self.depth + 1):
            raise UsageError(f"k: {k!r} is not valid; expected a stage from 1 to {self.depth}")
        return {network_name(k - 1, name): p for name, p in self.model_stages[k - 1].own_parameters().items()}

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """What the user's model gives; heads are not computed."""
        return self.model(*args, **kwargs)

    def given_batch(self, batch: Any, labelled: bool = True) -> CalledBatch:
        """A batch of the user's own loader, as the stages take it.

        Args:
            batch: a mapping of named arguments with ``labels``, or a pair (inputs, labels), on the model's device.
            labelled: refuse a batch without labels where an objective needs them.
        """
        if not self._plain:
            check_plain(self.model)
            self._plain = True
        call = model_call(self.model, batch)
        call = dataclasses.replace(call, labels=self.task.labels(call.labels))
        if labelled and call.labels is None and any(stage.objective.needs_labels for stage in self.model_stages):
            raise UsageError("batch: there are no labels, which the objective of a module needs")
        return call.batch()

    def walk(
        self, steps: Sequence[LocalStep], batch: Batch, index: int | None = None, rate: float | None = None
    ) -> list[LocalLoss]:
        """Train the stages in the model's own forward pass, each where it ends."""
        assert isinstance(batch, CalledBatch)
        assert batch.call is not None
        if self.placed:
            return self._walk_apart(steps, batch, index, rate)
        device, passing = batch.images.device, _Pass(self.model_stages, steps, batch, index, rate)
        with (
            torch.enable_grad(),
            non_reentrant(),
            _drawing(device, index),
            autocast(device, steps[0].precision),
            self._listening(),
            at_ends(self.model, self.pieces[:-1], passing.train_here),
        ):
            _seed(steps[0], index)
            with self.model_stages[-1].calling(self.model, batch.call) as call:
                output = self.model(*call.args, **call.kwargs)
            return passing.end(output)

    def _walk_apart(
        self, steps: Sequence[LocalStep], batch: Batch, index: int | None, rate: float | None
    ) -> list[LocalLoss]:
        """The same with stages that are on devices of their own."""
        features: Features = batch.images
        losses = []
        for stage, step in zip(self.model_stages, steps, strict=True):
            stage.read_now()
            features, loss = step(features, batch, index, rate)
            losses.append(loss)
        return losses

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """While it lasts, stages note what their shares of the model's own loss are made of."""
        with contextlib.ExitStack() as stack:
            for stage in self.model_stages:
                stack.enter_context(listening(self.model, stage.piece.shares, stage.noted))
            yield

    def look(self, batch: Batch) -> Iterator[tuple[str, Tensor | None, Tensor]]:
        """What evaluation needs of every stage: its name, scores [G, B, classes] or None, and losses [G]."""
        if self.placed:
            yield from self._look_apart(batch)
            return
        losses: dict[int, LocalLoss] = {}

        def ended(k: int, output: Any) -> None:
            losses[k] = self.model_stages[k].loss(output, batch)

        with self._listening(), at_ends(self.model, self.pieces[:-1], ended):
            output = self.output(batch)
        losses[self.depth - 1] = self.model_stages[-1].loss(output, batch)
        for k, stage in enumerate(self.model_stages):
            yield stage.name, losses[k].logits, losses[k].total

    def _look_apart(self, batch: Batch) -> Iterator[tuple[str, Tensor | None, Tensor]]:
        """The same of stages that are on devices of their own."""
        features: Features = batch.images
        for stage in self.model_stages:
            stage.read_now()
            features, here = stage.brought(features, batch)
            output = stage(features, here)
            loss, features = stage.told(stage.loss(output, here)), stage.handed_on(output)
            yield stage.name, loss.logits, loss.total

    @property
    def placed(self) -> bool:
        """Whether the stages are on devices of their own."""
        return self.model_stages[0].device is not None

    def place(self, devices: Sequence[str | torch.device]) -> None:
        """Put the stages on devices, in order, so that GPUs' own queues let them compute at the same time.

        Optimizers are to be made anew then (``set_optimizers``). The model cannot be called as a whole, exported or
        merged until ``gather`` has brought it back. Losses are on the first device.

        Args:
            devices: at most as many as stages; each has some stages in a row, by their multiply-accumulates.

        Raises:
            ConfigError: they are no such devices, or the stages cannot compute apart.
        """
        chosen = devices_of(self.pieces, devices)
        recorder = Recorder(copied(self.model))  # the model itself is whole on no device then
        for stage, device in zip(self.model_stages, chosen, strict=True):
            stage.put_on(device, chosen[0])
        self._run_apart(recorder)

    def gather(self, device: str | torch.device) -> None:
        """Bring the stages together on one device."""
        for stage in self.model_stages:
            stage.put_on(torch.device(device), None)

    def output(self, batch: Batch) -> Any:
        """What the user's model gives for a batch."""
        assert isinstance(batch, CalledBatch)
        assert batch.call is not None
        return self.model(*batch.call.args, **batch.call.kwargs)

    def run_apart(self) -> None:
        """Let every stage compute without the others; ``walk`` needs no such thing.

        Raises:
            ConfigError: the model's own loss has a part that no stage can compute alone.
        """
        if not self.placed:  # else they do already
            self._run_apart(Recorder(self.model))

    def _run_apart(self, recorder: Recorder) -> None:
        owners = {name: k for k, piece in enumerate(self.pieces) for name in piece.parameters}
        for stage in self.model_stages:
            if any(share.weight is None for share in stage.piece.shares):
                expected = "inline for a model whose own loss balances the experts of all stages"
                raise ConfigError("runtime", "threads", expected)
            stage.run_alone(recorder, owners, self.pieces)

    def release(self, held: Sequence[int]) -> None:
        """Let go of the weights of the stages that are not ``held`` (counted from 0): they become one NaN each."""
        own = {name for k in held for name in self.pieces[k].parameters}
        for k, piece in enumerate(self.pieces):
            for name in piece.parameters if k not in held else ():
                parameter = self.model.get_parameter(name)
                if name not in own:
                    parameter.data = torch.full((), torch.nan, dtype=parameter.dtype).expand(parameter.shape)

    def merge(self) -> nn.Module:
        """A copy of the trained model: the user's own class, names and shapes, without heads.

        With width groups its convolutions are dense again, with zeros between groups; ``model`` has grouped ones.
        """
        merged = copied(self.model)
        for path in self.grouped:
            layer = merged.get_submodule(path)
            assert isinstance(layer, nn.Conv2d)
            join_channels(layer)
        return merged


def _places(piece: Piece) -> list[tuple[str, int]]:
    """Where the tensors come from that cross a stage's end beside the features."""
    for crossing in piece.crossing:
        if crossing.path is None:
            shape = " x ".join(map(str, crossing.shape))
            expected = f"another one for stages in different processes: a tensor of {shape} that no submodule gives"
            raise ConfigError("cuts", piece.path, f"{expected} crosses it")
    return [(crossing.path or "", crossing.index) for crossing in piece.crossing]


class _Pass:
    """One forward pass of a whole model in which the stages train, each where it ends."""

    def __init__(
        self,
        stages: Sequence[ModelStage],
        steps: Sequence[LocalStep],
        batch: CalledBatch,
        index: int | None,
        rate: float | None,
    ) -> None:
        self.stages, self.steps, self.batch, self.index, self.rate = stages, steps, batch, index, rate
        self.losses: dict[int, LocalLoss] = {}
        stages[0].give(batch.images)
        self._features: dict[int, Tensor] = {}
        self._learning = False

    def train_here(self, k: int, output: Any) -> Any:
        """Train stage k (from 0) on the features that it just gave, and let the pass go on with them, detached.

        A submodule that runs again in a backward pass, for a checkpointed segment, answers with the features that it
        gave the first time.
        """
        if self._learning or k in self.losses:
            return with_features(output, self._features[k]) if k in self._features else output
        features = features_of(output)
        assert features is not None
        if self.stages[k].piece.recomputed:
            self._features[k] = features.detach()
        self._learn(k, output)
        _seed(self.steps[k + 1], self.index)
        handed_on = features.detach()
        self.stages[k + 1].give(handed_on)
        return with_features(output, handed_on)

    def end(self, output: Any) -> list[LocalLoss]:
        """Train the last stage on the model's output; all losses."""
        for k, stage in enumerate(self.stages[:-1]):
            if k not in self.losses:
                if not stage.model.training or not stage.piece.parameters:
                    raise UsageError(f"cuts: {stage.piece.path} did not run on this batch, as it did on the example")
                warnings.warn(
                    f"{stage.piece.path} did not run on a batch, which stage {k + 1} was not trained on", stacklevel=4
                )
                self.losses[k] = LocalLoss(torch.zeros(0), {}, None)
        self._learn(len(self.steps) - 1, output)
        return [self.losses[k] for k in range(len(self.steps))]

    def _learn(self, k: int, output: Any) -> None:
        self._learning = True
        try:
            # a checkpoint around this place is not to recompute what the loss saves
            with saved_tensors_hooks(_same, _same) if self.stages[k].piece.recomputed else contextlib.nullcontext():
                self.losses[k] = self.steps[k].learn(output, self.batch, self.rate)
        finally:
            self._learning = False


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _nothing() -> None:
    pass


def _draws(device: torch.device) -> tuple[Tensor, ...]:
    """Where torch's generators are."""
    state = (torch.get_rng_state(),)
    return (*state, torch.cuda.get_rng_state(device)) if device.type == "cuda" else state


def _set_draws(device: torch.device, states: tuple[Tensor, ...]) -> None:
    """Put them back there."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


def _seed(step: LocalStep, index: int | None) -> None:
    if index is not None:
        step.seed_draws(index)


def _drawing(device: torch.device, index: int | None) -> contextlib.AbstractContextManager[None]:
    """Keep torch's generators for the caller where the stages seed them."""
    if index is None:
        return contextlib.nullcontext()
    return torch.random.fork_rng([device] if device.type == "cuda" else [])
