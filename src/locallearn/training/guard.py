"""Notices a loss or a weight that is not finite, without making the host wait for the device at every step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from locallearn.core.network import LocalNetwork
from locallearn.losses.objectives import LocalLoss

_GPU_CHECK_STEPS = 50
"""On a GPU losses are looked at this often."""


class FiniteGuard:
    """Remembers, on the device, the first step at which each node's loss was NaN or infinite.

    Args:
        network: the network whose nodes are watched.
        device: where losses are.
    """

    def __init__(self, network: LocalNetwork, device: torch.device) -> None:
        self.network = network
        self._first = torch.full((len(network.nodes),), -1, dtype=torch.int64, device=device)

    def note(self, losses: Sequence[LocalLoss], step: int) -> None:
        """Look at the losses of a step (counted from 1)."""
        pairs = zip(self.network, losses, strict=True)  # a stage that did not run on the batch has no loss
        totals = torch.cat([x.total if x.total.numel() else self._first.new_zeros(of.groups) for of, x in pairs])
        self._first = torch.where((self._first < 0) & ~totals.isfinite(), step, self._first)

    def is_due(self, step: int) -> bool:
        """Whether to look now: on a GPU a look makes the host wait for the device."""
        return self._first.device.type == "cpu" or step % _GPU_CHECK_STEPS == 0

    def bad_loss(self) -> str | None:
        """What went wrong first, naming module, group and step; None while all is well."""
        found = [
            (step, node) for step, node in zip(self._first.tolist(), self.network.nodes, strict=True) if step >= 0
        ]
        if not found:
            return None
        step, (name, group) = min(found, key=lambda item: item[0])
        return f"the loss of module {name}, group {group} became NaN or infinite at step {step}"

    def bad_weight(self, step: int) -> str | None:
        """The first module with a weight or statistic that is not finite; None where there is none."""
        for module in self.network:
            if not all(bool(tensor.isfinite().all()) for tensor in module.state_dict().values()):
                return f"the weights of module {module.name} became NaN or infinite at step {step}"
        return None
