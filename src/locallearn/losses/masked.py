"""Masked autoencoding (He et al., 2022): rebuild the patches of an image that the network was not shown."""

from __future__ import annotations

import torch
from torch import Tensor

from locallearn.data.patches import Masking, patches
from locallearn.data.store import Batch
from locallearn.errors import ConfigError
from locallearn.losses.objectives import LocalLoss, Objective, ObjectiveInput, objectives
from locallearn.nn import peers
from locallearn.nn.precision import precise
from locallearn.nn.vit import PatchDecoder


def standardised(patches_BTF: Tensor) -> Tensor:
    """Every patch less its mean, over its standard deviation; a patch of one colour becomes 0."""
    variance_BT1, mean_BT1 = torch.var_mean(patches_BTF, 2, keepdim=True)
    return (patches_BTF - mean_BT1) / (variance_BT1 + 1e-6).sqrt()


def hidden_error(rebuilt_BTF: Tensor, target_BTF: Tensor, visible_BV: Tensor) -> Tensor:
    """Mean squared error over the patches that are not visible; a scalar.

    Args:
        rebuilt_BTF: all patches of every image, as the decoder has them.
        target_BTF: as they are.
        visible_BV: numbers of the visible ones, V < T.
    """
    error_BT = (precise(rebuilt_BTF) - target_BTF).square().mean(2)
    hidden_BT = torch.ones_like(error_BT).scatter(1, visible_BV, 0.0)
    return (error_BT * hidden_BT).sum() / (error_BT.numel() - visible_BV.numel())


class MaskedPixels(Objective):
    """Mean squared error of the hidden patches' pixels, through a decoder of the module's own.

    Args:
        decoder: maps features [B, C, 1, V] and numbers [B, V] of visible patches to all patches' pixels.
        masking: what a batch must show.
        normalised: compare with standardised patches.
    """

    needs_labels = False
    replicable = True

    def __init__(self, decoder: PatchDecoder, masking: Masking, normalised: bool) -> None:
        super().__init__()
        self.decoder = decoder
        self.masking = masking
        self.normalised = normalised
        self.patch = masking.side

    def forward(self, features: Tensor, batch: Batch) -> LocalLoss:
        """Loss [1] of the node whose features of visible patches are ``features``, [B, C, 1, V]."""
        visible = batch.visible
        assert visible is not None  # the image store masks for whatever network it serves
        target = patches(batch.pixels, self.patch)
        if self.normalised:
            target = standardised(target)
        error = hidden_error(self.decoder(features, visible), target, visible)
        return LocalLoss(peers.current().batch_mean(error)[None], {}, None)


@objectives.register("masked-pixels")
def masked_pixels(given: ObjectiveInput) -> MaskedPixels:
    """Masked autoencoding.

    Raises:
        ConfigError: features that are no grid of patches, one patch an image, or nothing to normalise.
    """
    config, (channels, height, _) = given.config.masking, given.image
    if len(given.shape) != 3:
        raise ConfigError("objective.loss", "masked-pixels", "another loss for features that are no maps of patches")
    rows, columns = given.shape[1:]
    patch, total = height // rows, rows * columns
    if total == 1:
        raise ConfigError("patch_size", patch, "smaller patches: of one patch an image nothing can be hidden")
    numbers = channels * patch * patch
    if config.normalised and numbers == 1:
        expected = "false where a patch is a single number"
        raise ConfigError("objective.masking.normalised", config.normalised, expected)
    visible = min(max(round(total * (1 - config.ratio)), 1), total - 1)
    width = max(1, round(config.decoder_width * given.widen))
    decoder = PatchDecoder(given.shape[0], (rows, columns), numbers, width, config.decoder_depth)
    return MaskedPixels(decoder, Masking(patch, visible), config.normalised)
