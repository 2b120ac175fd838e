"""Where a network's nodes are on a mesh, and what their modules hand on."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from locallearn.config import RunConfig
from locallearn.core.image_shape import ImageShape
from locallearn.core.local_step import autocast
from locallearn.core.network import LocalNetwork
from locallearn.costs.steps import dry_steps
from locallearn.errors import ConfigError
from locallearn.nn.macs import dry_run
from locallearn.nn.ssl_head import FeatureNoise
from locallearn.plan.mesh import Placement, place_nodes
from locallearn.runtime.world import ProcessWorld


def placement_of(config: RunConfig, network: LocalNetwork, image: ImageShape, world: ProcessWorld) -> Placement:
    """Where the network's nodes are.

    Raises:
        ConfigError: the mesh does not fit the network, or a method cannot be spread over it.
    """
    modules = list(network)
    mesh = world.mesh
    costs = [1.0] * config.depth
    if 1 < mesh.depth < config.depth:
        counted = dry_steps(network, image, config.train)
        costs = [float(module.macs * module.groups) for module in counted]
    split = (mesh.width > 1 or mesh.data > 1) and any(isinstance(m, nn.Dropout) for m in network.modules())
    if split:
        raise ConfigError("dropout", config.dropout, "0 where mesh.width or mesh.data is above 1")
    if (mesh.width > 1 or mesh.data > 1) and any(isinstance(m, FeatureNoise) for m in network.modules()):
        expected = "another where mesh.width or mesh.data is above 1, for its noise is drawn for whole batches"
        raise ConfigError("method", config.method, expected)
    if mesh.data > 1:
        fixed = [module.name for module in modules if not module.objective.replicable]
        if fixed:
            raise ConfigError("mesh.data", mesh.data, f"1 with the loss of module {fixed[0]}")
    groups = [module.groups for module in modules[: config.depth]]
    return place_nodes(mesh, groups, costs, len(modules) > config.depth)


def feature_shapes(network: LocalNetwork, image: ImageShape) -> list[tuple[int, ...]]:
    """Features of one image over all groups of every module in training, (C, H, W) or (C,)."""
    shape, shapes = network.given(image), []
    for module in network:
        shape = dry_run(module.blocks, shape).shape
        shapes.append(shape)
    return shapes


def feature_types(network: LocalNetwork, image: ImageShape, config: RunConfig) -> list[torch.dtype]:
    """Types of the features of every module in training, found on tensors without data."""
    network, types = copy.deepcopy(network).to("meta").train(), []
    device = torch.device(str(config.train.device)).type
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        network.to_empty(device=device)
        features = torch.empty(2, *image.sizes, device=device)
        for module in network:
            with autocast(features.device, str(config.train.precision)):
                features = module.blocks(features)
            types.append(features.dtype)
    return types
