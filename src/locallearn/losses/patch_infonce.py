"""Contrastive prediction of patches from the patches above them: CPC's loss, for every module alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from locallearn.config.own_parts import PatchInfoNCEOptions
from locallearn.data.store import Batch
from locallearn.errors import ConfigError
from locallearn.losses.functional import _exact
from locallearn.losses.objectives import LocalLoss, Objective, ObjectiveInput, objectives
from locallearn.nn.precision import precise
from locallearn.nn.tiles import patches_along, tile_means

SKIPPED = 1
"""Rows between a patch and the nearest that is predicted from it, which overlaps it."""


class PatchInfoNCE(Objective):
    r"""InfoNCE of patches predicted from those above (Greedy InfoMax, Loewe, O'Connor and Veeling, NeurIPS 2019).

    .. math:: -\frac{1}{S} \sum_{s=1}^{S} \mathrm{mean}_{b, y, x}
        \log \frac{e^{z_{y+s+1,x}^T W_s z_{y,x}}}{e^{z_{y+s+1,x}^T W_s z_{y,x}} + \sum_j e^{z_j^T W_s z_{y,x}}}

    with z the mean of a patch's features and j patches of the batch, drawn anew at every step from all rows that are
    predicted. As in the public code a negative may be the positive itself, and context is the patch's own features:
    the images of the paper have no autoregressive network. There are no class scores.

    Args:
        channels: C of the features.
        grid: rows and columns of patches.
        steps: S, rows that are predicted, each with weights of its own.
        negatives: drawn for every prediction.
    """

    needs_labels = False
    unlabelled = True

    def __init__(self, channels: int, grid: tuple[int, int], steps: int, negatives: int) -> None:
        super().__init__()
        self.grid, self.negatives = grid, negatives
        self.predict = nn.ModuleList(nn.Conv2d(channels, channels, 1, bias=False) for _ in range(steps))

    def forward(self, features: Tensor, batch: Batch) -> LocalLoss:
        """Loss [1] of the node whose features of all patches are ``features``, [B, C, n h, m w]."""
        z = tile_means(precise(features), self.grid)
        with _exact(z.device):
            losses = [self._loss(z, layer, s + SKIPPED) for s, layer in enumerate(self.predict, 1)]
        return LocalLoss(torch.stack(losses).mean()[None], {}, None)

    def _loss(self, z_BCnm: Tensor, layer: nn.Module, rows: int) -> Tensor:
        """Of the patches so many rows below."""
        targets = layer(z_BCnm[:, :, rows:]).movedim(1, -1)
        context = z_BCnm[:, :, :-rows].movedim(1, -1)
        others = targets.flatten(0, 2)
        drawn = torch.randint(len(others), (*context.shape[:3], self.negatives), device=others.device)
        positive = (context * targets).sum(-1, keepdim=True)
        negative = (others[drawn] @ context[..., None])[..., 0]
        scores = torch.cat([positive, negative], -1).flatten(0, 2)
        return F.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long, device=scores.device))


def patch_of(options: PatchInfoNCEOptions, image: tuple[int, int, int]) -> int:
    """Side of the patches of an image (C, H, W) [pixels].

    Raises:
        ConfigError: fewer than three rows of patches, so that nothing is predicted.
    """
    patch = options.patch or max(2, min(image[1:]) // 4)
    if min(image[1:]) < patch or patches_along(image[1], patch) < SKIPPED + 2:
        expected = f"at most half of the image's side, {image[1]} pixels, so that there are three rows of patches"
        raise ConfigError("objective.options.patch", patch, expected)
    return patch


@objectives.register("patch-infonce", options=PatchInfoNCEOptions)
def patch_infonce(given: ObjectiveInput) -> PatchInfoNCE:
    """Contrastive prediction of patches, in a network that encodes them one by one.

    Raises:
        ConfigError: several groups, or features that are no map of patches.
    """
    options: PatchInfoNCEOptions = given.options
    if given.groups > 1:
        raise ConfigError("width", given.groups, "1 with patch-infonce")
    unfit = ConfigError("objective.loss", "patch-infonce", "another loss but with method greedy-infomax")
    if given.place is None or len(given.shape) != 3:
        raise unfit
    patch = patch_of(options, given.image)
    grid = patches_along(given.image[1], patch), patches_along(given.image[2], patch)
    if given.shape[1] % grid[0] or given.shape[2] % grid[1]:
        raise unfit
    steps = min(options.steps, grid[0] - SKIPPED - 1)
    return PatchInfoNCE(given.shape[0], grid, steps, options.negatives)
