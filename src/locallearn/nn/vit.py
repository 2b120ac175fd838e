"""The blocks of a vision transformer (Dosovitskiy et al., 2021). Tokens stay maps, so every head and pool fits.

Attention mixes all channels, so these blocks have no groups.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from locallearn.config import ImageSize, sides
from locallearn.data.patches import patches

HEAD = 32
"""Least channels of one attention head."""


def n_heads(width: int) -> int:
    """As many attention heads as divide ``width`` into ``HEAD`` channels or more each."""
    return next(n for n in range(max(1, width // HEAD), 0, -1) if width % n == 0)


def sine_cosine(rows: int, columns: int, width: int) -> Tensor:
    """Fixed sine-cosine embeddings of the places of a grid, row by row, [rows * columns, width] (He et al., 2022).

    A quarter each is sines and cosines of the column, and sines and cosines of the row.
    """
    quarter = -(-width // 4)
    frequencies_Q = 10_000 ** -(torch.arange(quarter) / quarter)
    row_T1 = torch.arange(rows).repeat_interleave(columns)[:, None]
    column_T1 = torch.arange(columns).repeat(rows)[:, None]
    angles = column_T1 * frequencies_Q, row_T1 * frequencies_Q
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], 1)[:, :width].contiguous()


def to_tokens(x_BCHW: Tensor) -> Tensor:
    """Maps as tokens, row by row, [B, C, H, W] -> [B, H W, C]; a view where memory is channels-last."""
    return x_BCHW.flatten(2).mT


def to_maps(x_BTC: Tensor, sides: torch.Size | tuple[int, int]) -> Tensor:
    """Tokens as channels-last maps, [B, H W, C] -> [B, C, H, W]."""
    return x_BTC.mT.unflatten(2, tuple(sides))


class PatchEmbedding(nn.Module):
    """Patches to tokens: a linear layer, and the embedding of each patch's place.

    Args:
        channels: of the image.
        image_size: side of the image, or its height and width [pixels].
        patch: side of a patch [pixels], a divisor of both.
        width: channels of a token.

    Shapes: images [B, channels, H, W] in, a token for every patch [B, width, H / patch, W / patch] out; or some
    patches with their numbers (``locallearn.data.patches.shown``) in, and their tokens [B, width, 1, V] out.
    """

    places: Tensor

    def __init__(self, channels: int, image_size: ImageSize, patch: int, width: int) -> None:
        super().__init__()
        height, width_of_image = sides(image_size)
        self.channels, self.patch, self.grid = channels, patch, (height // patch, width_of_image // patch)
        self.linear = nn.Linear(channels * patch * patch, width)
        self.register_buffer("places", sine_cosine(*self.grid, width), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens as maps."""
        if x.shape[1] == self.channels:
            tokens_BTC = self.linear(patches(x, self.patch)) + self.places
            return to_maps(tokens_BTC, self.grid)
        numbers_BV = x[:, -1, 0].long()
        tokens_BVC = self.linear(x[:, :-1, 0].mT) + self.places[numbers_BV]
        return to_maps(tokens_BVC, (1, x.shape[3]))


class Attend(nn.Module):
    """Scaled dot-product attention of ``heads`` heads: queries, keys and values [B, T, 3 C] -> [B, T, C].

    ``causal`` lets a token see those before it and itself alone.
    """

    def __init__(self, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal

    def forward(self, qkv_BT3C: Tensor) -> Tensor:
        """Mix the tokens of every image."""
        query, key, value = qkv_BT3C.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self._attended(query, key, value).transpose(1, 2).flatten(2)

    def _attended(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)


class TransformerBlock(nn.Module):
    """Self-attention and a multi-layer perceptron, each on normalised tokens and added to what came in.

    Args:
        width: C, channels of a token; the perceptron has four times as many hidden units.
        last: normalise what goes out, as a network's last block does.

    Shapes: maps [B, C, H, W] in and out, or those of some tokens [B, C, 1, V].
    """

    def __init__(self, width: int, last: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = nn.Sequential(nn.Linear(width, 3 * width), Attend(n_heads(width)), nn.Linear(width, width))
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.norm = nn.LayerNorm(width, eps=1e-6) if last else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Features of the same shape."""
        tokens_BTC = to_tokens(x)
        tokens_BTC = tokens_BTC + self.attention(self.norm1(tokens_BTC))
        tokens_BTC = tokens_BTC + self.mlp(self.norm2(tokens_BTC))
        return to_maps(self.norm(tokens_BTC), x.shape[2:])


class PatchDecoder(nn.Module):
    """From the visible patches' features to the pixels of all patches (He et al., 2022).

    Hidden patches are one learned token; every token has the embedding of its place.

    Args:
        channels: C, channels of the features.
        grid: rows and columns of patches of the image.
        outputs: numbers of a patch.
        width: channels of the decoder's tokens.
        depth: transformer blocks.

    Shapes: features [B, C, 1, V] and numbers [B, V] of V visible patches in, [B, rows * columns, outputs] out.
    """

    places: Tensor

    def __init__(self, channels: int, grid: tuple[int, int], outputs: int, width: int, depth: int) -> None:
        super().__init__()
        self.grid = grid
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.linear = nn.Linear(channels, width)
        self.hidden = nn.Parameter(torch.zeros(width))
        self.register_buffer("places", sine_cosine(*grid, width), persistent=False)
        self.blocks = nn.Sequential(*(TransformerBlock(width, last=i == depth - 1) for i in range(depth)))
        self.out = nn.Linear(width, outputs)

    def forward(self, features: Tensor, visible_BV: Tensor) -> Tensor:
        """Pixels of every patch, as ``locallearn.data.patches.patches`` has them."""
        x_BVD = self.linear(self.norm(to_tokens(features)))
        batch, _, width = x_BVD.shape
        hidden_BTD = self.hidden.to(x_BVD.dtype).expand(batch, len(self.places), width)
        x_BTD = hidden_BTD.scatter(1, visible_BV[..., None].expand_as(x_BVD), x_BVD) + self.places
        return self.out(to_tokens(self.blocks(to_maps(x_BTD, self.grid))))
