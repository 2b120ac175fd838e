"""A backbone of your own as a list of blocks: any K and G, the command line, checkpoints and reports come with it.

Run it with: python examples/own_model.py
"""

import dataclasses
import tempfile
from functools import partial

from torch import Tensor, nn

import locallearn as ll
from locallearn.nn.group_conv import conv


class Separable(nn.Module):
    """A 1x1 convolution, then a 3x3 convolution of every channel for itself.

    ``groups`` is G. ``dense`` is true for the first block of a module, which sees the channels of all groups. Rows
    of every weight belong to the groups in order, so G must divide their number.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, groups: int, dense: bool) -> None:
        super().__init__()
        self.pointwise = conv(inputs, outputs, 1, 1, groups, dense=dense)
        self.depthwise = nn.Conv2d(outputs, outputs, 3, stride, 1, groups=outputs, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Features [B, outputs, H, W], or of half the side."""
        return self.norm(self.depthwise(self.pointwise(x_BCHW))).relu()


@ll.backbones.register("separable")
def separable(given: ll.BackboneInput) -> tuple[tuple[ll.Block, ...], float]:
    """Four blocks; the second value scales the hidden units of auxiliary heads."""
    widths = [32 * given.factor, 32 * given.factor, 64 * given.factor, 64 * given.factor]
    blocks, inputs = [], given.channels
    for i, outputs in enumerate(widths):
        blocks.append(ll.Block(f"block{i + 1}", outputs, partial(Separable, inputs, outputs, 2 if i == 2 else 1)))
        inputs = outputs
    return tuple(blocks), 1.0


base = ll.recipe("gn-dgl")
config = dataclasses.replace(
    base, model="separable", depth=2, width=(2,), train=dataclasses.replace(base.train, epochs=5)
)
for node in ll.cost(config, ll.ImageShape(1, 8, 10)).nodes:
    print(f"module {node.module} group {node.group}: {node.macs:,} multiply-accumulates")

with tempfile.TemporaryDirectory() as folder:
    accuracy = ll.train(config, f"{folder}/run")["accuracy"]["ensemble"]
    assert accuracy > 0.8
    print(f"ensemble above 80 %: {accuracy > 0.8}")
