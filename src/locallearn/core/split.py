"""``split``: a user's own model as local modules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from locallearn.arguments import checked
from locallearn.config import ObjectiveConfig
from locallearn.config.checks import non_negative, positive_int
from locallearn.core.batches import model_call
from locallearn.core.block_copies import COPYING, BlockCopies
from locallearn.core.compiled_blocks import CompiledBlocks
from locallearn.core.last_layer import last_layer_loss
from locallearn.core.network import OptimizerFactory
from locallearn.core.overlap import check_overlap
from locallearn.core.plain import check_example, check_plain
from locallearn.core.rehearsal import rehearse, warn
from locallearn.core.shares import find as find_shares
from locallearn.core.split_context import with_context
from locallearn.core.split_network import SplitNetwork
from locallearn.core.stage_inputs import given_to
from locallearn.core.task_objectives import check_copying, head_objective, last_objective
from locallearn.core.tasks import Task, choose
from locallearn.errors import ConfigError
from locallearn.losses.objectives import Objective, ObjectiveInput
from locallearn.losses.scores import ScoresLoss
from locallearn.losses.user import Loss
from locallearn.nn.copies import copied
from locallearn.nn.features import Axes, check_tokens, named_layout
from locallearn.nn.heads import HeadInput
from locallearn.nn.pieces import Piece, features_dtype, pieces
from locallearn.nn.recording import trace
from locallearn.nn.trace import Call, Trace
from locallearn.nn.width import split_channels
from locallearn.validation import Defaults


def adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW with a learning rate of 1e-3."""
    return torch.optim.AdamW(parameters, lr=1e-3)


