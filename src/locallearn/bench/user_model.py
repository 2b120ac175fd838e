"""A user's own model by name, with a batch: from Python, from timm or from a transformers configuration."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from locallearn.bench.cells import MODELS
from locallearn.cli.named_models import Inputs, named_model, random_images
from locallearn.cli.own_model import PACKAGES, own_object
from locallearn.core.network import LocalNetwork
from locallearn.errors import UsageError


def load(name: str, inputs: Inputs) -> tuple[nn.Module, Any]:
    """A model in training mode with random weights, and a random batch, the same at every call.

    Args:
        name: as for ``named_model``, or ``package.module:function``, a function without arguments that gives
            (model, batch), or a model of images alone.
        inputs: what a batch is made of.

    Raises:
        UsageError: there is no such model, or a package is missing.
    """
    kind, _, rest = name.partition(":")
    if not kind or not rest:
        raise UsageError(f"bench model: {name!r} is not valid; expected {MODELS}")
    if kind in PACKAGES:
        return named_model(name, inputs, "bench model")
    torch.manual_seed(0)
    model, batch = _imported(kind, rest, inputs)
    return model.train(), batch


def _imported(module: str, function: str, inputs: Inputs) -> tuple[nn.Module, Any]:
    where = f"bench model: {module}:{function}"
    made = own_object(f"{module}:{function}", "bench model")
    if isinstance(made, nn.Module):
        try:
            return made, random_images(made, 3, inputs.image_size or 224, inputs.batch_size)
        except UsageError as error:
            raise UsageError(f"bench model: {error}") from error
    if isinstance(made, (tuple, list)) and len(made) == 2 and isinstance(made[0], nn.Module):
        if isinstance(made[0], LocalNetwork):
            raise UsageError(f"{where} gave a network that is split already; expected the model")
        return made[0], made[1]
    raise UsageError(f"{where} gave {type(made).__name__}; expected a model, or a pair (model, batch)")


def examples_of(batch: Any) -> int:
    """Examples of a batch: the size of its tensors' first dimension."""
    sizes: list[int] = []
    tree_map_only(Tensor, lambda x: sizes.append(len(x)) if x.dim() else None, batch)
    return max(sizes, default=0)


def rows_of(batch: Any, part: int, parts: int) -> Any:
    """One of so many equal parts of a batch."""
    return tree_map_only(Tensor, lambda x: x.tensor_split(parts)[part] if x.dim() else x, batch)
