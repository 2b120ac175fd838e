"""Which models a split takes: plain ones, whose parameters are whole and whose modules run as they are written."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils._pytree import tree_leaves

from locallearn.errors import UsageError

_WRAPPERS: dict[type, str] = {
    DistributedDataParallel: "the gradients of its stages are not its reducer's",
    DataParallel: "its replicas would train on their own",
}


def check_plain(model: nn.Module) -> None:
    """Refuse models that are wrapped, sharded or compiled, in one line.

    Raises:
        UsageError: which part is, and what to do instead.
    """
    instead = "split the plain model; several processes are runtime='distributed'"
    for path, part in model.named_modules():
        where = path or "the model"
        for kind, reason in _WRAPPERS.items():
            if isinstance(part, kind):
                raise UsageError(f"model: {where} is in {kind.__name__}, and {reason}; {instead}")
        if _is_sharded(part):
            raise UsageError(f"model: {where} is sharded (FSDP), and its shards would not train; {instead}")
        if isinstance(part, torch.jit.ScriptModule):
            raise UsageError(f"model: {where} is in TorchScript, where stages cannot be cut; split the plain model")
        if hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) is not None:
            plain = "its _orig_mod" if hasattr(part, "_orig_mod") else "copy.deepcopy gives one"
            raise UsageError(
                f"model: {where} is compiled, where stages cannot be cut; split the plain model ({plain}), with "
                "compile=True where its blocks are to be compiled"
            )
    for name, parameter in model.named_parameters():
        if parameter.is_inference():
            raise UsageError(f"model: {name} was made in torch.inference_mode, where nothing trains; make it outside")
        if hasattr(parameter, "full_tensor"):
            raise UsageError(f"model: {name} is a DTensor, of which this process has a part; {instead}")
        if getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise UsageError(
                f"model: {name} has a hook that runs after its gradient, where optimizers inside the backward pass "
                "update the model's own weights; split the model without, every stage has an optimizer of its own"
            )


def _is_sharded(part: nn.Module) -> bool:
    if not torch.distributed.is_available():
        return False
    return any(kind.__name__ in ("FullyShardedDataParallel", "FSDPModule") for kind in type(part).__mro__)


def check_example(model: nn.Module, inputs: object) -> None:
    """Refuse an example without examples, or with numbers where the model has none.

    Numbers have to be finite; masks may have minus infinity.

    Raises:
        UsageError: it has.
    """
    empty = next((name for name, parameter in model.named_parameters() if parameter.is_meta), "")
    for x in tree_leaves(inputs):
        if not isinstance(x, torch.Tensor):
            continue
        if empty and not x.is_meta:
            expected = "give the model memory (to_empty) and weights first"
            raise UsageError(f"model: {empty} has no values to train (it is on the meta device); {expected}")
        if x.is_nested:
            raise UsageError("example: nested tensors are not taken; pad the examples to one length")
        if x.dim() and not len(x):
            raise UsageError(f"example: inputs {tuple(x.shape)} have no examples")
        values = x if x.layout == torch.strided else x.coalesce().values() if x.is_sparse else x.values()
        if x.is_floating_point() and not x.is_meta and not (values.isfinite() | values.isneginf()).all():
            raise UsageError(
                f"example: inputs {tuple(x.shape)} of {type(model).__name__} have NaN or infinity in them"
            )
