"""Models as users write them: residual, branching, with tuples and dataclasses between blocks."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


class Residual(nn.Module):
    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """layer1.0, layer1.1, layer2.0, layer2.1, as torchvision names them."""

    def __init__(self, classes=5):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 8, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(Residual(8, 8), Residual(8, 8))
        self.layer2 = nn.Sequential(Residual(8, 16, 2), Residual(16, 16))
        self.fc = nn.Linear(16, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))


@dataclass
class State:
    hidden: torch.Tensor
    depth: int


class Encoder(nn.Module):
    """A pre-norm transformer layer that gives a tuple, or a dataclass."""

    def __init__(self, width, as_state):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.as_state = as_state

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.mlp(self.norm2(x))
        return State(x, 1) if self.as_state else (x, None)


class Transformer(nn.Module):
    """Class token, position embeddings, layers that give tuples and dataclasses in turn."""

    def __init__(self, classes=5, layers=3, width=16, tokens=6):
        super().__init__()
        self.embed = nn.Linear(4, width)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.position = nn.Parameter(torch.randn(1, tokens + 1, width) * 0.02)
        self.layers = nn.ModuleList(Encoder(width, i % 2 == 1) for i in range(layers))
        self.head = nn.Linear(width, classes)

    def forward(self, x, *, labels=None):
        x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], 1) + self.position
        for layer in self.layers:
            out = layer(x)
            x = out.hidden if isinstance(out, State) else out[0]
        logits = self.head(x[:, 0])
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


class UNet(nn.Module):
    """A long skip from ``down1`` to ``up1``."""

    def __init__(self, classes=5):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, 1, 1)
        self.down1 = nn.Conv2d(4, 8, 3, 1, 1)
        self.down2 = nn.Conv2d(8, 8, 3, 2, 1)
        self.up1 = nn.ConvTranspose2d(8, 8, 2, 2)
        self.merge = nn.Conv2d(16, 8, 3, 1, 1)
        self.fc = nn.Linear(8, classes)

    def forward(self, x):
        skip = F.relu(self.down1(F.relu(self.stem(x))))
        x = self.up1(F.relu(self.down2(skip)))
        return self.fc(F.relu(self.merge(torch.cat([x, skip], 1))).mean((2, 3)))


def images(n=6, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, 8, 8, generator=draw), torch.randint(5, (n,), generator=draw)


def sequences(n=6, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, 6, 4, generator=draw), torch.randint(5, (n,), generator=draw)
