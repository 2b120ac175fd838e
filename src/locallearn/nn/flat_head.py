"""A linear classifier on every number of the features: Mono-Forward's head."""

from __future__ import annotations

from torch import Tensor, nn

from locallearn.nn.groups import GroupLinear
from locallearn.nn.heads import HeadInput, heads, seen_by_groups


class FlatHead(nn.Module):
    """One linear layer on the flattened features (Mono-Forward, Gong et al., 2025: "goodness" G = a M^T).

    With ``stop_gradient`` group g's layer sees all features, the others' detached; without, its own alone.

    Args:
        shape: features of one image over all groups, (C, H, W) or (C,).
        outputs: size of each head's output.
        groups: G.
        stop_gradient: whether heads see the other groups' features.

    Shapes: input [B, C, H, W] or [B, C], output [G, B, outputs].
    """

    def __init__(self, shape: tuple[int, ...], outputs: int, groups: int = 1, stop_gradient: bool = False) -> None:
        super().__init__()
        self.groups = groups
        self.stop_gradient = stop_gradient and groups > 1
        numbers = 1
        for size in shape:
            numbers *= size
        self.linear = GroupLinear(groups, numbers if self.stop_gradient else numbers // groups, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of all heads, [G, B, outputs]."""
        return self.linear(seen_by_groups(x, self.groups, self.stop_gradient))


@heads.register("flat")
def flat(given: HeadInput) -> FlatHead:
    """One linear layer on the flattened features."""
    return FlatHead(given.shape, given.outputs, given.groups, given.stop_gradient)
