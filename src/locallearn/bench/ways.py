"""Ways to train a user's own model: backpropagation as it is, with less memory or compiled, and local stages."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from locallearn.bench.step import Contender, OnThreads
from locallearn.bench.user_model import examples_of, rows_of
from locallearn.config import ObjectiveConfig
from locallearn.core.batches import ModelCall, model_call
from locallearn.core.local_step import autocast
from locallearn.core.split import adamw, split
from locallearn.core.split_network import SplitNetwork
from locallearn.core.task_objectives import labels_of
from locallearn.errors import UsageError
from locallearn.losses.scores import ScoresLoss, class_axis, picked
from locallearn.nn.features import own_loss, prediction
from locallearn.nn.repeated import repeated_blocks
from locallearn.runtime.threads import ThreadsRuntime

Kind = Literal[
    "backprop",
    "compiled",
    "checkpointing",
    "compiled-checkpointing",
    "accumulation",
    "inline",
    "threads",
    "compiled-stages",
]

STAGES = {"inline": "", "threads": " threads", "compiled-stages": " compiled"}
"""How local stages train, and what names it."""

STEPS_ON_THREADS = 4
"""Steps of one call on threads that are timed, after those that fill the stages."""


@dataclass(frozen=True)
class Heads:
    """Heads and losses of local stages, as ``ll.split`` takes them."""

    head: str | None = None
    objective: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As ``--json`` has them."""
        return {"head": self.head, "objective": self.objective, **self.options}

    def given(self) -> dict[str, Any]:
        """Arguments of ``ll.split``."""
        settings = ObjectiveConfig(options=self.options) if self.options else None
        return {"head": self.head, "objective": self.objective, "settings": settings}


@dataclass(frozen=True)
class Way:
    """One way to train a model.

    Attributes:
        kind: how.
        parts: micro-batches of accumulation, K of local stages; else 1.
        cuts: where local stages end; none for stages of balanced cost.
        precision: ``fp32`` or ``bf16``.
        heads: of local stages.
    """

    kind: Kind
    parts: int = 1
    precision: str = "fp32"
    heads: Heads = Heads()
    cuts: tuple[str, ...] = ()

    @property
    def compiled(self) -> bool:
        """Whether torch.compile makes one program of the model."""
        return self.kind.startswith("compiled")

    @property
    def name(self) -> str:
        """As tables have it."""
        if self.kind in STAGES:
            return f"local K={self.parts}{STAGES[self.kind]}"
        return f"accumulation, {self.parts} micro-batches" if self.kind == "accumulation" else self.kind

    def build(self, model: nn.Module, batch: Any) -> Contender:
        """What trains the model on the batch when it is called.

        Raises:
            LocalLearnError: the model cannot be trained in this way.
        """
        if self.kind in STAGES:
            return self._local(model, batch)
        optimizer, run = adamw(model.parameters()), model
        loss = model_loss(model)
        if "checkpointing" in self.kind:
            checkpoint_blocks(model, reentrant=not self.compiled)
        if self.compiled:
            run = torch.compile(model)  # type: ignore[assignment]
        batches = _chunks(batch, self.parts) if self.kind == "accumulation" else [batch]

        def step() -> Tensor:
            optimizer.zero_grad()
            values = []
            for part in batches:
                with autocast(next(model.parameters()).device, self.precision):
                    value = loss(run, part)
                (value / len(batches)).backward()
                values.append(value.detach())
            optimizer.step()
            return torch.stack(values).mean()

        return Contender(step, list(model.parameters()))

    def _local(self, model: nn.Module, batch: Any) -> Contender:
        where: dict[str, Any] = {"cuts": self.cuts} if self.cuts else {"depth": self.parts}
        network = split(model, example=batch, **where, **self.heads.given(), compile=self.compiled)
        for each in network.steps:
            each.precision = self.precision
        if self.kind == "threads":
            return on_threads(network, batch)

        def step() -> None:
            network.walk(network.steps, network.given_batch(batch))

        return Contender(step, list(network.parameters()))


def on_threads(network: SplitNetwork, batch: Any) -> OnThreads:
    """Stages that train at the same time on a batch, some steps a call.

    Raises:
        ConfigError: a stage cannot run beside the others.
        UsageError: there is one CPU thread.
    """
    network.run_apart()
    threads = torch.get_num_threads()
    if threads < 2:
        raise UsageError("stages on threads need two CPU threads or more (--threads)")
    runtime = ThreadsRuntime(network.steps, threads, threads)
    return OnThreads(runtime, list(network.parameters()), lambda: network.given_batch(batch), STEPS_ON_THREADS)


def model_loss(model: nn.Module) -> Callable[[Any, Any], Tensor]:
    """Computes the loss of a model on a batch (``loss_of_output``), by calling whatever stands for the model."""

    def of(run: Any, part: Any) -> Tensor:
        call = model_call(model, part)
        return loss_of_output(run(*call.args, **call.kwargs), call)

    return of


def loss_of_output(output: Any, call: ModelCall) -> Tensor:
    """The model's own loss where it computes one, else the loss that the labels ask for, of its scores."""
    value = own_loss(output)
    if value is not None:
        return value.mean()
    scores = prediction(output)
    if scores is None:
        raise UsageError("bench: the model gives neither a loss nor scores")
    labels = labels_of(call.batch())
    axis = class_axis(scores.shape, None, labels)
    return ScoresLoss(picked(scores.shape, axis, labels), axis)(scores, labels)


def _chunks(batch: Any, parts: int) -> list[Any]:
    """A batch as micro-batches."""
    examples = examples_of(batch)
    if examples < parts:
        raise UsageError(f"--micro-batches: {parts} is not valid; expected at most {examples} of the batch")
    return [rows_of(batch, i, parts) for i in range(parts)]


def checkpoint_blocks(model: nn.Module, reentrant: bool = True) -> None:
    """Let the repeated blocks of a model keep nothing but their inputs, and run again in the backward pass.

    Args:
        model: the model.
        reentrant: the form whose second pass keeps its tensors where a meter sees them; what is compiled needs the
            other one.

    Raises:
        UsageError: the model has none.
    """
    found = repeated_blocks(model).values()
    if not found:
        raise UsageError("checkpointing: the model has no list of blocks of one class")
    for block in found:
        block.forward = _again(block.forward, reentrant)  # type: ignore[method-assign]


def _again(forward: Callable[..., Any], reentrant: bool) -> Callable[..., Any]:
    """A forward pass that is computed again in the backward pass."""

    def run(*args: Any, **kwargs: Any) -> Any:
        names = list(kwargs)

        def call(*given: Any) -> Any:
            n = len(given) - len(names)
            return forward(*given[:n], **dict(zip(names, given[n:], strict=True)))

        return checkpoint(call, *args, *kwargs.values(), use_reentrant=reentrant)

    run.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    return run


def ways(
    kinds: Sequence[str], depths: Sequence[int], runtimes: Sequence[str], micro_batches: int, base: Way
) -> list[Way]:
    """Backpropagation first, its other forms, then local stages at every K on every runtime."""
    found = [dataclasses.replace(base, kind="backprop")]
    for kind in kinds:
        parts = micro_batches if kind == "accumulation" else 1
        found.append(dataclasses.replace(base, kind=kind, parts=parts))  # type: ignore[arg-type]
    for depth in depths:
        found += [dataclasses.replace(base, kind=each, parts=depth) for each in runtimes]  # type: ignore[arg-type]
    return found
