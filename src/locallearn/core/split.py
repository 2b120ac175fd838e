"""``split``: a user's own model as local modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from locallearn.arguments import checked
from locallearn.config import ObjectiveConfig
from locallearn.core.compiled_blocks import CompiledBlocks
from locallearn.core.network import OptimizerFactory
from locallearn.core.plain import check_plain
from locallearn.core.rehearsal import rehearse, warn
from locallearn.core.split_cuts import CutModel, cut_model
from locallearn.core.split_network import SplitNetwork
from locallearn.core.split_objectives import stage_objectives
from locallearn.core.split_options import SplitOptions
from locallearn.losses.user import Loss
from locallearn.nn.heads import HeadInput


def adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW with a learning rate of 1e-3.

    It updates in one pass over the weights where torch has that and no weight is of a convolution of images, whose
    memory format may change in the middle of a training: torch's pass does not look at it.
    """
    kept = list(parameters)
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() and p.dim() < 4 for p in kept)
    return torch.optim.AdamW(kept, lr=1e-3, fused=fused or None)


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
            stage has its own copy of a module. A head's scores have the form of the model's own. A function that does
            not take the scores but all that the model gives (a dict of several tasks, a tuple of tensors with
            examples first) is given that, and heads give as many tensors of these shapes. By default what the
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
            and no other. It keeps activations of two modules.
        context: what every module after the first is given beside features, through an adapter that becomes a part
            of the model and stays in what ``merge`` gives (ContSup): ``image``, the model's input, or ``before``,
            what the module before was given. The submodule at a cut is then ``PATH.block``, beside ``PATH.adapter``.
        settings: everything else that an objective can be told; its ``head`` and ``loss`` count where ``head`` and
            ``objective`` are left out.
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
    options = SplitOptions(
        cuts, depth, width, head, objective, classes, tokens, layout, clip_norm, overlap, context, settings, seed
    )
    check_plain(model)
    with torch.inference_mode(False):
        cut = cut_model(model, example, options)
        made, sees = stage_objectives(cut, options)
        together = nn.ModuleList([cut.model, *made])
        build = partial(_network, cut, sees, options)
        weighable = rehearse(together, build, example)
        warn(cut.pieces, cut.found, options.stages, cut.task.used)
        network = build(together, optimizer)
        network.weighable = weighable
    if compile:
        backend = compile if isinstance(compile, str) else "inductor"
        network.compiled = CompiledBlocks(cut.model, cut.pieces, backend)
    return network


def _still(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.0)


def _network(
    cut: CutModel,
    sees: Sequence[str],
    options: SplitOptions,
    together: Iterable[Any],
    optimizer: OptimizerFactory = _still,
) -> SplitNetwork:
    """The network of a model and its stages' objectives, or of copies of them."""
    model, *objectives = together
    return SplitNetwork(
        model,
        cut.pieces,
        objectives,
        sees,
        cut.task,
        optimizer,
        options.clip_norm,
        options.width,
        cut.grouped,
        options.overlap,
    )
