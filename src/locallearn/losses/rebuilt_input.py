"""Reconstruction of what a module was given, through a bottleneck (LoPT)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from locallearn.config.own_parts import RebuiltInputOptions
from locallearn.data.store import Batch
from locallearn.errors import ConfigError
from locallearn.losses.objectives import LocalLoss, Objective, ObjectiveInput, Passage, objectives
from locallearn.nn import peers
from locallearn.nn.decoder import InputDecoder
from locallearn.nn.precision import precise


class RebuiltInput(Objective):
    """Mean squared error of a module's input rebuilt from its features (LoPT, Shi et al., 2026).

    Where the module makes its map smaller, what is rebuilt is enlarged to the input's (nearest). The authors train
    the first half of a pretrained language model so, to keep what it knows; from scratch it teaches a module to keep
    its input and nothing else. There are no class scores. In a user's own model whose inputs are not of the form of
    the first stage's features (ids of tokens, or images that become tokens), that stage rebuilds the first features
    of its own that are: embeddings, detached. Every token counts, padding too.

    Args:
        decoder: maps features to the channels of the input.
    """

    replicable = True
    watches = True
    needs_labels = False

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, features: Tensor, batch: Batch) -> LocalLoss:
        """Outside of training steps nothing is known of the input, and the loss is 0."""
        total = precise(features.new_zeros(1))
        return LocalLoss(total, {}, None)

    def of_passage(self, passage: Passage, batch: Batch) -> LocalLoss:
        """Loss [1] of the node."""
        rebuilt, inputs = self.decoder(passage.features), passage.inputs.detach()
        if rebuilt.dim() == 4 and rebuilt.shape != inputs.shape:
            rebuilt = F.interpolate(rebuilt, size=inputs.shape[2:])
        error = peers.current().batch_mean(F.mse_loss(precise(rebuilt), precise(inputs)))[None]
        return LocalLoss(error, {"reconstruction": error.detach()}, None)


@objectives.register("rebuilt-input", options=RebuiltInputOptions)
def rebuilt_input(given: ObjectiveInput) -> RebuiltInput:
    """Reconstruction of the module's input.

    Raises:
        ConfigError: several groups, or features of which the input has another form.
    """
    options: RebuiltInputOptions = given.options
    shape, inputs = given.shape, given.inputs
    if given.groups > 1:
        raise ConfigError("width", given.groups, "1 with rebuilt-input, which looks at all channels of the input")
    if len(shape) != len(inputs) or (len(shape) == 2 and shape[0] != inputs[0]):
        made, k = "a vector" if len(shape) == 1 else "x".join(map(str, shape)), given.position[0]
        expected = (
            f"another loss, or cuts that keep positions: module {k} makes {made} of another form than its input"
        )
        raise ConfigError("objective.loss", "rebuilt-input", expected)
    axis = 1 if len(shape) == 2 else 0
    return RebuiltInput(InputDecoder(shape[axis], max(1, shape[axis] // options.bottleneck), inputs[axis]))
