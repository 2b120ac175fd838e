"""Means over an epoch, kept on the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from locallearn.core.batches import are_classes
from locallearn.core.network import LocalNetwork
from locallearn.losses.objectives import LocalLoss
from locallearn.training.evaluate import module_label

_PREFIX = "sums/"


class Sums:
    """Running sums of an epoch's losses and hits, on the device, one row a node.

    They are part of a checkpoint, so that a resumed epoch reports what an uninterrupted one does.
    """

    def __init__(self, network: LocalNetwork, device: torch.device) -> None:
        self.network = network
        self.device = device
        self.tensors: dict[str, Tensor] = {}

    def reset(self) -> None:
        """Start a new epoch."""
        self.tensors = {}

    def add(self, losses: list[LocalLoss], labels: Any, examples: int) -> None:
        """Add one batch of so many examples; hits are counted where labels are classes, int64 [B]."""
        size = examples // self.network.views  # images
        for module, loss in zip(self.network, losses, strict=True):
            values = {"loss": loss.total, **{f"terms/{name}": term for name, term in loss.terms.items()}}
            if loss.logits is not None and are_classes(labels):
                self.count(f"{module.name}/accuracy", (loss.logits.argmax(-1) == labels).sum(1).double())
            for name, value in values.items():
                self.count(f"{module.name}/{name}", value.double() * size)
        self.count("images", torch.tensor(float(size), dtype=torch.float64))

    def count(self, name: str, value: Tensor) -> None:
        """Add to the sum of this name."""
        self.tensors[name] = self.tensors[name] + value if name in self.tensors else value

    def saved(self) -> dict[str, Tensor]:
        """The sums by their names in a checkpoint."""
        return {_PREFIX + name: value for name, value in self.tensors.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what ``saved`` gave; the number of images is kept on the CPU, where it is counted."""
        own = {name.removeprefix(_PREFIX): value for name, value in tensors.items() if name.startswith(_PREFIX)}
        self.tensors = {name: value if name == "images" else value.to(self.device) for name, value in own.items()}

    def nodes(self) -> list[dict[str, Any]]:
        """Means over the images added so far, one dictionary a node; ``accuracy`` only where it has a classifier."""
        images = self.tensors["images"].item()
        rows = []
        for module in self.network:
            prefix = f"{module.name}/"
            means = {
                key.removeprefix(prefix): (value / images).tolist()
                for key, value in self.tensors.items()
                if key.startswith(prefix)
            }
            for group in range(module.groups):
                terms = {k.removeprefix("terms/"): v[group] for k, v in means.items() if k.startswith("terms/")}
                row = {
                    "module": module_label(module.name),
                    "group": group + 1,
                    "loss": means["loss"][group],
                    "terms": terms,
                }
                if "accuracy" in means:
                    row["accuracy"] = means["accuracy"][group]
                rows.append(row)
        return rows
