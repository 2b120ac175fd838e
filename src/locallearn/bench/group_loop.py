"""The baseline of ``bench step``: the same K x G network as a Python loop over groups.

This is how public code is written: every group has modules, a head and an optimizer of its own, and its head runs on
the concatenation of its own features and those of the others, detached. Only ResNets of basic blocks with heads
``<n>c<m>f`` are covered, which is what Table 3.4 needs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from locallearn.config import ObjectiveConfig, OptimizerConfig
from locallearn.core.local_step import autocast
from locallearn.core.module import LocalModule
from locallearn.core.network import LocalNetwork
from locallearn.data.store import Batch
from locallearn.errors import ConfigError
from locallearn.losses.objectives import Classification
from locallearn.nn.blocks import BasicBlock, ConvBlock
from locallearn.nn.heads import AuxiliaryHead


def _conv(like: nn.Module, groups: int) -> nn.Conv2d:
    """One group's convolution: its rows of a grouped network's, as a layer of its own."""
    rows, channels, kernel, _ = like.weight.shape  # type: ignore[misc, union-attr]
    stride = like.stride[0] if isinstance(like, nn.Conv2d) else like.stride
    return nn.Conv2d(channels, rows // groups, kernel, stride, kernel // 2, bias=False)  # type: ignore[arg-type]


class _Stem(nn.Module):
    def __init__(self, like: ConvBlock, groups: int) -> None:
        super().__init__()
        self.conv = _conv(like.conv, groups)
        self.bn = nn.BatchNorm2d(self.conv.out_channels)

    def forward(self, seen: Tensor, own: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(seen)), inplace=True)


class _Basic(nn.Module):
    def __init__(self, like: BasicBlock, groups: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = _conv(like.conv1, groups), _conv(like.conv2, groups)
        outputs = self.conv1.out_channels
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module | None = None
        if isinstance(like.shortcut, nn.Sequential):
            self.shortcut = nn.Sequential(_conv(like.shortcut[0], groups), nn.BatchNorm2d(outputs))

    def forward(self, seen: Tensor, own: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(seen)), inplace=True)
        y = self.bn2(self.conv2(y))
        return F.relu(y + (own if self.shortcut is None else self.shortcut(seen)), inplace=True)


class _Head(nn.Module):
    def __init__(self, like: AuxiliaryHead) -> None:
        super().__init__()
        self.convs, self.linears = nn.Sequential(), nn.Sequential()
        for conv in list(like.convs)[::3]:
            self.convs.append(_conv(conv, like.groups))
            self.convs.append(nn.BatchNorm2d(self.convs[-1].out_channels))  # type: ignore[arg-type]
            self.convs.append(nn.ReLU(inplace=True))
        for linear in like.linears.children():
            is_linear = not isinstance(linear, nn.ReLU)
            self.linears.append(nn.Linear(linear.inputs, linear.outputs) if is_linear else nn.ReLU())  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.linears(F.adaptive_avg_pool2d(self.convs(x), 1).flatten(1))


class LoopNode(nn.Module):
    """Group ``group`` of a module, as a network of its own, with that group's weights.

    Raises:
        ConfigError: the module is not made of a ResNet's basic blocks, or its loss is not cross entropy.
    """

    def __init__(self, like: LocalModule, group: int) -> None:
        super().__init__()
        head = like.objective.head if isinstance(like.objective, Classification) else None
        if not isinstance(head, AuxiliaryHead) or not all(type(b) in _KINDS for b in like.blocks):
            raise ConfigError("model", type(like.objective).__name__, "a ResNet of basic blocks with cross entropy")
        self.group, self.groups, self.stop_gradient = group, like.groups, head.stop_gradient
        self.blocks = nn.ModuleDict(
            {name: _KINDS[type(b)](b, like.groups) for name, b in like.blocks.named_children()}
        )
        self.head = _Head(head)
        rows = {name.replace("objective.head", "head"): value for name, value in like.state_dict().items()}
        self.load_state_dict({n: v.chunk(like.groups)[group] if v.dim() else v for n, v in rows.items()})

    def forward(self, x: Tensor) -> Tensor:
        """The group's features, from those of all groups of the module before."""
        seen, own = x, x
        if self.groups > 1 and x.shape[1] % self.groups == 0:
            own = x.chunk(self.groups, 1)[self.group]
        for block in self.blocks.values():
            seen = own = block(seen, own)
        return seen


_KINDS = {ConvBlock: _Stem, BasicBlock: _Basic}


class LoopNetwork:
    """All nodes of a network as modules of their own, in a loop.

    Args:
        network: gives structure and weights.
        objective: weight and temperature of the diversity penalty.
        optimizer: SGD's settings.
        precision: ``"fp32"`` or ``"bf16"`` (autocast).
    """

    def __init__(
        self, network: LocalNetwork, objective: ObjectiveConfig, optimizer: OptimizerConfig, precision: str
    ) -> None:
        self.objective, self.precision = objective, precision
        self.modules = [[LoopNode(module, g) for g in range(module.groups)] for module in network]
        self.optimizers = [[_sgd(node, optimizer) for node in nodes] for nodes in self.modules]

    def to(self, device: torch.device) -> None:
        """Move all nodes to a device."""
        for nodes in self.modules:
            for node in nodes:
                node.to(device)

    def parameters(self) -> list[nn.Parameter]:
        """The parameters of all nodes."""
        return [p for nodes in self.modules for node in nodes for p in node.parameters()]

    def step(self, batch: Batch) -> None:
        """Train every node on one batch."""
        x = batch.images
        for nodes, optimizers in zip(self.modules, self.optimizers, strict=True):
            with autocast(x.device, self.precision):
                features = [node(x) for node in nodes]
                seen = [_seen(features, g) if node.stop_gradient else features[g] for g, node in enumerate(nodes)]
                logits = [node.head(x) for node, x in zip(nodes, seen, strict=True)]
                losses = [F.cross_entropy(scores, batch.labels) for scores in logits]
                if len(nodes) > 1 and self.objective.diversity_weight:
                    losses = self.with_diversity(losses, logits, batch.labels)
            for loss, optimizer in zip(losses, optimizers, strict=True):
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            x = torch.cat([f.detach() for f in features], 1)

    def with_diversity(self, losses: list[Tensor], logits: list[Tensor], labels: Tensor) -> list[Tensor]:
        """Losses of a module's groups with the diversity penalty of each."""
        rest = [_rest(scores.float(), labels, self.objective.diversity_temperature) for scores in logits]
        n = len(rest)
        weight = self.objective.diversity_weight / (n * (n - 1))
        for a in range(n):
            for b in range(n):
                if a != b:
                    losses[a] = losses[a] + weight * F.cosine_similarity(rest[a], rest[b].detach()).mean()
        return losses


def _sgd(node: LoopNode, config: OptimizerConfig) -> torch.optim.SGD:
    return torch.optim.SGD(
        node.parameters(),
        config.learning_rate,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )


def _seen(features: Sequence[Tensor], group: int) -> Tensor:
    """All groups' features; only those of ``group`` with gradient."""
    return torch.cat([f if i == group else f.detach() for i, f in enumerate(features)], 1)


def _rest(scores_BC: Tensor, labels_B: Tensor, temperature: float) -> Tensor:
    """The softmax without its target entry."""
    target_BC = F.one_hot(labels_B, scores_BC.shape[1]).bool()
    return (scores_BC / temperature).softmax(1).masked_fill(target_BC, 0.0)