@checked
def split(
    model: nn.Module,
    *,
    example: Any,
    cuts: Sequence[str] | None = None,
    depth: int | None = None,
    width: int = 1,
    head: str | nn.Module | Callable[[HeadInput], nn.Module] | None = None,
    objective: str | Loss | None = None,
    classes: int | None = None,
    tokens: str | None = None,
    layout: str | None = None,
    optimizer: OptimizerFactory = adamw,
    clip_norm: float = 0.0,
    overlap: int = 0,
    context: str = "none",
    settings: ObjectiveConfig | None = None,
    seed: int = 0,
    compile: bool | str = False,
) -> SplitNetwork:
    """Cut a model into K modules, each with a head, a loss and an optimizer of its own, and no gradient between them.

    A copy is cut behind K - 1 of its submodules. In a training step the model's own forward pass runs; where a module
    ends, its auxiliary head turns its features into scores, its loss is computed, and its weights are updated.
    The features go on detached (decoupled greedy learning: Belilovsky et al., 2020).

    >>> network = ll.split(model, depth=4, example=(images, labels))  # doctest: +SKIP
    >>> metrics = network.step((images, labels))  # or ll.Trainer(network).fit(loader, epochs=3)  # doctest: +SKIP
    >>> trained = network.merge()  # the model's own class again, without heads  # doctest: +SKIP

    Args:
        model: any module whose forward pass runs on ``example``. It is copied and not changed.
        example: a batch as ``SplitNetwork.step`` takes it; one forward pass finds where the model can be cut.
        cuts: paths of the submodules after which modules end (``"layer2.1"``, ``"encoder.layer.5"``); K is one more.
        depth: K, instead of ``cuts``: K pieces of balanced cost.
        width: G: width groups of every module but the last, which ends in the model's own scores. Modules of
            convolutions and batch norm only; their inner convolutions become grouped ones, so the copy has smaller
            weights than ``model``; ``merge`` makes them dense again.
        head: auxiliary head: ``<n>c<m>f`` or another registered one, a function of a ``HeadInput`` that makes
            one, or a module, of which every stage has a copy. By default ``1c2f``; where the objective sees every
            token ``0c1f`` (layer norm and an unembedding of the stage's own), and ``shared`` reads the model's own
            unembedding, without training it. Where the model scores every position, heads keep positions and
            upsample.
        objective: a registered loss (``cross-entropy``, ``next-token``, ``token``, ``predsim``...),
            ``binary-cross-entropy`` or ``mean-squared-error`` of every score, or a function of scores and labels like
            ``torch.nn.functional.huber_loss`` (and of the whole batch, where it has an argument ``batch``); every
            stage has its own copy of a module. A head's scores have the form of the model's own. By default what the
            labels ask for: integers are classes, of examples, tokens or pixels; numbers for every score are
            probabilities that sum to 1, yes or no (all are 0 or 1), or values to come near to; a causal language
            model, as its own loss tells, has ``next-token``. The last stage has the model's own loss where it returns
            one and none but a loss of the package is named.
        classes: outputs of a head; by default as many as the model's scores have.
        tokens: what a head sees of B x T x C features: ``mean`` (over those that the model's ``attention_mask`` does
            not hide), ``class`` (the first token) or ``all``; by default what the objective needs.
        layout: which axis of features is which, where the model's trace does not tell: a letter an axis, B for
            examples and C for channels (``BHWC``, ``TBC``).
        optimizer: makes the optimizer of one module from its parameters.
        clip_norm: largest gradient norm of a module; 0 means no clipping.
        overlap: with 1 a module's loss also trains the module before it: a gradient of the features crosses one cut,
            and no other. It keeps activations of two modules, and trains with runtimes ``inline`` and ``threads``.
        context: what every module after the first is given beside features, through an adapter that becomes a part
            of the model and stays in what ``merge`` gives (ContSup): ``image``, the model's input, or ``before``,
            what the module before was given. The submodule at a cut is then ``PATH.block``, beside ``PATH.adapter``.
        settings: everything else that an objective can be told; its ``head`` and ``loss`` are not looked at.
        seed: of the heads' initial weights.
        compile: whether the model's repeated blocks are compiled by ``torch.compile`` when they first train, in one
            process; another backend than ``inductor`` by its name. A line says what it took, and
            ``network.compiled`` has ``warm_up`` [s], ``graphs`` and ``recompiles``. Values are rounded otherwise, and
            what blocks draw are other numbers. Where it gains is measured by ``locallearn bench model --runtimes
            inline compiled-stages``.

    Raises:
        ConfigError: the model cannot be cut there, or no loss fits the labels; the message says why.
        UsageError: the model cannot be copied or does not run on the example, is wrapped or sharded, or a step on the
            example fails.

    Warns:
        SplitWarning: parameters that nothing trains, stages of very different cost, parts of the model's own loss
            that do not reach the stage that they are about and are no numbers that it adds.
    """
    positive_int("width", width)
    positive_int("depth", depth)
    non_negative("clip_norm", clip_norm)
    if (cuts is None) == (depth is None) or isinstance(cuts, str):
        raise ConfigError("cuts", cuts, "either cuts or depth, and not both; cuts are a list of paths")
    if tokens is not None:
        check_tokens(tokens)
    copying = isinstance(head, str) and head in COPYING
    if copying and width > 1:
        raise ConfigError("width", width, f"1 with head {head} in a model of your own, whose blocks it copies")
    check_plain(model)
    call = model_call(model, example)
    check_example(model, (call.args, call.kwargs))
    found = trace(model, call.args, call.kwargs)
    if layout is not None:
        _lay_out(found, layout)
    if context != "none":
        if width > 1:
            raise ConfigError("width", width, f"1 with context {context}, whose adapter is a whole module's")
        places = pieces(found, cuts, depth)
        model, cuts = with_context(model, context, places, call, seed)
        found, depth = trace(model, call.args, call.kwargs), None
    model_copy = copied(model)
    stages = depth or len(cuts or ()) + 1
    task = choose(objective, found, call, model_copy, stages)
    parts = find_shares(model_copy, found, pieces(found, cuts, depth, partial(_unusable, task=task)), call)
    check_overlap(overlap, parts)
    grouped: list[str] = []
    if width > 1:
        grouped = split_channels(model_copy, call.args, call.kwargs, found, parts, width)
    if objective == "infopro" and not call.first.is_floating_point():
        raise ConfigError(
            "objective", objective, "another loss for a model whose inputs are no images, which it decodes"
        )
    if objective == "infopro" and (call.first.amin() < 0 or call.first.amax() > 1):
        raise ConfigError("objective", objective, "another loss for images with pixels outside [0, 1]")
    by_token = tokens == "all" or (tokens is None and len(found.scores) != 2 and stages > 1)
    config = dataclasses.replace(
        settings or ObjectiveConfig(), head=_head_name(head, parts, task, by_token), loss=task.name or None
    )
    if config.loss is None and config.options and not isinstance(config.options, Defaults):
        raise ConfigError("settings.options", config.options, "none with a loss that is not registered with any")
    given = _given(model_copy, call.first, found, config, width, classes or task.classes)
    if head is not None and not isinstance(head, str):
        given = dataclasses.replace(given, make_head=_maker(head))
    copies = None
    if copying:
        tokens = check_copying(config.head, task, parts, tokens)
        copies = BlockCopies(config.head, config.head_options, model_copy, found, parts, call, task, seed)
    made: list[Objective] = []
    sees: list[str] = []
    for k, part in enumerate(parts[:-1], 1):
        inputs, source = given_to(parts, k, call.first, found)
        placed = dataclasses.replace(given, position=(k, stages), inputs=inputs)
        if copies is not None:
            placed = dataclasses.replace(placed, make_head=copies.maker(k))
        objective_k, seen = head_objective(task, placed, part, tokens, k, seed)
        objective_k.source = source if objective_k.watches else ""
        made.append(objective_k)
        sees.append(seen)
    chunk = getattr(given.options, "chunk", 0)
    last = last_layer_loss(task, found, call, model_copy, parts, chunk) if chunk else None
    if copying:  # the last stage has the model's own scores
        given = dataclasses.replace(given, config=dataclasses.replace(config, head="0c1f", head_options=Defaults()))
    made.append(last or last_objective(task, given, seed, stages))
    like = next(model_copy.parameters())
    for each, part in zip(made, parts, strict=True):
        each.to(device=like.device, dtype=features_dtype(found, part) or like.dtype)

    def build(modules: Iterable[nn.Module], factory: OptimizerFactory = _still) -> SplitNetwork:
        whole, *local = modules
        return SplitNetwork(whole, parts, local, [*sees, "mean"], task, factory, clip_norm, width, grouped, overlap)  # type: ignore[arg-type]

    together = nn.ModuleList([model_copy, *made])
    rehearse(together, build, example)
    warn(parts, found, stages)
    network = build(together, optimizer)
    if compile:
        network.compiled = CompiledBlocks(model_copy, parts, compile if isinstance(compile, str) else "inductor")
    return network


