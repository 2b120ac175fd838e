"""What a distributed training is compared with: the same inline.

In fp32 two trainings that differ by rounding may come apart: a ReLU whose input is within rounding of zero falls on
either side of it, which changes a bias by a hundredth. In fp64 none is that close in these runs, the same sums in
another order differ by 1e-13, and nothing but a fault is as large as ``CLOSE``.
"""

import dataclasses
import json

from locallearn.config import MeshConfig, ScheduleConfig
from locallearn.training import runs
from locallearn.training.checkpoint import load

CLOSE = 1e-11
"""How far apart sums in another order may end in fp64, as a share of a tensor's largest value."""
CLOSE_IN_FP32 = 5e-5
"""The same in fp32, over five steps in which no ReLU changes sides."""
FAULT = 1e-2
"""How far apart a planted error takes a training at least."""
SMALL = 1e-3
"""Least value that differences are measured against: a bias before a batch norm is rounding and nothing else."""


def on(config, depth=1, width=1, data=1):
    """On a mesh, with the same rate in all ten steps."""
    mesh = MeshConfig(depth=depth, width=width, data=data, timeout=60)
    return dataclasses.replace(config, runtime="distributed", mesh=mesh, schedule=ScheduleConfig(name="constant"))


def briefly(config, *mesh):
    """On a mesh for five steps in effect: a cosine over two epochs is zero in the second."""
    return dataclasses.replace(on(config, *mesh), schedule=ScheduleConfig())


def without_mesh(config):
    return dataclasses.replace(config, runtime="inline", mesh=MeshConfig())


def inline(config, folder):
    runs.train(without_mesh(config), folder)
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
