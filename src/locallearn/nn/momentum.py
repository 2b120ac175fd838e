"""Momentum auxiliary networks: a head that looks through a moving average of the next module's first block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from locallearn.config.own_parts import MomentumOptions
from locallearn.errors import ConfigError
from locallearn.nn.auglocal import see_others
from locallearn.nn.backbones import Block
from locallearn.nn.heads import HeadInput, build_inner, heads
from locallearn.nn.token_heads import Readout


class MomentumHead(nn.Module):
    r"""A head behind two copies of the next module's first block (MAN, Su et al., ECCV 2024).

    .. math:: \mathrm{head}(f(x; \beta) + f(x; \mu)), \quad \mu \leftarrow m \mu + (1 - m) \theta

    with f the block, theta its own weights, beta those of ``bias`` and mu those of ``follower``: a moving average of
    the next module's, begun at its initial ones, and not trained; a gradient passes through it. The bias is trained
    with the head. The authors' code begins the follower with weights of its own and lags one step more.

    This is what flows back between modules: weights, once a step, and never a gradient. At a step they are those that
    module k + 1 has after its update on the batch before, whatever the runtime: threads wait for it, and processes
    send them.

    Args:
        bias: a block like the next module's first one.
        follower: another.
        head: what sees their sum.
        momentum: m of the moving average; at every step it becomes m times itself plus 1 - m times the weights.

    Shapes: input [B, C, H, W] or [B, C], output [G, B, outputs].
    """

    def __init__(self, bias: nn.Module, follower: nn.Module, head: nn.Module, momentum: float = 0.995) -> None:
        super().__init__()
        self.momentum = momentum
        self.bias, self.follower, self.head = bias, untrained(follower), head
        self._followed: tuple[nn.Module, ...] = ()  # a tuple, so that its weights are not registered here

    def follow(self, block: nn.Module) -> None:
        """Follow the weights of this block from now on, beginning with what they are.

        Raises:
            ConfigError: the next module has another number of groups.
        """
        self.look_at(block)
        with torch.no_grad():
            for own, other in self._pairs():
                if own.shape != other.shape:
                    raise ConfigError("objective.head", "momentum", "another head where G differs between modules")
                own.copy_(other)

    @property
    def followed(self) -> nn.Module | None:
        """The block that it follows; None before ``follow``."""
        return self._followed[0] if self._followed else None

    def look_at(self, block: nn.Module) -> None:
        """Go on following the same weights where they are now: in this block."""
        self._followed = (block,)

    @torch.no_grad()
    def advance(self) -> None:
        """Move the follower one step towards what it follows."""
        for own, other in self._pairs():
            own.lerp_(other, 1 - self.momentum)

    @property
    def followed_bytes(self) -> int:
        """What the next module sends of its weights at every step."""
        return sum(other.nbytes for _, other in self._pairs())

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        own = dict(self.follower.named_buffers())
        return [(own[name], weight) for block in self._followed for name, weight in block.named_parameters()]

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of all heads, [G, B, outputs]."""
        return self.head(self.bias(x) + self.follower(x))

    def readout(self, x: Tensor) -> Readout:
        """What the head's last linear layer is given of tokens, and the layer."""
        return self.head.readout(self.bias(x) + self.follower(x))  # type: ignore[operator]


def untrained(module: nn.Module) -> nn.Module:
    """The same module with buffers in place of its parameters: nothing trains them, and checkpoints hold them."""
    for layer in module.modules():
        for name, parameter in list(layer.named_parameters(recurse=False)):
            delattr(layer, name)
            layer.register_buffer(name, parameter.detach().clone())
    return module


@heads.register("momentum", options=MomentumOptions)
def momentum(given: HeadInput) -> nn.Module:
    """The momentum auxiliary network; in the last of the modules, which no other follows, the head alone.

    Raises:
        ConfigError: a user's own model, or groups that do not see each other.
    """
    options: MomentumOptions = given.options
    if given.place is None:
        raise ConfigError("objective.head", "momentum", "another head in a model of your own, such as 1c2f")
    if given.groups > 1 and not given.stop_gradient:
        expected = "true with head momentum, whose copies of the next block see all channels"
        raise ConfigError("objective.stop_gradient", given.stop_gradient, expected)
    if given.place.block + 1 == len(given.place.blocks):
        return build_inner(options.of, given, given.shape)
    block, shape = given.place.blocks[given.place.block + 1], given.place.shapes[given.place.block + 1]
    if given.groups > 1 and block.like is None:
        raise ConfigError("width", given.groups, f"1 with head momentum before {block.name}, which has no maps")
    bias, follower = (_copy(block, given) for _ in range(2))
    return MomentumHead(bias, follower, build_inner(options.of, given, shape), options.momentum)


def _copy(block: Block, given: HeadInput) -> nn.Module:
    made = block.make(groups=given.groups, dense=True)
    return see_others(made, given.groups, given.pool_others) if given.groups > 1 else made
