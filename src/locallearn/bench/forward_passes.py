"""Inference of split networks against the end-to-end network (Table 3.5), measured and predicted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from locallearn.bench.timing import interleaved, ratio
from locallearn.config import RunConfig
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.core.inference import InferenceNetwork
from locallearn.core.local_step import autocast
from locallearn.costs.nodes import cost


def bench_inference(
    model: str,
    cells: Sequence[tuple[int, int]],
    batch_sizes: Sequence[int],
    image: ImageShape,
    device: torch.device,
    precision: str,
    repeats: int,
) -> list[dict[str, Any]]:
    """Time the split network of every cell, each in turns with the end-to-end network.

    Returns:
        A dictionary per cell and batch size: ``depth``, ``width``, ``batch_size``, ``images_per_second`` (median),
        ``e2e_images_per_second``, ``speedup`` (median over turns), ``spread`` (quartile distance over median) and
        ``predicted_speedup`` (ratio of multiply-accumulates).
    """
    base = RunConfig(method="e2e", model=model)
    whole = _network(base, image, device)
    rows = []
    for depth, width in cells:
        config = dataclasses.replace(base, method="gn-dgl", depth=depth, width=(width,))
        split = _network(config, image, device)
        predicted = cost(config, image).inference_speedup
        for batch_size in batch_sizes:
            images = torch.rand(batch_size, *image.sizes, device=device)
            images = images.to(memory_format=torch.channels_last)
            with torch.inference_mode(), autocast(device, precision):
                times = interleaved(
                    {"e2e": lambda x=images: whole(x), "split": lambda x=images, n=split: n(x)}, repeats, device
                )
            rows.append(
                {
                    "depth": depth,
                    "width": width,
                    "batch_size": batch_size,
                    "images_per_second": batch_size / times["split"].median,
                    "e2e_images_per_second": batch_size / times["e2e"].median,
                    "speedup": ratio(times["e2e"], times["split"]),
                    "spread": times["split"].spread,
                    "predicted_speedup": predicted,
                }
            )
    return rows


def _network(config: RunConfig, image: ImageShape, device: torch.device) -> InferenceNetwork:
    network = InferenceNetwork(build_network(config, image), [0.5] * image.channels, [0.25] * image.channels)
    return network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
