"""What a CUDA graph is, on the CPU."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recording(TorchDispatchMode):
    """Operators with the very tensors that they read and wrote, to compute again; in place of ``CudaGraph``."""

    def __init__(self, device):
        super().__init__()
        self._calls, self._before = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self._before += [(t, t.clone()) for t in changed_by(func, args, kwargs)]
        out = func(*args, **kwargs)
        if not func.is_view and not func.overloadpacket.__name__.startswith("empty"):
            self._calls.append((func, args, kwargs, out))
        return out

    def warm_up(self, function):
        return function()

    def record(self, function):
        with self:
            result = function()
        with torch.no_grad():
            for tensor, before in reversed(self._before):  # a recording computes nothing
                tensor.copy_(before)
        return result

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, out in self._calls:
            for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old is not new:
                    old.copy_(new)


def changed_by(func, args, kwargs):
    """Tensors that an operator writes to; batch norm does not say so of its statistics."""
    if func.overloadpacket.__name__ == "native_batch_norm":
        return [t for t in args[3:5] if t is not None]
    given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
    written = [given[a.name] for a in func._schema.arguments if a.alias_info and a.alias_info.is_write]
    return [t for t in tree_leaves(written) if isinstance(t, Tensor)]
