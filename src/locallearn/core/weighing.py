"""Stages of a user's model with replicas (``mesh.data``): what part of a batch's loss each replica's own loss is.

A replica computes the loss of its own rows. Where that is a mean over examples, or over the labels that count, the
loss of the whole batch is the sum of the replicas' losses times their shares of the examples or labels. Which of the
two a loss is, or that it is neither, is tried on a batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from locallearn.core.batches import LABELS, CalledBatch, are_classes
from locallearn.core.rows import SameStatistics
from locallearn.core.tasks import Task
from locallearn.errors import ConfigError, UsageError
from locallearn.losses.objectives import LocalLoss
from locallearn.losses.scores import IGNORED, VOID, ScoresLoss
from locallearn.nn import peers
from locallearn.nn.modes import evaluating

if TYPE_CHECKING:
    from locallearn.core.split_network import SplitNetwork

Weighing = Callable[[CalledBatch], int]
"""What a loss is the mean over, of a batch: how many examples, or how many labels."""


def by_examples(batch: CalledBatch) -> int:
    """Examples of a batch."""
    return batch.examples


def by_labels(task: Task, padded: bool) -> Weighing:
    """Counts the labels of a batch that are not ignored; ``padded`` are ignored where the model's mask hides them."""
    loss = task.loss
    shift = isinstance(loss, ScoresLoss) and loss.shift
    has_void = len(task.scores) > 3 and task.classes <= VOID

    def count(batch: CalledBatch) -> int:
        labels: Any = batch.without_padding().labels if padded else batch.labels
        if not isinstance(labels, Tensor):
            return batch.examples
        if labels.is_floating_point():
            return labels.numel()
        labels = labels[:, 1:] if shift else labels
        counted = labels != IGNORED
        return int((counted & (labels != VOID) if has_void else counted).sum())

    return count


def share_of(batch: CalledBatch, weighing: Weighing) -> float:
    """What part of the whole batch's loss that of these rows is."""
    assert batch.whole is not None
    whole = weighing(batch.whole)
    return weighing(batch) / whole if whole else batch.examples / batch.whole.examples


def weighed(loss: LocalLoss, batch: CalledBatch, weighing: Weighing) -> LocalLoss:
    """The losses of the whole batch, of which this replica's rows have their gradient."""
    others, share = peers.current(), share_of(batch, weighing)
    terms = {name: others.batch_mean(term, share) for name, term in loss.terms.items()}
    logits = loss.logits
    if logits is not None:
        assert batch.whole is not None
        logits = others.whole_batch(logits, 1) if are_classes(batch.whole.labels) else None
    return LocalLoss(others.batch_mean(loss.total, share), terms, logits)


def find_weighings(network: SplitNetwork, batch: CalledBatch, parts: Sequence[range]) -> list[Weighing | None]:
    """What the loss of every stage is the mean over; None of objectives that see the whole batch themselves.

    Args:
        network: all stages.
        batch: a batch to try it on.
        parts: the rows of every replica.

    Raises:
        ConfigError: the loss of a stage is the mean over neither examples nor labels.
    """
    tried = [batch, *_with_ignored(network.task, batch)]
    norms = SameStatistics()
    looks = [
        [_losses(network, rows, norms) for rows in (each, *(each.rows(part) for part in parts))] for each in tried
    ]
    found: list[Weighing | None] = []
    for k, stage in enumerate(network.model_stages):
        if stage.objective.replicable:
            found.append(None)
            continue
        fitting = (
            weighing
            for weighing in (by_labels(network.task, padded=not stage.last), by_examples)
            if all(
                _together(whole[k], [p[k] for p in own], [share_of(each.rows(part), weighing) for part in parts])
                for each, (whole, *own) in zip(tried, looks, strict=True)
            )
        )
        chosen = next(fitting, None)
        if chosen is None:
            expected = f"1 with the loss of stage {k + 1}, which is no mean over examples or over their labels"
            raise ConfigError("replicas", len(parts), expected)
        found.append(chosen)
    return found


@torch.no_grad()
def _losses(network: SplitNetwork, batch: CalledBatch, norms: SameStatistics) -> list[Tensor]:
    """The loss of every stage in eval mode."""
    with evaluating(network), torch.random.fork_rng(), norms.answering():
        alone = dataclasses.replace(batch, whole=None)
        return [loss.float().sum() for _, _, loss in network.look(alone)]


def _together(whole: Tensor, own: Sequence[Tensor], shares: Sequence[float]) -> bool:
    """Whether weighted losses of parts are the loss of the whole; parts without a share have no say."""
    total = sum(loss * share for loss, share in zip(own, shares, strict=True) if share)
    assert isinstance(total, Tensor)
    return bool(torch.allclose(total, whole, rtol=1e-3, atol=1e-5))


def _with_ignored(task: Task, batch: CalledBatch) -> list[CalledBatch]:
    """The batch with fewer labels in its first example, where labels of places can be ignored."""
    labels: Any = batch.labels
    places = isinstance(task.loss, ScoresLoss) and task.loss.kind == "cross-entropy" and len(task.scores) > 2
    if not places or not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dim() < 2:
        return []
    fewer = labels.clone()
    fewer[0, labels.shape[1] // 2 :] = IGNORED
    call = batch.call
    assert call is not None
    named = [name for name in LABELS if call.kwargs.get(name) is call.labels]
    kwargs = {**call.kwargs, **dict.fromkeys(named, fewer)}
    return [dataclasses.replace(batch, labels=fewer, call=dataclasses.replace(call, kwargs=kwargs, labels=fewer))]


def check_rows(examples: int, parts: Sequence[range]) -> None:
    """Refuse a batch with fewer examples than replicas.

    Raises:
        UsageError: it is one.
    """
    if not len(parts[-1]):
        raise UsageError(f"loader: a batch of {examples} has no example for each of {len(parts)} replicas")
