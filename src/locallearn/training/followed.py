"""First blocks of modules that heads of the modules before them follow, where those are in other processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from locallearn.core.module import LocalModule
from locallearn.core.network import network_name
from locallearn.core.shard import rows, shard
from locallearn.nn.momentum import MomentumHead
from locallearn.plan.mesh import Placement


class Followed:
    """What heads of this process look at, and what other processes look at here (head ``momentum``).

    Where module k + 1 is in this process, a head of module k looks at its first block itself; elsewhere at a copy,
    which the runtime keeps as the block is.

    Args:
        modules: of the whole network, with the weights that training begins with.
        held: this process's groups of its modules, by number of the module counted from 0.
        placement: which nodes are where.
        rank: this process.

    Attributes:
        read: by (reader, owner) the weights of a module that another one reads: the owner's, and the reader's copies.
    """

    def __init__(
        self, modules: Sequence[LocalModule], held: Mapping[int, LocalModule], placement: Placement, rank: int
    ) -> None:
        self.read: dict[tuple[int, int], list[tuple[nn.Parameter, nn.Parameter]]] = {}
        self._copies: dict[int, tuple[LocalModule, int]] = {}
        for reader, module in enumerate(modules):
            if reader in held:
                held[reader].reads.clear()  # of the whole network's weights; these are elsewhere
            for owner in module.reads:
                here = held.get(owner)
                if here is None and reader in held:
                    here = shard(modules[owner], placement.held(reader, rank), placement.mesh.data)
                    self._copies[owner] = here, modules[owner].groups
                if here is not None:
                    self._look(held.get(reader), here.blocks[0])
                    self.read[reader, owner] = [(weight, weight) for weight in here.blocks[0].parameters()]

    @staticmethod
    def _look(reader: LocalModule | None, block: nn.Module) -> None:
        for head in () if reader is None else reader.objective.modules():
            if isinstance(head, MomentumHead):
                head.look_at(block)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the copies to what the blocks are in a checkpoint of all processes together."""
        for owner, (module, total) in self._copies.items():
            (name, block), *_ = module.blocks.named_children()
            groups = range(module.first, module.first + module.groups)
            for key, weight in block.named_parameters():
                whole = tensors[f"network/{network_name(owner, f'blocks.{name}.{key}')}"]
                weight.copy_(rows(whole, groups, total))
