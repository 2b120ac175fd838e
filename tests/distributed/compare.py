"""What a distributed training is compared with: the same inline."""

import dataclasses
import json

from locallearn.config import MeshConfig
from locallearn.training import runs
from locallearn.training.checkpoint import load

CLOSE = 5e-5
"""How far apart sums in another order may end, as a share of a tensor's largest value."""
SMALL = 1e-3
"""Least value that differences are measured against: a bias before a batch norm is rounding and nothing else."""


def on(config, depth=1, width=1, data=1, **changes):
    mesh = MeshConfig(depth=depth, width=width, data=data, timeout=60)
    return dataclasses.replace(config, runtime="distributed", mesh=mesh, **changes)


def inline(config, folder):
    plain = dataclasses.replace(config, runtime="inline", mesh=MeshConfig())
    runs.train(plain, folder)
    return last_checkpoint(folder)


def last_checkpoint(run):
    return load(sorted((run / "checkpoints").glob("step-*"))[-1])


def distance(found, expected):
    """How far apart the networks are, as the largest difference relative to the largest value of its tensor."""
    assert found.tensors.keys() == expected.tensors.keys()
    differences = [
        (found.tensors[key].double() - value.double()).abs().max() / value.double().abs().max().clamp(min=SMALL)
        for key, value in expected.tensors.items()
        if key.startswith("network/")
    ]
    return max(difference.item() for difference in differences)


def figures(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    times = ("time", "seconds", "images_per_second")
    return [{key: value for key, value in line.items() if key not in times} for line in lines]
