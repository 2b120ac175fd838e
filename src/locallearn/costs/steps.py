"""One training step of every module on tensors without data, to see what it counts and what it keeps.

Layers report their multiply-accumulates while they are called, and the meter of ``locallearn.costs.memory`` counts
what autograd keeps for the backward pass. So heads, decoders and losses of any objective count as what they really
do, in any precision, and nothing has to be known about them.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from locallearn.config import TrainConfig
from locallearn.core.context_input import ContextModule
from locallearn.core.image_shape import ImageShape
from locallearn.core.local_step import LocalStep
from locallearn.core.module import Features, LocalModule
from locallearn.core.network import LocalNetwork
from locallearn.core.overlap import Waiting, train_over
from locallearn.costs.forward import is_classifier, n_parameters
from locallearn.costs.memory import ActivationMeter
from locallearn.data.store import Batch
from locallearn.losses.objectives import LocalLoss
from locallearn.nn.groups import StopGradientConv2d
from locallearn.nn.macs import counting
from locallearn.nn.momentum import MomentumHead


@dataclass(frozen=True)
class ModuleCost:
    """What each of the ``groups`` nodes of one module costs; groups are equal slices and so are their costs.

    Attributes:
        groups: G.
        block_macs: the node's share of the blocks; the rest of its multiply-accumulates is ``head_macs``.
        head_macs: its heads and decoder, and the decoupled classifier where there is one.
        step_macs: multiply-accumulates of all groups together with the backward passes, of one image or view.
        shared_bytes: its features of one batch as the heads of the other groups see them; 0 where they do not.
        score_bytes: class scores of one batch that it sends to the other groups (diversity penalty).
        largest_bytes: the largest tensor that is kept for the backward pass, of all groups together.
        weight_bytes: the largest weight, likewise.
        followed_bytes: weights of the next module that the node is sent at every step (head ``momentum``).
        returned_bytes: the gradient of one batch by what the node is given, which goes back to the module before
            (``overlap``).
        context_bytes: of ``output_bytes`` what is handed on beside the module's own features (``context``).
    """

    groups: int
    block_macs: int
    head_macs: int
    step_macs: int
    parameters: int
    activation_bytes: int
    output_bytes: int
    shared_bytes: int
    score_bytes: int
    largest_bytes: int
    weight_bytes: int
    followed_bytes: int = 0
    returned_bytes: int = 0
    context_bytes: int = 0

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image in a forward pass of one node."""
        return self.block_macs + self.head_macs

    @property
    def shares_features(self) -> bool:
        """Whether its heads see the features of the other groups."""
        return self.shared_bytes > 0


def dry_steps(network: LocalNetwork, image: ImageShape, train: TrainConfig) -> list[ModuleCost]:
    """One training step of every module, on tensors that have a shape, a type and a device but no data."""
    modules: list[ModuleCost] = []
    with without_data(network, image, train) as (network, batch):
        features, below, meter = batch.images, None, ActivationMeter(network.parameters())
        for module in network:
            step = LocalStep(module, torch.optim.SGD(module.parameters()), str(train.precision))
            train_one = partial(train_over, below=below) if network.overlap else _train_alone
            counted, features, below = _dry_step(step, features, batch, meter, train_one)
            modules.append(_with_classifier(modules.pop(), counted) if is_classifier(module) else counted)
    return [_walked_again(m, above) for m, above in zip(modules, (*modules[1:], None), strict=True)]


def _walked_again(module: ModuleCost, above: ModuleCost | None) -> ModuleCost:
    """With the second backward pass of its blocks, for the gradient that the module above returns."""
    if above is None or not above.returned_bytes:
        return module
    return dataclasses.replace(module, step_macs=module.step_macs + 2 * module.groups * module.block_macs)


@contextlib.contextmanager
def without_data(
    network: LocalNetwork, image: ImageShape, train: TrainConfig
) -> Iterator[tuple[LocalNetwork, Batch]]:
    """A copy of a network and a batch for it, as tensors without data, while the context lasts."""
    layout = torch.contiguous_format if train.channels_last is False else torch.channels_last
    network = copy.deepcopy(network).to("meta").to(memory_format=layout).train()  # type: ignore[call-overload]
    with FakeTensorMode(allow_non_fake_inputs=True):
        network.to_empty(device="cpu")
        yield network, _batch(network, image, train.batch_size * network.views, layout)


def batch_like(network: LocalNetwork, image: ImageShape, n: int, device: torch.device) -> Batch:
    """A batch of n random images or views, of the first class, for measurements."""
    with torch.device(device):
        batch = _batch(network, image, n, torch.channels_last)
    for values in (batch.images, batch.pixels):
        values.normal_()
    batch.labels.zero_()
    if batch.scores is not None:
        batch.scores.zero_()
    return batch


