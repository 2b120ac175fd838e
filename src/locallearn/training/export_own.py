"""Exporting a user's own model after it has been trained as stages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only

from locallearn.core.batches import LABELS, model_call
from locallearn.core.split_network import SplitNetwork
from locallearn.errors import UsageError
from locallearn.files import replacing, write_atomically
from locallearn.nn.copies import copied
from locallearn.nn.features import prediction
from locallearn.training.export_files import DESCRIPTION, describe_onnx, new_files, without_chatter, write_program

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and named arguments."""


class ScoresOf(nn.Module):
    """A model that gives its scores alone.

    Args:
        model: the model; its output may be anything that a split model's may.
        named: the arguments that it is given by name; torch.export must read them off the signature.
    """

    def __init__(self, model: nn.Module, named: Iterable[str]) -> None:
        super().__init__()
        self.model = model

        def forward(*args: Any, **kwargs: Any) -> Tensor:
            scores = prediction(model(*args, **kwargs))
            if scores is None:
                raise UsageError("network: the model gives no scores without labels, so there is nothing to export")
            return scores

        keywords = [Parameter(name, Parameter.KEYWORD_ONLY) for name in named]
        signature = Signature([Parameter("args", Parameter.VAR_POSITIONAL), *keywords])
        forward.__signature__ = signature  # type: ignore[attr-defined]
        self.forward = forward


def export_network(network: SplitNetwork, folder: Path, formats: Sequence[str], example: Any) -> list[Path]:
    """Write the files; see ``ll.export``."""
    inputs = _inputs(network, example)
    paths = new_files(folder, formats)
    model = ScoresOf(copied(network.model).cpu().eval(), inputs[1])
    with torch.no_grad(), without_chatter():
        program = None if set(formats) <= {"safetensors"} else _program(model, inputs)
        scores = model(*inputs[0], **inputs[1])
        description = _described(network, inputs, scores, program)
        for name, path in zip(formats, paths, strict=True):
            with replacing(path) as temporary:
                if name == "safetensors":
                    state = network.merge().state_dict()  # a tensor of two names is written twice
                    own = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
                    save_file(own, temporary, {"locallearn": json.dumps(description)})
                elif program is not None and name == "torch-export":
                    write_program(program, description, temporary)
                elif program is not None:
                    torch.onnx.export(program, (), temporary, dynamo=True, external_data=False, verbose=False)
                    describe_onnx(temporary, description)
    write_atomically(folder / DESCRIPTION, json.dumps(description, indent=2) + "\n")
    return [*paths, folder / DESCRIPTION]


def _inputs(network: SplitNetwork, example: Any) -> Inputs:
    """What the model is called with where it has been trained: no labels."""
    if example is None:
        raise UsageError("example: a batch is needed to export a user's own model, as its step takes it")
    call = model_call(network.model, example)
    kwargs = {name: value for name, value in call.kwargs.items() if name not in LABELS}
    return tree_map_only(Tensor, lambda x: x.detach().cpu(), (call.args, kwargs))


def _program(model: nn.Module, inputs: Inputs) -> torch.export.ExportedProgram:
    """The model's graph, for batches (and token sequences) of any size where the model allows that."""
    examples = next(len(x) for x in _tensors(inputs) if x.dim())
    first: Exception | None = None
    fixed: torch.export.ExportedProgram | None = None
    # torch's bytecode tracer is slower, and follows a size that the model takes with len()
    for free, strict in ((_batch_and_tokens, False), (_batch_and_tokens, True), (_batch, False), (_nothing, False)):
        args, kwargs = tree_map(lambda x, free=free: free(x, examples), inputs)
        shapes = ({"args": args} if args else {}) | kwargs
        try:
            program = torch.export.export(model, *inputs, dynamic_shapes=shapes, strict=strict)
        except Exception as error:
            first = first or error
            continue
        if isinstance(_sizes(_traced(program)[0])[0], str):
            return program
        fixed = fixed or program
    if fixed is not None:
        return fixed
    said = str(first).strip().split("\n")[0]
    raise UsageError(f"--formats: torch.export cannot trace the model ({said}); write safetensors alone") from first


def _batch_and_tokens(value: Any, examples: int) -> Any:
    found = _batch(value, examples)
    if found and not value.is_floating_point() and value.dim() > 1:
        found[1] = torch.export.Dim.AUTO
    return found


def _batch(value: Any, examples: int) -> Any:
    batched = isinstance(value, Tensor) and value.dim() > 0 and len(value) == examples
    return {0: torch.export.Dim.AUTO} if batched else None


def _nothing(value: Any, examples: int) -> Any:
    return None


def _tensors(inputs: Inputs) -> Iterator[Tensor]:
    yield from (x for x in tree_flatten(inputs)[0] if isinstance(x, Tensor))


def _traced(program: torch.export.ExportedProgram) -> list[Tensor]:
    """The inputs as the program knows them: a size that is free is no number."""
    users = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"}
    nodes = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in users]
    return [node.meta["val"] for node in nodes if isinstance(node.meta.get("val"), Tensor)]


def _sizes(traced: Tensor) -> list[int | str]:
    """A number, or the name of a size that is free."""
    names = [str(size) for size in traced.shape]
    return [int(name) if name.isdigit() else name for name in names]


def _described(
    network: SplitNetwork, inputs: Inputs, scores: Tensor, program: torch.export.ExportedProgram | None
) -> dict[str, Any]:
    """What a server must know: inputs, outputs, and which sizes are free."""
    args, kwargs = inputs
    named = {**{str(i): value for i, value in enumerate(args)}, **kwargs}
    shapes: list[Any] = [list(x.shape) for x in _tensors(inputs)]
    if program is not None:
        shapes = [_sizes(x) for x in _traced(program)]
    given = [(name, value) for name, value in named.items() if isinstance(value, Tensor)]
    tensors = [{"name": name, "type": str(value.dtype).removeprefix("torch.")} for name, value in given]
    if len(tensors) == len(shapes):
        tensors = [{**tensor, "shape": shape} for tensor, shape in zip(tensors, shapes, strict=True)]
    return {
        "output": "scores",
        "scores": list(scores.shape[1:]),
        "model": type(network.model).__name__,
        "cuts": [piece.path for piece in network.pieces[:-1]],
        "inputs": tensors,
    }
