"""Linear layers on every number of the features: Mono-Forward's head, and SCPL's."""

from __future__ import annotations

from math import prod

from torch import Tensor, nn

from locallearn.config.own_parts import FlatOptions
from locallearn.nn.groups import GroupLinear
from locallearn.nn.heads import HeadInput, heads, seen_by_groups


class FlatHead(nn.Module):
    """One linear layer on the flattened features (Mono-Forward, Gong et al., 2025: "goodness" G = a M^T), or two.

    Two with ReLU between are the projection of SCPL (Wang et al., 2022).

    With ``stop_gradient`` group g's layer sees all features, the others' detached; without, its own alone.

    Args:
        shape: features of one image over all groups, (C, H, W) or (C,).
        outputs: size of each head's output.
        groups: G.
        stop_gradient: whether heads see the other groups' features.
        hidden: units between two layers; 0 has one layer.

    Shapes: input [B, C, H, W] or [B, C], output [G, B, outputs].
    """

    def __init__(
        self, shape: tuple[int, ...], outputs: int, groups: int = 1, stop_gradient: bool = False, hidden: int = 0
    ) -> None:
        super().__init__()
        self.groups = groups
        self.stop_gradient = stop_gradient and groups > 1
        numbers = prod(shape) if self.stop_gradient else prod(shape) // groups
        self.linear = GroupLinear(groups, numbers, hidden or outputs)
        self.more = nn.Sequential(nn.ReLU(), GroupLinear(groups, hidden, outputs)) if hidden else nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of all heads, [G, B, outputs]."""
        return self.more(self.linear(seen_by_groups(x, self.groups, self.stop_gradient)))


@heads.register("flat", options=FlatOptions)
def flat(given: HeadInput) -> FlatHead:
    """One or two linear layers on the flattened features."""
    options: FlatOptions = given.options
    return FlatHead(given.shape, given.outputs, given.groups, given.stop_gradient, options.hidden)
