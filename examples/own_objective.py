"""A local loss of your own: the multi-class hinge loss for every node, by name, as if it were built in.

Run it with: python examples/own_objective.py
"""

import dataclasses
import tempfile

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import locallearn as ll


class Hinge(ll.Objective):
    """Every node's scores should be larger by one for the right class than for any other."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor, batch: ll.Batch) -> ll.LocalLoss:
        """One loss a group: ``logits`` is [G, B, classes], ``total`` is [G]."""
        logits = self.head(features)
        total = torch.stack([F.multi_margin_loss(of_group, batch.labels) for of_group in logits])
        return ll.LocalLoss(total, {"hinge": total.detach()}, logits.detach())

    def logits(self, features: Tensor) -> Tensor:
        """Scores for evaluation and for the layerwise ensemble."""
        return self.head(features)


@ll.objectives.register("hinge")
def hinge(given: ll.ObjectiveInput) -> Hinge:
    """The head is the one that ``objective.head`` names, with one output a class."""
    return Hinge(given.head(given.classes))


config = ll.recipe("gn-dgl")
config = dataclasses.replace(
    config,
    objective=dataclasses.replace(config.objective, loss="hinge"),
    train=dataclasses.replace(config.train, epochs=6),
)
with tempfile.TemporaryDirectory() as folder:
    summary = ll.train(config, f"{folder}/run")
    assert summary["accuracy"]["ensemble"] > 0.8
    print(f"ensemble above 80 %: {summary['accuracy']['ensemble'] > 0.8}")
