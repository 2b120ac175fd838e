"""The repeated blocks of a model."""

from __future__ import annotations

from torch import nn


def repeated_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The blocks that a model repeats, by their paths.

    Blocks are the children of lists of modules (``nn.ModuleList``, ``nn.Sequential``) that are not inside another
    such child, where a list has at least two of one class with parameters.
    """
    found: dict[str, nn.Module] = {}
    for name, child in model.named_children():
        found |= {f"{name}.{path}" if path else name: block for path, block in _blocks(child).items()}
    return found


def _blocks(module: nn.Module) -> dict[str, nn.Module]:
    children = dict(module.named_children())
    if isinstance(module, (nn.ModuleList, nn.Sequential)):
        children = {name: child for name, child in children.items() if any(True for _ in child.parameters())}
        kinds = [type(child) for child in children.values()]
        if any(kinds.count(kind) > 1 for kind in kinds):
            lists = {n: child for n, child in children.items() if isinstance(child, (nn.ModuleList, nn.Sequential))}
            if not lists:
                return children
            children = lists
        else:
            children = dict(module.named_children())
    return {f"{name}.{path}": block for name, child in children.items() for path, block in _blocks(child).items()}
