"""A model, a head, an objective, a method, a data set and an augmentation of one's own, without touching the package.

locallearn train my-method --plugin examples/plugins/my_plugin.py --model my-net --depth 2 \\
    --data.name stripes --run runs/mine
locallearn train --resume runs/mine
"""

import dataclasses
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

import locallearn as ll
from locallearn.config import AugmentConfig
from locallearn.nn.blocks import ConvBlock
from locallearn.nn.groups import GroupLinear


@ll.backbones.register("my-net")
def my_net(given: ll.BackboneInput):
    """Three convolutions. A block is built for a number of groups, and dense where it sees those of all groups."""
    blocks = [
        ll.Block("first", 16, partial(ConvBlock, given.channels, 16)),
        ll.Block("second", 32, partial(ConvBlock, 16, 32, 2)),
        ll.Block("third", 32, partial(ConvBlock, 32, 32)),
    ]
    return tuple(blocks), 1.0


class ChannelHead(nn.Module):
    """The mean and the largest value of every channel, and one linear layer a group.

    Shapes: [B, C, H, W] in, [G, B, outputs] out; a group sees its own channels.
    """

    def __init__(self, given: ll.HeadInput):
        super().__init__()
        self.groups = given.groups
        self.linear = GroupLinear(given.groups, 2 * given.shape[0] // given.groups, given.outputs)

    def forward(self, features):
        flat = features.unflatten(1, (self.groups, -1)).flatten(3).movedim(1, 0)
        return self.linear(torch.cat([flat.mean(-1), flat.amax(-1)], -1))


@ll.heads.register("mean-max")
def mean_max(given: ll.HeadInput):
    return ChannelHead(given)


class Margin(ll.Objective):
    """Multi-class hinge loss through the head that the settings name."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, features, batch):
        logits = self.head(features)
        total = torch.stack([F.multi_margin_loss(each.float(), batch.labels) for each in logits])
        return ll.LocalLoss(total, {"margin": total.detach()}, logits.detach())

    def logits(self, features):
        return self.head(features)


@ll.objectives.register("margin")
def margin(given: ll.ObjectiveInput):
    return Margin(given.head(given.classes))


@ll.methods.register("my-method")
def my_method(config: ll.RunConfig):
    """Grouped modules with the margin loss and the head above; the network's classifier is decoupled."""
    objective = dataclasses.replace(config.objective, loss="margin", head="mean-max")
    return ll.Layout(tuple(ll.ModuleLayout(groups, groups, objective) for groups in config.groups), True)


@ll.datasets.register("stripes")
def stripes(config):
    """Grey 8 x 8 images of stripes of four directions, under noise."""
    draw = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    patterns = torch.stack([rows, columns, rows + columns, rows - columns]) % 4 < 2

    def images(n):
        labels = torch.randint(4, (n,), generator=draw)
        noise = torch.randint(100, (n, 1, 8, 8), generator=draw)
        return ll.ImageSet((patterns[labels][:, None] * 150 + noise).to(torch.uint8), labels)

    return ll.Dataset(
        name="stripes",
        train=images(400),
        test=images(100),
        classes=("rows", "columns", "rising", "falling"),
        mean=(0.49,),
        std=(0.31,),
        augment=AugmentConfig(crop_padding=0, padding_mode="constant", flip=0.0),
        source="drawn stripes",
    )


@dataclasses.dataclass(frozen=True)
class NoiseOptions:
    """Settings of the noise."""

    strength: float = 0.1
    """Standard deviation of the noise, of pixels in [0, 1]."""


@ll.augmentations.register("noise", options=NoiseOptions)
def noise(given: ll.AugmentationInput):
    """Another noise for every pixel; what is drawn here is the same for a batch whenever it is made."""
    return lambda pixels: (pixels + given.options.strength * torch.randn_like(pixels)).clamp(0, 1)
