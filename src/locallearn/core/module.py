"""The local step: the whole protocol of training one module.

Every runtime only decides where and when this step is called.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from locallearn.data.store import Batch
from locallearn.losses.objectives import LocalLoss, Objective
from locallearn.nn.peers import Peers, computing_with
from locallearn.nn.ssl_head import FeatureNoise
from locallearn.seeding import derive

_DRAWING = threading.Lock()
"""Modules that train at the same time share torch's generator."""


class LocalModule(nn.Module):
    """Some blocks of the backbone and the objective that trains them, for all G groups at once.

    Every parameter and buffer is stacked by group on dimension 0.

    Args:
        name: ``"1"`` .. ``"K"``, or ``"classifier"`` for the decoupled classifier, which has no blocks.
        blocks: features in, features out.
        objective: the nodes' losses on the features.
        groups: G, the number of nodes.

    Attributes:
        groups: the number of nodes here; all, or those of one rank.
        first: how many nodes of the module come before those here.
    """

    def __init__(self, name: str, blocks: nn.Sequential, objective: Objective, groups: int) -> None:
        super().__init__()
        self.name = name
        self.blocks = blocks
        self.objective = objective
        self.groups = groups
        self.first = 0

    def forward(self, features: Tensor) -> Tensor:
        """The module's features [B, C, H, W] or [B, C], from those of the module before it."""
        return self.blocks(features)

    def logits(self, features: Tensor) -> Tensor | None:
        """Scores [G, B, classes] of the nodes on the module's own features; None where its loss has no classifier."""
        return self.objective.logits(features)


def per_node(value_G: Tensor, parameter: Tensor) -> Tensor:
    """Spread one value per group over a parameter's rows, shaped to multiply it."""
    rows = value_G.repeat_interleave(parameter.shape[0] // len(value_G))
    return rows.view(-1, *[1] * (parameter.dim() - 1))


def clip_gradients(module: LocalModule, max_norm: float) -> None:
    """Scale the gradients of every node whose gradient norm is above ``max_norm`` down to it."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    squares_G = sum(
        g.float().pow(2).flatten(1).sum(1).view(module.groups, -1).sum(1)
        if g.dim() > 1
        else g.float().pow(2).view(module.groups, -1).sum(1)
        for g in gradients
    )
    assert isinstance(squares_G, Tensor)
    scale_G = (max_norm / (squares_G.sqrt() + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(per_node(scale_G, gradient))


class LocalStep:
    """Forward, loss, backward and update of one module; its graph is gone when the call returns.

    Args:
        module: the module.
        optimizer: over the module's parameters. Its rules are elementwise, so that it is every node's own optimizer.
        precision: ``"fp32"`` or ``"bf16"`` (autocast).
        clip_norm: largest gradient norm of a node; 0 means no clipping.
        seed: the run's seed, for dropout.
        peers: the other ranks that share the module; none by default.

    Attributes:
        random: whether the module draws anything, as dropout does.
    """

    def __init__(
        self,
        module: LocalModule,
        optimizer: torch.optim.Optimizer,
        precision: str = "fp32",
        clip_norm: float = 0.0,
        seed: int = 0,
        peers: Peers | None = None,
    ) -> None:
        self.module = module
        self.optimizer = optimizer
        self.precision = precision
        self.clip_norm = clip_norm
        self.seed = seed
        self.peers = peers or Peers()
        self.random = any(isinstance(layer, (nn.Dropout, FeatureNoise)) for layer in module.modules())

    def __call__(
        self,
        features: Tensor,
        batch: Batch,
        index: int = 0,
        rate: float | None = None,
        hand_on: Callable[[Tensor], None] | None = None,
    ) -> tuple[Tensor, LocalLoss]:
        """Train on one batch.

        Args:
            features: detached features of the module before, or the images.
            batch: what the features are of: labels, and the images themselves.
            index: number of the step in the run; seeds dropout.
            rate: learning rate of the step; None leaves the optimizer as it is.
            hand_on: is given the module's features, detached, as soon as they are there.

        Returns:
            The module's features, detached, computed before the update; and the losses, detached.
        """
        out, loss = self.passes(features, batch, index, hand_on)
        self.update(rate)
        return out, loss

    def passes(
        self, features: Tensor, batch: Batch, index: int = 0, hand_on: Callable[[Tensor], None] | None = None
    ) -> tuple[Tensor, LocalLoss]:
        """Forward pass, loss and backward pass, which leave gradients in the parameters; else as the whole call."""
        with (
            computing_with(self.peers),
            self._seeded(index, features.device),
            autocast(features.device, self.precision),
        ):
            out = self.module(features)
            if hand_on is not None:
                hand_on(out.detach())
            loss = self.module.objective(out, batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.total.sum().backward()  # nodes share no parameters: each gets the gradient of its own loss alone
        return out.detach(), loss.detached()

    def update(self, rate: float | None = None) -> None:
        """Update the weights by the gradients that :meth:`passes` left, at this learning rate."""
        self.peers.sum_gradients(self.module.parameters())
        if self.clip_norm:
            clip_gradients(self.module, self.clip_norm)
        if rate is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
        self.optimizer.step()

    @contextlib.contextmanager
    def _seeded(self, index: int, device: torch.device) -> Iterator[None]:
        if not self.random:
            yield
            return
        with _DRAWING, torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(derive(self.seed, "dropout", self.module.name, index))
            yield


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 autocast where ``precision`` is ``"bf16"``, else a context that changes nothing."""
    # without its cache of casts, which all threads share and no layer gains by: each uses its weights once
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)
