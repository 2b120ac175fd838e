"""Means over an epoch, kept on the device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from locallearn.core.batches import are_classes, weight_of
from locallearn.core.network import LocalNetwork
from locallearn.losses.objectives import LocalLoss
from locallearn.training.evaluate import module_label

_PREFIX = "sums/"
_MISSED = "missed"
"""Images of batches on which a stage did not run."""


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
        views = self.network.views
        size = weight_of(labels, examples) if views == 1 else examples // views  # images
        for module, loss in zip(self.network, losses, strict=True):
            if not loss.total.numel():  # a stage that did not run on this batch
                self.count(f"{module.name}/{_MISSED}", torch.tensor(float(size), dtype=torch.float64))
                continue
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
        """Put back what ``saved`` gave; numbers of images are kept on the CPU, where they are counted."""
        own = {name.removeprefix(_PREFIX): value for name, value in tensors.items() if name.startswith(_PREFIX)}
        self.tensors = {name: value if value.dim() == 0 else value.to(self.device) for name, value in own.items()}

    def nodes(self) -> list[dict[str, Any]]:
        """Means over the images that each stage was trained on, one dictionary a node.

        ``accuracy`` is there only where it has a classifier; the loss of a stage that has seen no image is NaN.
        """
        images = self.tensors["images"].item()
        rows = []
        for module in self.network:
            prefix = f"{module.name}/"
            sums = {k.removeprefix(prefix): value for k, value in self.tensors.items() if k.startswith(prefix)}
            seen = images - float(sums.pop(_MISSED, 0.0))
            means = {key: (value / seen).tolist() for key, value in sums.items()}
            means.setdefault("loss", [math.nan] * module.groups)
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
