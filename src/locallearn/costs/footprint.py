"""How many bytes a device needs for its part of a training: an upper estimate from the counts of a ``Cost``.

What is left out is the framework itself and the data set.
"""

from __future__ import annotations

from dataclasses import dataclass

from locallearn.config import OptimizerConfig
from locallearn.costs.nodes import Cost
from locallearn.costs.steps import ModuleCost

_FP32 = 4
"""Weights, gradients and optimizer state are fp32 in every precision."""


@dataclass(frozen=True)
class Footprint:
    """What one device holds at the peak of a step [bytes].

    Attributes:
        state: weights, gradients and optimizer state.
        activations: kept for the backward pass.
        working: gradients of features on their way through the backward pass, and what kernels reorder.
        waiting: the batch, and features that have arrived and are not used yet.
    """

    state: int
    activations: int
    working: int
    waiting: int

    @property
    def total(self) -> int:
        """All of it and 5 % to spare [bytes]: real steps took up to 3 % more than the sum."""
        return with_spare(self.state + self.activations + self.working + self.waiting)


def with_spare(n: int) -> int:
    """5 % more, for what the count does not see [bytes]."""
    return n + n // 20


def state_bytes(optimizer: OptimizerConfig, parameters: int) -> int:
    """Weights, their gradients, and what the optimizer remembers [bytes]; as much as Adam where it is not known."""
    remembered = int(optimizer.momentum > 0) if optimizer.name in ("sgd", "lars") else 2
    return _FP32 * (2 + remembered) * parameters


def working_bytes(module: ModuleCost, part: float = 1.0) -> int:
    """What is alive beside the activations when they are most, of all groups together [bytes].

    Two gradients as large as the largest tensor that is kept, and two copies of the largest weight in the order that
    a kernel wants.

    Args:
        module: all groups of a module.
        part: of a batch that is worked on at once.
    """
    return 2 * (round(module.largest_bytes * part) + module.weight_bytes)


def of_node(cost: Cost, k: int, optimizer: OptimizerConfig, image_bytes: int, in_flight: int) -> Footprint:
    """One node of module k (from 0) on a device of its own.

    A node keeps a whole copy of what the nodes of a module share: its input, and the features of all groups where
    its heads see them. ``activation_bytes`` has an equal share of both.

    Args:
        cost: of the network.
        k: the module.
        optimizer: of every node.
        image_bytes: images of one batch.
        in_flight: batches of features that may wait for this node.
    """
    module = cost.modules[k]
    given = _input_bytes(cost, k, image_bytes)
    seen = module.output_bytes * (module.groups if module.shares_features else 1)
    others = given + (seen if module.shares_features else 0)
    copies = -(-others * (module.groups - 1) // module.groups)
    return Footprint(
        state=state_bytes(optimizer, module.parameters),
        activations=module.activation_bytes + copies,
        working=working_bytes(module),  # of all groups: heads may see them all
        waiting=given * (in_flight if k else 1),
    )


def of_one_device(cost: Cost, optimizer: OptimizerConfig, image_bytes: int) -> Footprint:
    """All nodes on one device, trained module by module: every module's state, and one module's activations."""
    peaks = [
        Footprint(
            state=state_bytes(optimizer, sum(m.groups * m.parameters for m in cost.modules)),
            activations=module.groups * module.activation_bytes,
            working=working_bytes(module),
            waiting=image_bytes + (_input_bytes(cost, k, image_bytes) if k else 0),
        )
        for k, module in enumerate(cost.modules)
    ]
    return max(peaks, key=lambda peak: peak.total)


def _input_bytes(cost: Cost, k: int, image_bytes: int) -> int:
    """The features that module k is given for one batch, of all groups."""
    return cost.modules[k - 1].groups * cost.modules[k - 1].output_bytes if k else image_bytes


def bytes_text(n: int) -> str:
    """Bytes with a fitting unit: ``64.9 MiB``."""
    if n < 2**20:
        return f"{n / 2**10:.3g} KiB"
    return f"{n / 2**20:.1f} MiB" if n < 2**30 else f"{n / 2**30:.2f} GiB"
