"""Blocks: the smallest pieces of a backbone that a cut may follow.

Every block takes ``groups`` and ``dense``. Its convolutions (shortcuts too) are split into ``groups`` channel
groups that do not see each other; with ``dense`` its first convolution (and a shortcut's) sees the channels of
all groups, which is how a module begins after a cut, and how the network sees the image.
"""

from __future__ import annotations

from torch import Tensor, nn

from locallearn.nn.group_conv import conv
from locallearn.nn.groups import GroupLinear, OwnChannels, split_vectors
from locallearn.nn.norm_relu import norm_relu


class ConvBlock(nn.Module):
    """[2x2 max pool,] 3x3 convolution, batch norm, ReLU [, dropout].

    Pooling comes first, so that the auxiliary head of a module that ends here sees the features before they are
    pooled, as Nokland and Eidnes (2019) do.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int = 1,
        pool: bool = False,
        dropout: float = 0.0,
        *,
        groups: int = 1,
        dense: bool = True,
    ) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()
        self.conv = conv(inputs, outputs, 3, stride, groups, dense)
        self.bn = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, C, H, W] in and out."""
        return self.dropout(norm_relu(self.bn, self.relu, self.conv(self.pool(x))))


class Residual(nn.Module):
    """A residual block: ``relu(body(x) + shortcut(x))``; the subclass has the body, which ends in a batch norm."""

    last_norm: str
    """Name of the batch norm that the body ends in."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int, dense: bool) -> None:
        super().__init__()
        self.shortcut: nn.Module = nn.Identity()
        self.dense = dense
        if stride != 1 or inputs != outputs:
            shortcut = conv(inputs, outputs, 1, stride, groups, dense)
            self.shortcut = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))
        self.relu = nn.ReLU(inplace=True)

    def before_norm(self, x: Tensor) -> Tensor:
        """The body without its last batch norm."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, C, H, W] in and out."""
        norm = self.get_submodule(self.last_norm)
        return norm_relu(norm, self.relu, self.before_norm(x), self.shortcut(x))

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The body's output and the block's, where both are looked at."""
        body = self.get_submodule(self.last_norm)(self.before_norm(x))
        return body, self.relu(body + self.shortcut(x))

    def shortcut_of(self, groups: range, total: int) -> None:
        """Let a shortcut without layers, of a block that sees all channels, give those of some groups only."""
        if self.dense and isinstance(self.shortcut, nn.Identity):
            self.shortcut = OwnChannels(groups, total)


class BasicBlock(Residual):
    """Two 3x3 convolutions with batch norm, and a shortcut (He et al., 2016a)."""

    last_norm = "bn2"

    def __init__(self, inputs: int, outputs: int, stride: int = 1, *, groups: int = 1, dense: bool = True) -> None:
        super().__init__(inputs, outputs, stride, groups, dense)
        self.conv1 = conv(inputs, outputs, 3, stride, groups, dense)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = conv(outputs, outputs, 3, 1, groups, dense=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def before_norm(self, x: Tensor) -> Tensor:
        """The two convolutions, and what is between them."""
        return self.conv2(norm_relu(self.bn1, self.relu1, self.conv1(x)))


class Bottleneck(Residual):
    """1x1, 3x3 and 1x1 convolutions with batch norm, and a shortcut; four times as wide outside as inside."""

    last_norm = "bn3"

    def __init__(self, inputs: int, outputs: int, stride: int = 1, *, groups: int = 1, dense: bool = True) -> None:
        super().__init__(inputs, outputs, stride, groups, dense)
        inner = outputs // 4
        self.conv1 = conv(inputs, inner, 1, 1, groups, dense)
        self.bn1 = nn.BatchNorm2d(inner)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = conv(inner, inner, 3, stride, groups, dense=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = conv(inner, outputs, 1, 1, groups, dense=False)
        self.bn3 = nn.BatchNorm2d(outputs)

    def before_norm(self, x: Tensor) -> Tensor:
        """The three convolutions, and what is between them."""
        y = norm_relu(self.bn1, self.relu1, self.conv1(x))
        return self.conv3(norm_relu(self.bn2, self.relu2, self.conv2(y)))


class LinearBlock(nn.Module):
    """[2x2 max pool,] flatten, linear layer, batch norm, ReLU [, dropout]: maps [B, C, H, W] to vectors [B, outputs].

    Args:
        inputs: features that come in, C * H * W after pooling.
        outputs: features that go out.
        pool: pool first.
        dropout: probability of dropping a feature.
        groups: channel groups.
        dense: whether every group sees the features of all groups.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        pool: bool = False,
        dropout: float = 0.0,
        *,
        groups: int = 1,
        dense: bool = True,
    ) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()
        split = 1 if dense else groups
        self.linear = GroupLinear(split, inputs // split, outputs // split)
        self.bn = nn.BatchNorm1d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, H, W] (or vectors [B, C]) in, vectors out."""
        x_GBI = split_vectors(self.pool(x).flatten(1), self.linear.groups)
        x = self.linear(x_GBI).transpose(0, 1).flatten(1)
        return self.dropout(self.relu(self.bn(x)))
