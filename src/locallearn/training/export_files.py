"""Files of an exported network: where they go, and how programs of ``torch.export`` and ONNX are written."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from locallearn.errors import UsageError
from locallearn.files import make_folder

FORMATS = ("safetensors", "torch-export", "onnx")
"""What can be written."""

WEIGHTS = "network.safetensors"

DESCRIPTION = "network.json"
"""What the outputs mean and what the inputs must be; it is inside each of the other files, too."""

_NAMES = {"safetensors": WEIGHTS, "torch-export": "network.pt2", "onnx": "network.onnx"}


def check_formats(formats: Sequence[str]) -> None:
    """Refuse formats that cannot be written.

    Raises:
        UsageError: one is not known, or its package is missing.
    """
    for name in formats:
        if name not in _NAMES:
            raise UsageError(f"--formats: {name!r} is not valid; expected some of {', '.join(FORMATS)}")
    if "onnx" in formats and not can_write_onnx():
        raise UsageError(
            "--formats: onnx needs the packages onnx and onnxscript; install locallearn[onnx], or leave it out: "
            "--formats safetensors torch-export"
        )


def can_write_onnx() -> bool:
    """Whether the packages for ONNX are installed."""
    return all(importlib.util.find_spec(package) is not None for package in ("onnx", "onnxscript"))


def new_files(folder: Path, formats: Sequence[str]) -> list[Path]:
    """Where the files of these formats go, in a folder that is made.

    Raises:
        UsageError: one is there already, or the folder cannot be made.
    """
    paths = [folder / _NAMES[name] for name in formats]
    taken = [str(path) for path in (*paths, folder / DESCRIPTION) if path.exists()]
    if taken:
        raise UsageError(f"--output: {taken[0]} is there already; name another folder")
    make_folder(folder)
    return paths


@contextlib.contextmanager
def without_chatter() -> Iterator[None]:
    """Keep the exporters' remarks on their own insides (deprecations, no torchvision) off the user's terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)


def write_program(program: torch.export.ExportedProgram, description: dict[str, Any], path: Path) -> None:
    """Write a program for ``torch.export.load``."""
    buffer = io.BytesIO()  # on a full disk torch's own writer ends the process
    torch.export.save(program, buffer, extra_files={"locallearn.json": json.dumps(description)})
    path.write_bytes(buffer.getbuffer())


def describe_onnx(path: Path, description: dict[str, Any]) -> None:
    """Put the description into the metadata of an ONNX file."""
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, {"locallearn": json.dumps(description)})
    onnx.save(model, path)
