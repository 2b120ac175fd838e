"""A user's own model as stages of a local network."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from locallearn.arguments import checked, checked_on_failure
from locallearn.core.apart import look_apart, release, set_apart, take_back, walk_apart
from locallearn.core.batches import CalledBatch, model_call
from locallearn.core.compiled_blocks import CompiledBlocks
from locallearn.core.local_step import LocalStep
from locallearn.core.model_stage import ModelStage
from locallearn.core.network import LocalNetwork, OptimizerFactory, network_name
from locallearn.core.own_errors import told_of
from locallearn.core.placed import devices_of
from locallearn.core.plain import check_plain
from locallearn.core.recorder import Recorder
from locallearn.core.rows import check_apart, shared_arguments
from locallearn.core.split_pass import SplitPass, listening_for
from locallearn.core.stage_ends import at_ends
from locallearn.core.tasks import Task
from locallearn.core.weighing import check_rows, find_weighings
from locallearn.data.store import Batch
from locallearn.errors import ConfigError, UsageError
from locallearn.losses.objectives import LocalLoss, Objective
from locallearn.losses.whole_outputs import Outputs, WholeLoss
from locallearn.nn.copies import copied
from locallearn.nn.fast_paths import layer_by_layer
from locallearn.nn.named_tensors import kept_tensors
from locallearn.nn.pieces import Piece
from locallearn.nn.width import join_channels
from locallearn.plan.mesh import split as split_rows


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
        compiled: its repeated blocks under ``torch.compile``, and what compiling them took; None without.
        shared: with replicas, the model's arguments that each of them needs whole.
    """

    compiled: CompiledBlocks | None = None
    shared: frozenset[str] = frozenset()

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
        overlap: int = 0,
    ) -> None:
        super().__init__(
            [
                ModelStage(k, model, piece, objective, sees, groups if piece.path else 1, before)
                for k, (piece, objective, sees, before) in enumerate(
                    zip(found, local, tokens, (None, *found[:-1]), strict=True), start=1
                )
            ],
            overlap,
        )
        self.model = model
        self.task = task
        owned = {name for piece in found for name in (*piece.parameters, *piece.buffers)}
        named = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
        kept = kept_tensors(model)
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
        if not isinstance(k, int) or k not in range(1, self.depth + 1):
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
        if not len(call.first):
            raise UsageError(f"batch: inputs {tuple(call.first.shape)} have no examples")
        call = dataclasses.replace(call, labels=self.task.labels(call.labels, heads=self.depth > 1))
        if labelled and call.labels is None and any(stage.objective.needs_labels for stage in self.model_stages):
            raise UsageError("batch: there are no labels, which the objective of a module needs")
        return dataclasses.replace(call.batch(), shared=self.shared)

    def walk(
        self, steps: Sequence[LocalStep], batch: Batch, index: int | None = None, rate: float | None = None
    ) -> list[LocalLoss]:
        """Train the stages in the model's own forward pass, each where it ends."""
        assert isinstance(batch, CalledBatch)
        if self.placed:
            return walk_apart(self.model_stages, steps, batch, index, rate)
        passing = SplitPass(self.model_stages, steps, batch, index, rate, self.overlap)
        with told_of("batch", "a step on it fails"):
            return passing.run(contextlib.nullcontext() if self.compiled is None else self.compiled.used(self.model))

    def look(self, batch: Batch) -> Iterator[tuple[str, Tensor | None, Tensor]]:
        """What evaluation needs of every stage: its name, scores [G, B, classes] or None, and losses [G]."""
        if self.placed:
            yield from look_apart(self.model_stages, batch)
            return
        losses: dict[int, LocalLoss] = {}

        def ended(k: int, output: Any) -> None:
            losses[k] = self.model_stages[k].loss(output, batch)

        with listening_for(self.model_stages), at_ends(self.model, self.pieces[:-1], ended):
            output = self.output(batch)
        losses[self.depth - 1] = self.model_stages[-1].loss(output, batch)
        for k, stage in enumerate(self.model_stages):
            yield stage.name, losses[k].logits, losses[k].total

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
        if self.overlap:
            raise ConfigError("devices", devices, "None with overlap 1: gradients go back in one forward pass alone")
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
        with layer_by_layer(), told_of("batch", "a forward pass on it fails"):
            return self.model(*batch.call.args, **batch.call.kwargs)

    @property
    def output_form(self) -> Outputs | None:
        """The form of the model's output where the objective is of all of it; None where it is of scores alone."""
        loss = getattr(self.model_stages[-1].objective, "of_scores", None)
        return loss.outputs if isinstance(loss, WholeLoss) else None

    def run_apart(self) -> None:
        """Let every stage compute without the others; ``walk`` needs no such thing.

        Raises:
            ConfigError: the model's own loss has a part that no stage can compute alone.
        """
        if not self.placed:  # else they do already
            self._run_apart(Recorder(self.model))

    def _run_apart(self, recorder: Recorder) -> None:
        if self.compiled is not None:
            raise ConfigError("compile", True, "False with stages on threads, processes or several devices")
        set_apart(self.model_stages, recorder)

    def replicate(self, replicas: int, batch: Batch) -> None:
        """Let every stage be in several processes, each with some rows of every batch.

        Args:
            replicas: how many.
            batch: one to try the losses on, before anything is trained.

        Raises:
            ConfigError: a loss or a layer looks at the batch as a whole in a way of its own.
            UsageError: the batch has fewer examples.
        """
        if all(stage.replicas == replicas for stage in self.model_stages):
            return
        assert isinstance(batch, CalledBatch)
        parts = split_rows(batch.examples, replicas)
        check_rows(batch.examples, parts)
        self.shared = shared_arguments(self, batch, parts)
        batch = dataclasses.replace(batch, shared=self.shared)
        check_apart(self, batch, replicas)
        for stage, weighing in zip(self.model_stages, find_weighings(self, batch, parts), strict=True):
            stage.replicas, stage.weighing = replicas, weighing

    def release(self, held: Sequence[int]) -> None:
        """Let go of the weights of the stages that are not ``held`` (counted from 0): they become one NaN each."""
        release(self.model_stages, held)

    def take_back(self) -> None:
        """Give memory to the weights that ``release`` has let go of; their values are still to come."""
        take_back(self.parameters())

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
