"""Hooks that a user's model brings along, where a submodule of it answers instead of computing."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn


class UserHooks:
    """The forward hooks of a model's own, which are left out in some calls.

    An answer is what the submodule gave together with its hooks; to call them on it would apply them twice, and what
    they count or keep (as the older form of spectral norm does) is the business of the stage that computes.

    Args:
        model: its hooks so far are the user's; those that are registered later are always called.

    Attributes:
        left_out: paths of the submodules whose hooks are not called now.
    """

    def __init__(self, model: nn.Module) -> None:
        self.left_out: set[str] = set()
        for path, part in model.named_modules():
            for hooks in (part._forward_pre_hooks, part._forward_hooks):
                for key, hook in hooks.items():
                    hooks[key] = partial(self._call, path, hook)

    def _call(self, path: str, hook: Any, *given: Any) -> Any:
        return None if path in self.left_out else hook(*given)
