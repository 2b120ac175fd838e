"""What a forward pass through the network costs, module by module, without auxiliary heads."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from locallearn.core.context_input import ContextModule
from locallearn.core.image_shape import ImageShape
from locallearn.core.module import LocalModule
from locallearn.core.network import LocalNetwork
from locallearn.nn.groups import GroupLinear
from locallearn.nn.macs import counting, dry_run


@dataclass(frozen=True)
class CountedStage:
    """One module's blocks, all groups together; the last module's with the network's classifier.

    Attributes:
        macs: multiply-accumulates of one image.
        features: numbers that come out for one image.
        parameters: weights and biases.
    """

    macs: int
    features: int
    parameters: int


@dataclass(frozen=True)
class ForwardPass:
    """The K modules in a forward pass. ``bias_macs``, the bias of the classifier, is not counted in them."""

    stages: tuple[CountedStage, ...]
    bias_macs: int


def forward_pass(network: LocalNetwork, image: ImageShape) -> ForwardPass:
    """Count a forward pass of one image, as Tables 3.4 and 3.5 do: without the bias of the classifier.

    A self-supervised network ends with its features: projection heads are auxiliary.
    """
    shape = context = tuple(image.sizes)
    stages, module = [], None
    for module in network:
        run = dry_run(module.blocks, shape)
        macs, parameters = run.macs, n_parameters(module.blocks)
        if isinstance(module, ContextModule):
            if module.fusion.adapter is not None:
                macs += dry_run(module.fusion.adapter, context).macs
            parameters += n_parameters(module.fusion)
            context = context if module.fusion.kind == "image" else shape
        shape = run.shape
        if not is_classifier(module):
            stages.append(CountedStage(macs, torch.Size(shape).numel(), parameters))
    assert module is not None
    if not network.has_classifier:
        return ForwardPass(tuple(stages), 0)
    last, (classifier, bias_macs) = stages.pop(), _classifier(module, shape)
    stages.append(CountedStage(last.macs + classifier.macs, last.features, last.parameters + classifier.parameters))
    return ForwardPass(tuple(stages), bias_macs)


def _classifier(module: LocalModule, shape: tuple[int, ...]) -> tuple[CountedStage, int]:
    """What turns the features of the last module into the network's scores, and what its bias would count."""
    module = copy.deepcopy(module).to("meta").eval()
    with torch.no_grad(), counting(module) as calls:
        module.logits(torch.empty(1, *shape, device="meta"))
    output = calls[-1]
    has_bias = isinstance(output.layer, (nn.Linear, GroupLinear)) and output.layer.bias is not None
    bias_macs = output.outputs if has_bias else 0
    macs = sum(call.macs for call in calls) - bias_macs
    return CountedStage(macs, output.outputs, sum(n_parameters(call.layer) for call in calls)), bias_macs


def is_classifier(module: LocalModule) -> bool:
    """Whether this is the decoupled classifier and not one of the K modules."""
    return module.name == "classifier"


def n_parameters(module: nn.Module) -> int:
    """Numbers in the module's weights and biases."""
    return sum(parameter.numel() for parameter in module.parameters())
