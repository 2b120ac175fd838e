"""What every node computes, holds and sends, counted before anything runs.

The accounting is in ``docs/cost.md``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal

import torch

from locallearn.arguments import ArgumentError, checked
from locallearn.config import MeshConfig, ObjectiveConfig, RunConfig, TrainConfig
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.core.network import LocalNetwork
from locallearn.core.split_network import SplitNetwork
from locallearn.costs.forward import CountedStage, forward_pass
from locallearn.costs.split_costs import WeightRead, split_costs
from locallearn.costs.steps import ModuleCost, dry_steps
from locallearn.errors import ConfigError

CIFAR10 = ImageShape(3, 32, 10)


@dataclass(frozen=True)
class NodeCost:
    """What one node (k, g) costs.

    Attributes:
        module: k, counted from 1.
        group: g, counted from 1.
        macs: multiply-accumulates of one image in a forward pass: 1/G of the module and the node's own heads.
        parameters: weights and biases, likewise.
        activation_bytes: kept for the backward pass at the peak of a step: 1/G of what the module keeps.
        output_bytes: the node's features of one batch, which it sends to every node of the next module.
    """

    module: int
    group: int
    macs: int
    parameters: int
    activation_bytes: int
    output_bytes: int


@dataclass(frozen=True)
class Cost:
    """Costs of a K x G network next to the same network trained end to end.

    Attributes:
        modules: per node of every module, in order.
        stages: the network's own modules in a forward pass, without auxiliary heads.
        reference: the modules of the network that speed-ups are measured against.
        batch_size: images a step, of every byte count.
        precision: ``"fp32"`` or ``"bf16"``.
        reads: weights that a stage of a user's own model reads of another one, which sends them at every step.
    """

    modules: tuple[ModuleCost, ...]
    stages: tuple[CountedStage, ...]
    reference: tuple[CountedStage, ...]
    batch_size: int
    precision: str
    reads: tuple[WeightRead, ...] = ()

    @property
    def nodes(self) -> tuple[NodeCost, ...]:
        """Every node, module by module."""
        return tuple(
            NodeCost(k, g, m.macs, m.parameters, m.activation_bytes, m.output_bytes)
            for k, m in enumerate(self.modules, start=1)
            for g in range(1, m.groups + 1)
        )

    @property
    def e2e_macs(self) -> int:
        """Multiply-accumulates of one image in a forward pass of the end-to-end network."""
        return sum(stage.macs for stage in self.reference)

    @property
    def max_node_macs(self) -> int:
        """Multiply-accumulates of the largest node, its heads included."""
        return max(module.macs for module in self.modules)

    @property
    def inference_macs(self) -> int:
        """Multiply-accumulates of one image through the split network and its classifier, no auxiliary heads."""
        return sum(stage.macs for stage in self.stages)

    @property
    def step_macs(self) -> int:
        """Multiply-accumulates of one image in a step of all nodes on one device, backward passes included."""
        return sum(module.step_macs for module in self.modules)

    def sent_bytes(self, k: int) -> int:
        """What a node of module k (from 0) sends in a step where every node has a device of its own [bytes]."""
        module = self.modules[k]
        receivers = self.modules[k + 1].groups if k + 1 < len(self.modules) else 0
        back = module.returned_bytes + (self.modules[k - 1].followed_bytes if k else 0)
        to_others = (module.groups - 1) * (module.shared_bytes + module.score_bytes)
        read = sum(each.n_bytes for each in self.reads if each.owner == k + 1)
        return receivers * module.output_bytes + to_others + back + read

    @property
    def traffic_bytes(self) -> int:
        """What all nodes send each other in a step where every node has a device of its own [bytes]."""
        return sum(module.groups * self.sent_bytes(k) for k, module in enumerate(self.modules))

    @property
    def training_speedup(self) -> float:
        """End-to-end network over largest node (Table 3.4)."""
        return self.e2e_macs / self.max_node_macs

    @property
    def inference_speedup(self) -> float:
        """End-to-end network over split network (Table 3.5)."""
        return self.e2e_macs / self.inference_macs

    def to_json(self) -> dict[str, Any]:
        """Plain values, as ``locallearn cost --json`` prints them.

        ``followed_bytes`` is there only where heads follow the next module's weights: what a node of every module is
        sent of them at each step. ``returned_bytes``, with ``overlap`` alone, is the gradient of a batch that every
        module gives back to the one before it; ``context_bytes``, with ``context`` alone, what a module hands on
        beside its features, which ``output_bytes`` have too. ``reads``, with tied weights and heads that read the
        model's unembedding alone, are the weights that a stage is sent at each step.
        """
        totals = ("e2e_macs", "max_node_macs", "inference_macs", "training_speedup", "inference_speedup")
        nodes = [dataclasses.asdict(node) for node in self.nodes]
        values = {"nodes": nodes, **{name: getattr(self, name) for name in totals}}
        for name in ("followed_bytes", "returned_bytes", "context_bytes"):
            found = [getattr(module, name) for module in self.modules]
            values |= {name: found} if any(found) else {}
        return values | ({"reads": [each._asdict() for each in self.reads]} if self.reads else {})


@checked
def cost(
    of: RunConfig | LocalNetwork,
    image: Any = CIFAR10,
    *,
    batch_size: int | None = None,
    precision: Literal["fp32", "bf16"] | None = None,
    reference: LocalNetwork | None = None,
) -> Cost:
    """Count what every node of a network computes, holds and sends; nothing is trained or computed.

    Multiply-accumulates follow the accounting of Tables 3.4 and 3.5 (``docs/cost.md``). Those of a user's own model
    (``ll.split``) are of its matrix products, convolutions and attention, as torch's ``FlopCounterMode``
    counts them; one step of a copy without data tells everything.

    Args:
        of: a configuration, or a network.
        image: channels and size [pixels] of the images and number of classes (``ll.ImageShape``); by
            default CIFAR-10's. Of a network of ``ll.split`` a batch, as its ``step`` takes it.
        batch_size: images a step, at least 2 (self-supervised methods see two views of each); by default the
            configuration's, 128 for a network; the batch has its own.
        precision: ``"fp32"`` or ``"bf16"``; by default the configuration's, else fp32; a user's own model as it is,
            without autocast.
        reference: network that speed-ups are measured against; by default the configuration's model with the same
            cuts and without groups, for a network the network itself, and for a user's own model that without groups.

    Raises:
        ConfigError: the configuration cannot be built, or an argument is wrong.
        UsageError: a step on the batch fails.
    """
    if isinstance(of, SplitNetwork):
        return _of_split(of, image, batch_size, precision, reference)
    if not isinstance(image, ImageShape):
        raise ArgumentError("cost", f"image is {type(image).__name__}; expected ImageShape")
    train = of.train if isinstance(of, RunConfig) else TrainConfig()
    batch_size = train.batch_size if batch_size is None else batch_size
    precision = precision or ("bf16" if train.precision == "fp16" else train.precision) or "fp32"
    train = dataclasses.replace(train, batch_size=batch_size, precision=precision)
    if isinstance(of, RunConfig):
        with torch.device("meta"):
            network = build_network(of, image)
            method = "dgl" if network.has_classifier else "dgssl"
            plain = dataclasses.replace(of, method=method, width=(1,), objective=ObjectiveConfig())
            plain = dataclasses.replace(plain, runtime="inline", mesh=MeshConfig(), overlap=0, context="none")
            of, reference = network, reference or build_network(plain, image)
    forward = forward_pass(of, image)
    modules = dry_steps(of, image, train)
    # the classifier's bias is not counted wherever the classifier is
    modules[-1] = dataclasses.replace(modules[-1], head_macs=modules[-1].head_macs - forward.bias_macs)
    whole = forward_pass(reference, image) if reference else forward
    return Cost(tuple(modules), forward.stages, whole.stages, batch_size, precision)


def _of_split(
    network: SplitNetwork, batch: Any, batch_size: int | None, precision: str | None, reference: LocalNetwork | None
) -> Cost:
    if isinstance(batch, ImageShape):
        raise ArgumentError("cost", "image is an ImageShape, the default; a network of ll.split needs a batch")
    if batch_size is not None:
        raise ConfigError("batch_size", batch_size, "none: the batch has its own, for a network of ll.split")
    if not isinstance(reference, (SplitNetwork, NoneType)):
        raise ConfigError("reference", type(reference).__name__, "a network of ll.split, as the network is one")
    found = split_costs(network, batch, precision)
    whole = found.dense if reference is None else split_costs(reference, batch, precision).stages
    half = next(network.model.parameters()).element_size() == 2
    return Cost(
        found.modules, found.stages, whole, found.examples, precision or ("bf16" if half else "fp32"), found.reads
    )
