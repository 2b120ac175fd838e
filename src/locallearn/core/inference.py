"""The finished network for use: auxiliary heads stripped, groups kept split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from locallearn.core.context_input import ContextModule
from locallearn.core.network import LocalNetwork
from locallearn.losses.functional import layerwise_ensemble
from locallearn.nn.pool import GlobalAveragePool


class InferenceNetwork(nn.Module):
    """The blocks of all modules and the last layer's classifier, in eval mode.

    A self-supervised network has no classifier and gives features, averaged over positions.

    Args:
        network: a trained network; its modules are shared, not copied.
        mean: mean of every channel of pixels in [0, 1].
        std: standard deviation of every channel.

    Shapes: images [B, C, H, W] with pixels in [0, 1] in, scores [B, classes] (or features [B, C]) out.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: LocalNetwork, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        modules = list(network)
        self.blocks = nn.Sequential(*(module.blocks for module in modules if len(module.blocks)))
        self.fusions = nn.ModuleList(module.fusion for module in modules if isinstance(module, ContextModule))
        self.classifier = modules[-1].objective.get_submodule("head") if network.has_classifier else None
        self.pool = GlobalAveragePool()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Scores [B, classes] of the last layer, or features [B, C]."""
        features = self._features((images - self.mean) / self.std)
        if self.classifier is not None:
            return self.classifier(features)[0]
        return self.pool(features) if features.dim() == 4 else features

    def _features(self, images: Tensor) -> Tensor:
        if not len(self.fusions):
            return self.blocks(images)
        carried: Any = images
        for blocks, fusion in zip(self.blocks, self.fusions, strict=True):
            given, context = fusion(carried)
            carried = blocks(given), context
        return carried[0]


class EnsembleNetwork(nn.Module):
    """The whole network with its auxiliary heads, for the layerwise ensemble (Sec. 3.2.4), in eval mode.

    Args:
        network: a trained network with classifiers; it is shared, not copied.
        mean: mean of every channel of pixels in [0, 1].
        std: standard deviation of every channel.

    Shapes: images [B, C, H, W] with pixels in [0, 1] in, class probabilities [B, classes] out.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: LocalNetwork, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities [B, classes] of the layerwise ensemble."""
        return layerwise_ensemble(self.network.all_logits((images - self.mean) / self.std))
