"""Hooks that a user's model brings along, where a submodule of it answers instead of computing."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from locallearn.nn.features import map_tensors


class UserHooks:
    """The forward hooks of a model's own, which change nothing in some calls.

    An answer is what the submodule gave together with its hooks. They may keep what they see for later in the pass,
    but it is not theirs to change once more. Torch's own, which make weights (the older forms of spectral norm,
    weight norm and pruning), are the business of the stage that computes.

    Args:
        model: its hooks so far are the user's; those that are registered later are as torch has them.

    Attributes:
        answering: paths of the submodules that answer now.
    """

    def __init__(self, model: nn.Module) -> None:
        self.answering: set[str] = set()
        for path, part in model.named_modules():
            for hooks in (part._forward_pre_hooks, part._forward_hooks):
                for key, hook in hooks.items():
                    hooks[key] = partial(self._call, path, hook)

    def _call(self, path: str, hook: Any, module: nn.Module, *given: Any) -> Any:
        if path not in self.answering:
            return hook(module, *given)
        if not str(getattr(hook, "__module__", "")).startswith("torch."):
            hook(module, *map_tensors(list(given), _own))
        return None


def _own(x: Tensor) -> Tensor:
    """A copy that may be written into; placeholders, which take the memory of one number, stay."""
    return torch.clone(x) if any(x.stride()) else x
