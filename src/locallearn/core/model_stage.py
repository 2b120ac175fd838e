"""One stage of a user's own model: its part of the model's forward pass, and the loss that trains it."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from locallearn.core.batches import CalledBatch, ModelCall
from locallearn.core.block_arguments import forget, listen_to_arguments
from locallearn.core.foreign_writes import ForeignWrites
from locallearn.core.generators import nothing, restoring
from locallearn.core.kept_attributes import Attributes, hand_over, move_kept
from locallearn.core.last_layer import LastLayerLoss
from locallearn.core.module import Features, Stage, each_of
from locallearn.core.own_errors import told_of
from locallearn.core.placed import brought, loss_on, move, view_on
from locallearn.core.read_copies import ReadCopies
from locallearn.core.recorder import Recorder, share
from locallearn.core.shares import listen, share_of
from locallearn.core.stage_pass import StagePass, places_of
from locallearn.core.user_hooks import UserHooks
from locallearn.core.weighing import Weighing, weighed
from locallearn.data.store import Batch
from locallearn.losses.objectives import LocalLoss, Objective, Passage
from locallearn.nn.checkpointing import non_reentrant
from locallearn.nn.features import features_of, prediction
from locallearn.nn.named_tensors import kept_tensors
from locallearn.nn.pieces import Piece, Share


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
        replicas: how many processes have the stage, each with some rows of every batch.
        weighing: what its loss is the mean over, with several; None where the objective sees the whole batch itself.
        copies: of weights that other stages train and this one reads, where it computes without them.
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
        self._kept: list[tuple[str, str]] | None = None
        self._shared: set[str] = set()  # buffers of other stages that are no copies where it computes alone
        self.copies = ReadCopies(k - 1, model, objective, self.reads)
        self._reads_copies = False
        self.device: torch.device | None = None
        self._first: torch.device | None = None
        self.replicas = 1
        self.weighing: Weighing | None = None

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
        received = () if before is None else places_of(before)
        view = self._view(owners, pieces)
        hooks = UserHooks(view)
        self._computes, self._kept = [view], None
        listen(view, self.piece.shares, self.noted)  # before the hook that leaves the pass
        self.listen_to(view)
        self._alone = StagePass(view, recorder, hooks, before, self.piece, received, places_of(self.piece))
        for each in itertools.chain(*(piece.shares for piece in pieces[: int(self.name) - 1])):
            if isinstance(each.place, str):
                setattr(view.get_submodule(each.path), each.place, next(self.model.parameters()).new_zeros(()))
        self.copies.make(view, self.piece.reads, owners, self.device)

    def _view(self, owners: Mapping[str, int], pieces: Sequence[Piece]) -> nn.Module:
        """The model's modules for this stage alone, on its device where it has one of its own."""
        if self.device is None:
            read = {name.rpartition(".")[0] for name in self.piece.reads}
            others = {name for piece in pieces if piece is not self.piece for name in piece.buffers}
            # a frozen layer before the cut runs here too, and is not to count a batch twice
            counted = {name for name in others if name.rpartition(".")[0] not in read}
            self._shared = others - counted
            return share(self.model, apart=[*self.piece.reads, *counted])
        own = [self.model.get_parameter(name) for name in self.piece.parameters]
        own += [self.model.get_buffer(name) for name in self.piece.buffers]
        others = [piece for piece in pieces if piece is not self.piece]
        kept = {*self.piece.parameters, *self.piece.reads, *itertools.chain(*(piece.everywhere for piece in others))}
        absent = [self.model.get_parameter(name) for name in {*owners} - kept]
        absent += [self.model.get_buffer(name) for piece in others for name in piece.buffers if name not in kept]
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
        move_kept(self._kept or (), self.model, device)

    def brought(self, features: Features, batch: Batch) -> tuple[Features, Batch]:
        """What the stage is given, on its device where it has one of its own."""
        return (features, batch) if self.device is None else brought(features, batch, self.device)

    def told(self, loss: LocalLoss) -> LocalLoss:
        """Its losses, detached, where all stages' losses are looked at."""
        return loss.detached() if self._first is None else loss_on(loss.detached(), self._first)

    def train(self, mode: bool = True) -> ModelStage:
        """Training or eval mode, also of the modules with which the stage computes alone."""
        if self._alone is not None:
            self._alone.model.train(mode)
        return super().train(mode)

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
        begin = restoring(device) if self.random else nothing
        self._reads_copies = True  # the loss that follows is of a stage that computes alone
        with self.calling(self._alone.model, batch.call) as call, self._keeping(), non_reentrant():
            return self._alone(features, call, begin)

    @contextlib.contextmanager
    def _keeping(self) -> Iterator[None]:
        """What submodules keep in attributes from batch to batch, the whole model has after a pass, too."""
        view, before, foreign = self._computes[0], None, None
        if self._kept is None and view.training:
            before = Attributes(view)
            own = {*self.piece.parameters, *self.piece.reads}
            foreign = self.before and ForeignWrites(view, own, self._shared)
        with foreign or contextlib.nullcontext():
            yield
        if foreign:
            foreign.check(self.before.path if self.before else "")
        if before is not None:
            self._kept = before.made_anew(self.piece.buffers)
        hand_over(self._kept or (), view, self.model)

    def give(self, features: Features) -> None:
        """Note what the stage is given, for an objective that watches how far it moves its features."""
        if self.objective.watches:
            self.given = features[0] if isinstance(features, tuple) else features

    def listen_to(self, model: nn.Module) -> list[Any]:
        """Take from passes of a model what the objective sees beside features, until the hooks are removed."""

        def note(_module: nn.Module, _args: Any, output: Any) -> None:
            if self.given is not None:  # in a training step, before the stage's loss
                self.give(features_of(output))

        source = self.objective.source
        hooks = [model.get_submodule(source).register_forward_hook(note)] if source else []
        return hooks + listen_to_arguments(self.objective, model)

    def calling(self, model: nn.Module, call: ModelCall) -> contextlib.AbstractContextManager[ModelCall]:
        """While it lasts the model does what the stage needs of it: it may leave out its last layer."""
        if isinstance(self.objective, LastLayerLoss):
            return self.objective.instead_of_scores(model, call)
        return contextlib.nullcontext(call)

    def handed_on(self, output: Any) -> Features:
        """What the next stage is given, detached: features and what else crosses; of the last stage the scores."""
        found = self.outputs(output)
        return tuple(x.detach() for x in found) if isinstance(found, tuple) else found.detach()

    def features(self, output: Any) -> Tensor:
        """What the next stage is given first of all, with its graph."""
        return each_of(self.outputs(output))[0]

    def outputs(self, output: Any) -> Features:
        """The same with its graph."""
        features = prediction(output) if self.last else features_of(output)
        assert features is not None
        if not self.piece.crossing:
            return features
        assert self._alone is not None
        return (features, *(self._alone.crossed[key] for key in places_of(self.piece)))

    def loss(self, output: Any, batch: Batch) -> LocalLoss:
        """Losses [G] of the nodes, from what the submodule at the stage's end gave."""
        assert isinstance(batch, CalledBatch)
        alone, self._reads_copies = self._reads_copies, False
        with self._as_at_its_end() if alone else contextlib.nullcontext():
            loss = self._loss(output, batch)
        forget(self.objective)
        return loss if batch.whole is None or self.weighing is None else weighed(loss, batch, self.weighing)

    @contextlib.contextmanager
    def _as_at_its_end(self) -> Iterator[None]:
        """While it lasts heads read copies, and autocast is as in the model's forward pass, which was left."""
        autocast = self._alone.autocast if self._alone is not None else None
        with told_of("batch", "a step on it fails"), self.copies.reading(), contextlib.ExitStack() as stack:
            if autocast is not None:
                kind, dtype, enabled = autocast
                stack.enter_context(torch.autocast(kind, dtype, enabled, cache_enabled=False))
            yield

    def _loss(self, output: Any, batch: CalledBatch) -> LocalLoss:
        if self.last:
            return self.objective(output, batch)
        features = features_of(output)
        assert features is not None
        ordered = self.piece.layout.ordered(features)
        seen, labelled = batch.seen(ordered, self.tokens, self.piece.mask_place), batch.without_padding()
        if self.objective.replicable:
            labelled = labelled.with_labels_of_all()
        if self.given is None:
            loss = self.objective(seen, labelled)
        else:
            loss = self.objective.of_passage(self._passage(ordered, seen), labelled)
        return self._with_shares(loss, batch) if self.piece.shares else loss

    def _passage(self, ordered: Tensor, seen: Tensor) -> Passage:
        """How the features came to be: the stage's own move is what it added, where it keeps their shape."""
        assert self.given is not None
        inputs, self.given = self.given, None
        if self.before is not None or self.objective.source:
            inputs = (self.before or self.piece).layout.ordered(inputs)
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
        state = kept_tensors(self.model)
        own = {f"model.{name}": state[name] for name in (*self.piece.parameters, *self.piece.buffers, *self.rest)}
        return own | {f"objective.{name}": value for name, value in self.objective.state_dict().items()}

    def load_weights(self, values: Mapping[str, Tensor]) -> None:
        """Put back what ``weights`` gave."""
        own = self.weights()
        with torch.no_grad():
            for name, value in values.items():
                own[name].copy_(value)
