"""Augmentations of the user's own, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from locallearn.arguments import checked_names
from locallearn.registry import Registry

if TYPE_CHECKING:  # names are looked up before torch is imported
    from torch import Tensor


@checked_names
@dataclass(frozen=True)
class AugmentationInput:
    """What an augmentation is built for: channels, height and width of the images [pixels], and its own options."""

    channels: int
    height: int
    width: int
    options: Any = None


augmentations: Registry[Callable[[AugmentationInput], Callable[[Tensor], Tensor]]] = Registry(
    "augment.own",
    "given: AugmentationInput",
    Callable,  # type: ignore[arg-type]
)
"""Builders of augmentations by name. What one builds takes float images [B, C, H, W] in [0, 1] on the device, as the
other augmentations left them, and gives images of the same shape. It may draw from torch's global generator, as
kornia's and torchvision's do; draws are seeded with the batch."""
