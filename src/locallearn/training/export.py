"""Exporting a trained network: safetensors with a description, ``torch.export``, ONNX."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from locallearn.arguments import checked
from locallearn.config import from_dict, sides, to_dict
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.core.inference import EnsembleNetwork, InferenceNetwork
from locallearn.core.split_network import SplitNetwork
from locallearn.data.images import FITTING
from locallearn.errors import UsageError
from locallearn.files import replacing, write_atomically
from locallearn.training.export_files import (
    DESCRIPTION,
    FORMATS,
    WEIGHTS,
    check_formats,
    describe_onnx,
    new_files,
    without_chatter,
    write_program,
)
from locallearn.training.export_own import export_network
from locallearn.training.finished import OpenedRun

Exported = InferenceNetwork | EnsembleNetwork


@checked
def export(
    run: OpenedRun | SplitNetwork,
    folder: str | Path,
    formats: Sequence[str] = FORMATS,
    ensemble: bool = False,
    *,
    example: Any = None,
) -> list[Path]:
    """Write a trained network without its auxiliary heads.

    Of a run every file takes images [B, C, H, W] with pixels in [0, 1], for any B, and gives scores [B, classes];
    that of a self-supervised network gives features [B, C]. ``network.safetensors`` is read back by
    ``load_exported``, ``network.pt2`` by ``torch.export.load``, ``network.onnx`` by any ONNX runtime.

    Of a user's own model (``ll.split``) ``network.safetensors`` has the weights of ``merge()``, which the
    user's own class loads (``mine.load_state_dict(safetensors.torch.load_file(path))``); the others take the model's
    arguments as in ``example``, without labels, and give its scores. Width groups stay split in those.

    Args:
        run: an opened run, or a network of ``ll.split``.
        folder: where the files go; it must not hold files of these names yet.
        formats: some of ``safetensors``, ``torch-export`` and ``onnx``.
        ensemble: keep the auxiliary heads, and give the layerwise ensemble's class probabilities [B, classes].
        example: of a user's own model, a batch as its ``step`` takes it. Its size is free where the model allows
            that, as is the length of token sequences; ``network.json`` tells which sizes are.

    Returns:
        The files; the last one, ``network.json``, has class names and preprocessing, or inputs and output. They are
        also in the metadata of ONNX and safetensors (key ``locallearn``) and in the extra file ``locallearn.json`` of
        ``torch.export``.

    Raises:
        UsageError: a file is there already or cannot be written, a format is not known or its package is missing, or
            torch cannot trace a user's own model.
        DiskError: the disk is full or broken; files that were finished stay.
    """
    check_formats(formats)
    if isinstance(run, SplitNetwork):
        if ensemble:
            raise UsageError("--ensemble: not for a user's own model; the network's own scores are written")
        return export_network(run, Path(folder), formats, example)
    if example is not None:
        raise UsageError("example: only of a user's own model; a run has images")
    return _export_run(run, Path(folder), formats, ensemble)


def _export_run(run: OpenedRun, folder: Path, formats: Sequence[str], ensemble: bool) -> list[Path]:
    if ensemble and not run.network.has_classifier:
        raise UsageError(f"--ensemble: method {run.config.method} trains no classifiers")
    paths = new_files(folder, formats)
    network = exported(run, ensemble)
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    writers = {"safetensors": _write_safetensors, "torch-export": _write_torch_export, "onnx": _write_onnx}
    for name, path in zip(formats, paths, strict=True):
        with replacing(path) as temporary, torch.no_grad(), without_chatter():  # tracing needs no backward pass
            writers[name](network, run, temporary)
    write_atomically(folder / DESCRIPTION, json.dumps(_described(network, run), indent=2) + "\n")
    return [*paths, folder / DESCRIPTION]


def exported(run: OpenedRun, ensemble: bool = False) -> Exported:
    """The network that ``export`` writes, on the CPU in fp32."""
    kind = EnsembleNetwork if ensemble else InferenceNetwork
    return kind(run.network, run.dataset.mean, run.dataset.std).cpu().float()


@torch.no_grad()
def accuracy(network: Exported, run: OpenedRun) -> float:
    """The share of the run's test images that an exported network classifies rightly, in [0, 1]."""
    right = images = 0
    for batch in run.store(run.dataset.test).ordered(500):
        pixels = batch.images.float().cpu() * network.std + network.mean  # the store normalises; so does the network
        right += int((network(pixels).argmax(1) == batch.labels.cpu()).sum())
        images += len(batch.labels)
    return right / images


def _described(network: Exported, run: OpenedRun) -> dict[str, Any]:
    """What a server must know: classes, and what is done to an image before and inside the network."""
    dataset = run.dataset
    return {
        "output": "probabilities" if isinstance(network, EnsembleNetwork) else _output(network),
        "classes": list(dataset.classes),
        "preprocessing": {
            "channels": "RGB" if dataset.channels == 3 else "grey" if dataset.channels == 1 else dataset.channels,
            **FITTING,
            "size": list(sides(dataset.image_size)),
            "pixels": "in [0, 1]",
            "mean": list(dataset.mean),
            "std": list(dataset.std),
            "normalised": "inside the network: give it pixels in [0, 1]",
        },
        "step": run.step,
    }


def _write_safetensors(network: Exported, run: OpenedRun, path: Path) -> None:
    dataset = run.dataset
    description = {
        "config": to_dict(run.config),
        "image": {"channels": dataset.channels, "size": dataset.image_size, "classes": len(dataset.classes)},
        **_described(network, run),
    }
    save_file(network.state_dict(), path, {"locallearn": json.dumps(description)})


def _output(network: InferenceNetwork) -> str:
    return "scores" if network.classifier is not None else "features"


def _example(run: OpenedRun) -> torch.Tensor:
    return torch.rand(2, run.dataset.channels, *sides(run.dataset.image_size))


def _write_torch_export(network: Exported, run: OpenedRun, path: Path) -> None:
    batch = {0: torch.export.Dim("batch", min=1)}
    program = torch.export.export(network, (_example(run),), dynamic_shapes=(batch,))
    write_program(program, _described(network, run), path)


def _write_onnx(network: Exported, run: OpenedRun, path: Path) -> None:
    description = _described(network, run)
    torch.onnx.export(
        network,
        (_example(run),),
        path,
        input_names=["images"],
        output_names=[description["output"]],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    describe_onnx(path, description)


@checked
def load_exported(path: str | Path) -> Exported:
    """Read ``network.safetensors`` back as a module; nothing is unpickled.

    Args:
        path: the file, or the folder that holds it.

    Raises:
        UsageError: it is not an exported network.
    """
    path = Path(path)
    path = path / WEIGHTS if os.path.isdir(path) else path
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        description = json.loads(metadata["locallearn"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UsageError(f"{path} is not an exported network: {error}") from None
    shape = ImageShape(**description["image"])
    channels = [0.0] * shape.channels
    kind = EnsembleNetwork if description.get("output") == "probabilities" else InferenceNetwork
    network = kind(build_network(from_dict(description["config"]), shape), channels, channels)
    network.load_state_dict(weights)
    return network