def _still(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.0)


def _lay_out(found: Trace, layout: str) -> None:
    """Take the user's word for the axes of features with that many."""
    said = named_layout(layout)
    for call in found.calls[:-1]:
        if len(call.shape or ()) == len(layout):
            call.batch, call.channels = said.batch, said.channels


def _unusable(call: Call, task: Task) -> str:
    """Why heads cannot learn a task from a call's features, as what would be right."""
    by_class = isinstance(task.loss, ScoresLoss) and task.loss.kind == "cross-entropy"
    if len(task.scores) != 3 or not by_class:
        return ""
    shape = Axes(call.batch or 0, call.channels).shape(call.shape or ())
    if call.other_tokens or task.form(shape) == "vector":
        return "features of the tokens that have labels (a model with an encoder scores the decoder's)"
    return ""


def _head_name(head: Any, parts: Sequence[Piece], task: Task, by_token: bool) -> str:
    if isinstance(head, str):
        return head
    forms = {task.form(part.shape) for part in parts[:-1]}
    return "0c1f" if by_token and forms & {"tokens", "flat"} else "1c2f"


def _maker(head: nn.Module | Callable[[HeadInput], nn.Module]) -> Callable[[HeadInput], nn.Module]:
    """A function that makes a head, of what the user gave as one."""
    if isinstance(head, nn.Module):
        return lambda _given: copied(head)
    if not callable(head):
        raise ConfigError("head", head, "a name, a module, or a function of a HeadInput that makes one")

    def make(given: HeadInput) -> nn.Module:
        made = head(given)
        if not isinstance(made, nn.Module):
            raise ConfigError("head", type(made).__name__, "a function that gives a torch.nn.Module")
        return made

    return make


def _given(
    model: nn.Module, inputs: Tensor, found: Trace, config: ObjectiveConfig, width: int, classes: int
) -> ObjectiveInput:
    """What all modules' objectives are built for; shape and position are each module's own."""
    scorer = model.get_submodule(found.scorer) if found.scorer else None
    return ObjectiveInput(
        config=config,
        shape=(),
        groups=width,
        classes=classes,
        image=(inputs.shape[1], inputs.shape[2], inputs.shape[3]) if inputs.dim() == 4 else (0, 0, 0),
        widen=1.0,
        family=type(model).__name__,
        position=(1, 1),
        scorer=scorer if isinstance(scorer, nn.Linear) else None,
    )
