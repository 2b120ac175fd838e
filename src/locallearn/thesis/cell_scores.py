"""Accuracies of a finished run beside those that every evaluation has."""

from __future__ import annotations

import dataclasses

import torch

from locallearn.core.local_step import autocast
from locallearn.data.datasets import ImageSet, load
from locallearn.training.evaluate import evaluate
from locallearn.training.finished import OpenedRun


def held_out(opened: OpenedRun, count: int) -> float:
    """Accuracy of the last layer, as a fraction, on the last ``count`` training images as they are.

    A run is scored on images that it has not seen where its ``data.train_limit`` leaves them out.
    """
    whole = load(dataclasses.replace(opened.config.data, train_limit=0)).train
    assert isinstance(whole, ImageSet), "the cells' data sets are held in memory"
    unseen = ImageSet(whole.images[-count:], whole.labels[-count:])
    batches = opened.store(unseen).ordered(opened.config.train.evaluate_batch_size)
    accuracy = evaluate(opened.network, batches, opened.precision).last_layer
    assert accuracy is not None, "the last module has no classifier"
    return accuracy


@torch.no_grad()
def last_heads(opened: OpenedRun) -> float:
    """Accuracy of the averaged softmax outputs of module K's heads on the test images, as a fraction.

    The network must have a decoupled classifier after them.
    """
    right = torch.zeros((), dtype=torch.int64, device=opened.device)
    for batch in opened.store(opened.dataset.test).ordered(opened.config.train.evaluate_batch_size):
        with autocast(opened.device, opened.precision):
            heads_GBC = opened.network.all_logits(batch.images)[-2]
        right += (heads_GBC.float().softmax(-1).mean(0).argmax(-1) == batch.labels).sum()
    return right.item() / len(opened.dataset.test.labels)
