"""What a configuration leaves to the machine and the data set is decided here."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch

from locallearn.config import EVERY_BATCH, AugmentConfig, MeshConfig, RunConfig, RuntimeName, sides
from locallearn.config.checks import MOST_THREADS, check
from locallearn.core.image_shape import ImageShape
from locallearn.core.network import LocalNetwork
from locallearn.data.datasets import Dataset, ImageSet, ImagesOnDisk, resolve_augment
from locallearn.data.store import Store, steps_of_epoch
from locallearn.data.streaming import open_store
from locallearn.errors import ConfigError
from locallearn.nn.native import build
from locallearn.processor import slow_in_bf16
from locallearn.training.optim import rates
from locallearn.training.tried import check_optimizer

_FEW_POSITIONS = 2**18
"""Sums of so many numbers one after the other, in fp32, are wrong by 2e-5 at most (see ``channels_last``)."""


def resolve(config: RunConfig, dataset: Dataset) -> RunConfig:
    """Decide what the configuration leaves to the machine and the data set.

    Raises:
        ConfigError: the device is not there, or not one for the runtime.
    """
    train = config.train
    check("train.threads", train.threads, lambda v: v <= MOST_THREADS, f"at most {MOST_THREADS:,} on any machine")
    check_optimizer(config.optimizer, config.groups)
    steps = steps_of_epoch(len(dataset.train.labels), train.batch_size)
    rates(config, steps)(steps * train.epochs - 1)  # a schedule with an end of its own must reach so far
    device = check_device(train.device)
    if config.runtime == "threads" and device.type != "cpu":
        raise ConfigError("runtime", config.runtime, f"inline on {device}; threads share the cores of a CPU")
    if config.runtime == "cuda-graphs" and device.type != "cuda":
        raise ConfigError("runtime", config.runtime, f"inline or threads on {device}; graphs are of a GPU")
    train = dataclasses.replace(
        train,
        device=str(device),
        precision=train.precision or default_precision(device),
        threads=train.threads or torch.get_num_threads(),
    )
    if train.channels_last is None:
        height, width = sides(dataset.image_size)
        last = channels_last(device, train.precision, train.batch_size * height * width)
        train = dataclasses.replace(train, channels_last=last)
    return dataclasses.replace(config, train=train, augment=resolve_augment(config.augment, dataset))


def channels_last(device: torch.device, precision: str | None, positions: int) -> bool:
    """Whether images are kept channels-last, which is faster, where that costs no accuracy.

    On CPUs torch's batch norm of channels-last maps adds all positions of a channel one after the other in fp32, and
    is wrong by 2e-4 of the largest value at a batch of 1,024 images of 32 x 32 (1e-5 at 128; contiguous maps and our
    own kernels: 1e-7).

    Args:
        device: where training runs.
        precision: ``fp32``, or one in half precision.
        positions: pixels of a batch of images.
    """
    if device.type != "cpu" or positions <= _FEW_POSITIONS:
        return True
    return (torch.float32 if precision == "fp32" else torch.bfloat16) in build.kernels().libraries


def default_precision(device: torch.device) -> Literal["fp32", "bf16"]:
    """bf16 where the device computes it faster than fp32, else fp32."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() and not slow_in_bf16() else "fp32"


def check_device(name: str | None) -> torch.device:
    """The torch device of that name; without one, the GPU where there is one, else the CPU.

    Raises:
        ConfigError: no such device here, or the variable that chooses kernels is wrong.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError("train.device", name, "cpu or cuda[:N]") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError("train.device", name, "cpu or cuda[:N]")
    if device.type == "cpu":
        build.kernels()  # told before anything is written
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError("train.device", name, f"cpu, or one of the {torch.cuda.device_count()} GPUs here")
    return device


def image_shape(dataset: Dataset) -> ImageShape:
    """What a network for this data set is built for."""
    return ImageShape(dataset.channels, dataset.image_size, len(dataset.classes))


def store_of(
    config: RunConfig,
    dataset: Dataset,
    images: ImageSet | ImagesOnDisk,
    device: torch.device,
    augment: AugmentConfig | None = None,
    network: LocalNetwork | None = None,
) -> Store:
    """Images of a run in batches on a device.

    Args:
        config: a resolved configuration.
        dataset: its data.
        images: some of them.
        device: where batches go.
        augment: how images are changed; None leaves them as they are.
        network: in training, the network whose losses say how many views of an image they need and what is masked.
    """
    views, masking = (1, None) if network is None else (network.views, network.masking)
    last = bool(config.train.channels_last)
    return open_store(images, dataset, augment, device, config.seed, last, views, masking, config.data)


def with_changes(
    config: RunConfig,
    device: str | None = None,
    threads: int | None = None,
    root: str | None = None,
    runtime: RuntimeName | None = None,
    mesh: MeshConfig | None = None,
) -> RunConfig:
    """The same run on another machine: another device, number of threads, place of the data, or processes.

    Raises:
        ConfigError: a runtime that does not train the same thing.
    """
    if device is not None:
        check_device(device)
    train = dataclasses.replace(
        config.train,
        device=config.train.device if device is None else device,
        threads=config.train.threads if threads is None else threads,
    )
    data = dataclasses.replace(config.data, root=root or config.data.root)
    runtime = runtime or config.runtime
    if runtime != config.runtime and not {runtime, config.runtime} <= {*EVERY_BATCH}:
        raise ConfigError("runtime", runtime, f"{config.runtime}, with which the run began")
    # rounding on the wire is part of what is trained, and stays
    wire = config.mesh.wire
    mesh = dataclasses.replace(mesh or config.mesh, wire=wire) if runtime == "distributed" else MeshConfig(wire=wire)
    return dataclasses.replace(config, train=train, data=data, runtime=runtime, mesh=mesh)
