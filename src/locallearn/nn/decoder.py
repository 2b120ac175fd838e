"""Decoders: from features back to the image (InfoPro), or to what a module was given (LoPT)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from locallearn.config import ImageSize, sides


class Decoder(nn.Module):
    """Bilinear upsampling to the image's size, then two 3x3 convolutions (Wang et al., 2021).

    The first convolution is followed by batch norm and ReLU. The sigmoid that would end it belongs to the loss,
    which takes scores. Corners of the upsampled features lie on corners of the image, as in the public code.

    Args:
        channels: C, channels of the features.
        image_channels: channels of the image.
        size: side of the image, or its height and width [pixels].
        hidden: channels between the convolutions, 12 times the model's width factor.

    Shapes: input [B, C, H, W], output [B, image_channels, height, width].
    """

    def __init__(self, channels: int, image_channels: int, size: ImageSize, hidden: int = 12) -> None:
        super().__init__()
        self.size = sides(size)
        self.conv1 = nn.Conv2d(channels, hidden, 3, padding=1)
        self.bn = nn.BatchNorm2d(hidden)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(hidden, image_channels, 3, padding=1)
        for conv in (self.conv1, self.conv2):
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Scores of the pixels; their sigmoid is the image."""
        x = F.interpolate(features, size=self.size, mode="bilinear", align_corners=True)
        return self.conv2(self.relu(self.bn(self.conv1(x))))


class InputDecoder(nn.Module):
    """LoPT's decoder: layer norm, a linear layer to fewer channels, GELU, and a linear layer, at every position.

    Args:
        channels: C.
        inner: channels between.
        outputs: channels that come out.

    Shapes: maps [B, C, H, W], tokens [B, T, C] or vectors [B, C] in; the same with ``outputs`` channels out.
    """

    def __init__(self, channels: int, inner: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, inner), nn.GELU(), nn.Linear(inner, outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Channels of another number."""
        return self.layers(x.movedim(1, -1)).movedim(-1, 1) if x.dim() == 4 else self.layers(x)