def _batch(network: LocalNetwork, image: ImageShape, n: int, layout: torch.memory_format) -> Batch:
    """What the network is given of n images or views."""
    pixels = torch.empty(n, *image.sizes).contiguous(memory_format=layout)
    images, scores, visible = pixels, None, None
    if network.masking is not None:
        images = torch.empty(n, *network.given(image)).contiguous(memory_format=torch.channels_last)
        visible = torch.empty(n, network.masking.visible, dtype=torch.int64)
    if network.views == 2:
        scores = torch.empty(n, n)
    return Batch(images, torch.empty(n, dtype=torch.int64), pixels, 0, scores=scores, visible=visible)


def _train_alone(step: LocalStep, features: Features, batch: Batch) -> tuple[Features, None, LocalLoss]:
    features, loss = step(features, batch)
    return features, None, loss


def _dry_step(
    step: LocalStep,
    features: Features,
    batch: Batch,
    meter: ActivationMeter,
    train_one: Callable[[LocalStep, Features, Batch], tuple[Features, Waiting | None, LocalLoss]],
) -> tuple[ModuleCost, Features, Waiting | None]:
    module, inputs = step.module, features
    assert isinstance(module, LocalModule)
    groups, batch_size, given = module.groups, len(batch.labels), set[int]()
    meter.peak_bytes, meter.largest_bytes = meter.live_bytes, 0
    hook = module.objective.register_forward_pre_hook(lambda _, inputs: given.add(id(inputs[0])))
    with meter, counting(_forward_part(module)) as in_blocks, counting(module.objective) as in_objective:
        features, below, loss = train_one(step, features, batch)
    hook.remove()
    shares = _shares(module.objective, groups)
    whole = sum(call.macs for call in in_objective if shares and call.given in given and _is_plain(call.layer))
    # `whole` is done once for all groups here, but by every node that has a device of its own
    heads = sum(call.macs for call in in_objective)
    counted = ModuleCost(
        groups=groups,
        block_macs=share(sum(call.macs for call in in_blocks), groups * batch_size),
        head_macs=share(heads + (groups - 1) * whole, groups * batch_size),
        step_macs=share(sum(call.step_macs for call in (*in_blocks, *in_objective)), batch_size),
        parameters=share(n_parameters(module), groups),
        activation_bytes=share(meter.peak_bytes, groups),
        output_bytes=share(sum(x.nbytes for x in tree_leaves(features)), groups),
        shared_bytes=shared_bytes(module.objective, tree_leaves(features)[0], groups),
        score_bytes=score_bytes(loss, groups),
        largest_bytes=meter.largest_bytes,
        weight_bytes=max((p.nbytes for p in module.parameters()), default=0),
        followed_bytes=share(sum(m.followed_bytes for m in _following(module)), groups),
        returned_bytes=sum(x.nbytes for x in tree_leaves(inputs) if x.requires_grad),
        context_bytes=sum(x.nbytes for x in tree_leaves(features)[1:]),
    )
    return counted, features, below


def _forward_part(module: LocalModule) -> nn.Module:
    """What a module computes in a forward pass: its blocks, and its adapter where it has one."""
    return nn.ModuleList([module.blocks, module.fusion]) if isinstance(module, ContextModule) else module.blocks


def _following(module: LocalModule) -> Iterator[MomentumHead]:
    return (m for m in module.objective.modules() if isinstance(m, MomentumHead))


def _shares(objective: nn.Module, groups: int) -> bool:
    """Whether heads see the features of other groups."""
    return groups > 1 and any(getattr(m, "stop_gradient", False) for m in objective.modules())


def shared_bytes(objective: nn.Module, features: Tensor, groups: int) -> int:
    """Bytes of a node's features as other groups see them, pooled where that is asked for; 0 where they do not."""
    if not _shares(objective, groups):
        return 0
    pools = (m.pool for m in objective.modules() if isinstance(m, StopGradientConv2d))
    pool = next(pools, None)
    if pool is not None and features.dim() == 4:
        features = pool(features)
    return share(features.numel() * features.element_size(), groups)


def score_bytes(loss: LocalLoss, groups: int) -> int:
    """Bytes of class scores that a node sends to the other groups, for the diversity penalty."""
    scores = loss.logits if groups > 1 and "diversity" in loss.terms else None
    return 0 if scores is None else scores[0].numel() * scores.element_size()


def _is_plain(layer: nn.Module) -> bool:
    """Whether the layer has no weights: it pools the features of all groups once, where each head would do it."""
    return next(layer.parameters(), None) is None


def _with_classifier(last: ModuleCost, classifier: ModuleCost) -> ModuleCost:
    """Every node of the last module also computes the decoupled classifier, on the features of all groups."""
    return dataclasses.replace(
        last,
        head_macs=last.head_macs + classifier.head_macs,
        step_macs=last.step_macs + classifier.step_macs,
        parameters=last.parameters + classifier.parameters,
        activation_bytes=max(last.activation_bytes, classifier.activation_bytes),
        largest_bytes=max(last.largest_bytes, classifier.largest_bytes),
        weight_bytes=max(last.weight_bytes, classifier.weight_bytes),
        shared_bytes=last.output_bytes if last.groups > 1 else 0,
    )


def share(whole: int, parts: int) -> int:
    """An equal part, rounded up."""
    return -(-whole // parts)
