"""The K x G network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from locallearn.arguments import checked, checked_fields, checked_on_failure
from locallearn.config import ImageSize, RunConfig, sides, size_of
from locallearn.config.checks import positive_int
from locallearn.config.data import is_size
from locallearn.core.batches import are_classes, as_batch
from locallearn.core.context_input import ContextModule
from locallearn.core.methods import ModuleLayout, check_follows, classifier_layout, methods
from locallearn.core.module import Features, LocalModule, LocalStep, Stage, walk
from locallearn.core.overlap import overlapping_walk
from locallearn.core.tiling import tile_side, tiled
from locallearn.core.widths import divisible
from locallearn.data.patches import Masking
from locallearn.data.store import Batch
from locallearn.errors import ConfigError, UsageError
from locallearn.losses.functional import cross_entropy
from locallearn.losses.objectives import LocalLoss, ObjectiveInput, objectives
from locallearn.nn.backbones import Backbone, Place, build_backbone
from locallearn.nn.context import Fusion, build_fusion
from locallearn.nn.init import initialise
from locallearn.nn.macs import dry_run
from locallearn.nn.momentum import MomentumHead
from locallearn.nn.ssl_head import FeatureNoise
from locallearn.nn.vit import PatchEmbedding
from locallearn.plan import cuts
from locallearn.seeding import seeded


@checked_fields
@dataclass(frozen=True)
class ImageShape:
    """What the network is built for: channels and size of the images, and the number of classes.

    The size is the side of square images, or (height, width) [pixels].
    """

    channels: int
    size: ImageSize
    classes: int

    def __post_init__(self) -> None:
        if not is_size(self.size if isinstance(self.size, int) else tuple(self.size)):
            raise ConfigError("ImageShape: size", self.size, "a whole number, or two (height and width)")
        object.__setattr__(self, "size", size_of(*sides(self.size)))  # as files have it: a list, or two equal sides
        for name, value in (("channels", self.channels), ("size", min(sides(self.size))), ("classes", self.classes)):
            positive_int(f"ImageShape: {name}", value)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        return self.channels, *sides(self.size)


OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
"""Makes the optimizer of one stage from its parameters."""


class LocalNetwork(nn.Module):
    """K stages of G groups each, and the decoupled classifier where the last stage has several groups.

    ``stages`` run in order; each takes the detached features of the one before. Use ``build_network``, or
    ``ll.split`` for a model of your own.

    Attributes:
        stages: what is between two cuts, in order.
        overlap: with 1 a stage's loss also trains the stage before it (``locallearn.core.overlap``); else 0.
        steps: the local steps of the stages; ``set_optimizers`` makes them.
        clip_norm: largest gradient norm of a node; 0 means no clipping.
    """

    @checked
    def __init__(self, stages: Sequence[Stage], overlap: int = 0) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.overlap = overlap
        self.steps: list[LocalStep] = []
        self.clip_norm = 0.0

    def __iter__(self) -> Iterator[Any]:
        """The stages, in order."""
        return iter(self.stages)

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """One a stage, in order; schedulers of torch may be put on them."""
        return [step.optimizer for step in self.steps]

    @checked_on_failure
    def set_optimizers(self, optimizer: OptimizerFactory) -> None:
        """Give every stage a fresh optimizer over the parameters that it trains."""
        self.steps = [
            LocalStep(stage, optimizer(stage.own_parameters().values()), precision=None)
            for stage in self.stages
            if isinstance(stage, Stage)
        ]

    @checked_on_failure
    def step(self, batch: Any) -> dict[str, Tensor]:
        """Train every stage on one batch, with the optimizers of ``set_optimizers``.

        Under autocast to fp16 every stage gets a loss scaler of its own: nothing is left to do around this call.

        Args:
            batch: a pair (images, labels), or a ``ll.Batch``, on the network's device.

        Returns:
            ``loss/k`` of every stage, the mean over its nodes, and ``loss``, the last one's; ``accuracy/k`` as a
            fraction where a stage classifies. Tensors without gradient on the network's device, of before the update.

        Raises:
            UsageError: there are no optimizers yet, or no labels where an objective needs them.
        """
        if not self.steps:
            raise UsageError("network: there are no optimizers yet; call network.set_optimizers(...) first")
        for step in self.steps:
            step.clip_norm = self.clip_norm
        given = self.given_batch(batch)
        self._scale_losses(given.images.device.type)
        return self.metrics(self.walk(self.steps, given), given)

    def _scale_losses(self, device: str) -> None:
        """Give every stage a loss scaler where the caller's autocast is to fp16, whose small gradients become 0."""
        if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16:
            if self.overlap:
                raise UsageError("network: no autocast to fp16 with overlap 1, for every stage scales its own loss")
            for step in self.steps:
                step.scaler = step.scaler or torch.amp.GradScaler(device)

    def given_batch(self, batch: Any, labelled: bool = True) -> Batch:
        """A batch of a loop of the user's own, as stages take it; where labels are not needed, images alone too."""
        if not labelled and isinstance(batch, Tensor):
            batch = Batch(batch, torch.empty(0), batch, 0)
        return as_batch(batch)

    def walk(
        self, steps: Sequence[LocalStep], batch: Batch, index: int | None = None, rate: float | None = None
    ) -> list[LocalLoss]:
        """Train the stages one after the other on one batch (Algorithms 1 and 2), overlapping where they do.

        Args:
            steps: local steps of this network's stages, in order.
            batch: the batch.
            index: number of the step, which seeds what is drawn; None leaves torch's generator as it is.
            rate: learning rate of the step; None leaves the optimizers as they are.
        """
        return (overlapping_walk if self.overlap else walk)(steps, batch, index, rate)

    def look(self, batch: Batch) -> Iterator[tuple[str, Tensor | None, Tensor]]:
        """What evaluation needs of every stage: its name, scores [G, B, classes] or None, and losses [G].

        The losses are the cross entropy of the scores, or the local loss where there are none.
        """
        for module, out in self.passed(batch.images, batch):
            logits = module.logits(module.features(out))
            if logits is None:
                yield module.name, None, module.loss(out, batch).total
            else:
                yield module.name, logits, cross_entropy(logits, batch.labels)

    def output(self, batch: Batch) -> Any:
        """What the network gives for a batch."""
        return self(batch.images)

    def metrics(self, losses: Sequence[LocalLoss], batch: Batch) -> dict[str, Tensor]:
        """Losses and accuracies of one batch by stage, as ``step`` returns them."""
        found: dict[str, Tensor] = {}
        for stage, loss in zip(self.stages, losses, strict=True):
            if not loss.total.numel():
                continue  # the stage did not train on this batch
            found[f"loss/{stage.name}"] = loss.total.mean()
            if loss.logits is not None and loss.logits.shape[-1] > 1 and are_classes(batch.labels):
                found[f"accuracy/{stage.name}"] = (loss.logits.mean(0).argmax(-1) == batch.labels).float().mean()
        found["loss"] = losses[-1].total.mean()
        return found

    def run_apart(self) -> None:
        """Make ready for stages that compute at the same time; those that the package builds are."""

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers of all stages, each once, as they are in ``state_dict``."""
        found: dict[str, Tensor] = {}
        for i, stage in enumerate(self):
            found |= {network_name(i, name): value for name, value in stage.weights().items()}
        return found

    def load_weights(self, values: Mapping[str, Tensor]) -> None:
        """Put back what ``weights`` gave."""
        for i, stage in enumerate(self):
            stage.load_weights({name: values[network_name(i, name)] for name in stage.weights()})

    def training_state(self) -> dict[str, Any]:
        """Weights, optimizers and scalers, for ``torch.save``; ``load_training_state`` continues from them."""
        return {
            "network": self.state_dict(),
            "optimizers": [each.state_dict() for each in self.optimizers],
            "scalers": [None if step.scaler is None else step.scaler.state_dict() for step in self.steps],
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Put back what ``training_state`` took; read it with ``torch.load(..., weights_only=True)``.

        Raises:
            UsageError: it is something else; the network is as it was.
        """
        for key in ("network", "optimizers", "scalers"):
            if not isinstance(state, Mapping) or key not in state:
                raise UsageError(f"state: expected what training_state() gave; there is no {key!r} in it")
        self.load_state_dict(state["network"])
        for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        for step, scaling in zip(self.steps, state["scalers"], strict=True):
            step.scaler = None
            if scaling is not None:
                step.scaler = torch.amp.GradScaler(next(self.parameters()).device.type)
                step.scaler.load_state_dict(scaling)

    @property
    def nodes(self) -> list[tuple[str, int]]:
        """(module name, group counted from 1) of every node, the classifier last."""
        return [(module.name, module.first + group) for module in self for group in range(1, module.groups + 1)]

    def all_logits(self, images: Tensor) -> list[Tensor]:
        """Scores [G, B, classes] of every module that has a classifier, in order, for images [B, C, H, W]."""
        logits = [module.logits(module.features(out)) for module, out in self.passed(images)]
        return [scores for scores in logits if scores is not None]

    @property
    def views(self) -> int:
        """Views of every image that training compares: 1, or 2 in a self-supervised network."""
        return next(iter(self)).objective.views

    @property
    def masking(self) -> Masking | None:
        """What training shows of every image; None is all of it."""
        return next(iter(self)).objective.masking

    @property
    def has_classifier(self) -> bool:
        """Whether the network ends in a classifier; self-supervised ones end in features."""
        first = next(iter(self)).objective
        return self.views == 1 and self.masking is None and not first.unlabelled

    def given(self, image: ImageShape) -> tuple[int, ...]:
        """Shape of what the first module is given of one image in training."""
        if self.masking is None:
            return image.sizes
        side, visible = self.masking
        return image.channels * side * side + 1, 1, visible

    def forward(self, images: Tensor) -> Tensor:
        """Scores [B, classes] of the last layer, for images [B, C, H, W]. Auxiliary heads are not computed.

        A self-supervised network has no classifier and gives ``features``.
        """
        if not self.has_classifier:
            return self.features(images)
        return self.stages[-1].logits(self._last(images))[0]  # type: ignore[operator]

    def features(self, images: Tensor) -> Tensor:
        """Features [B, C] of the last of the K modules, averaged over positions, for images [B, C, H, W]."""
        features = self._last(images)
        return features.mean((2, 3)) if features.dim() == 4 else features

    def passed(self, images: Tensor, batch: Batch | None = None) -> Iterator[tuple[Any, Any]]:
        """Every stage and its output for images [B, C, H, W], in order; with a batch as in a training step."""
        carried: Features = images
        for module in self:
            out = module(carried, batch)
            yield module, out
            carried = module.carried(out)

    def _last(self, images: Tensor) -> Tensor:
        """Features of the last stage."""
        *_, (module, out) = self.passed(images)
        return module.features(out)


def network_name(i: int, name: str) -> str:
    """The name in a network's ``state_dict`` of what stage i, counted from 0, calls ``name``."""
    return name if name.startswith("model.") else f"stages.{i}.{name}"


@checked
def build_network(config: RunConfig, image: ImageShape) -> LocalNetwork:
    """Build the network that a configuration describes, with initial weights drawn from its seed.

    Args:
        config: method, model, K, G, cuts, objective and seed are looked at.
        image: channels and size of the images, and number of classes.

    Returns:
        The network, in fp32 on torch's default device; ``set_optimizers`` or ``ll.Trainer`` comes next.

    Raises:
        ConfigError: the method, model, depth, width, cuts or head do not go together.
    """
    layout = methods.build(config.method, config)
    if image.classes < 2 and layout.labelled:
        expected = f"at least 2 with method {config.method}, which learns to tell them apart"
        raise ConfigError("classes", image.classes, f"{expected} (of a folder of images: a folder for each)")
    patch = tile_side(layout.modules[0], image.sizes) if layout.modules[0].tiled else 0
    backbone = build_backbone(config.model, image.channels, patch or image.size, config.dropout, config.patch_size)
    spans = _spans(config, backbone, image)
    groups = [plan.channel_groups for span, plan in zip(spans, layout.modules, strict=True) for _ in span]
    backbone = divisible(backbone, image.channels, groups)
    shape: tuple[int, ...] = image.sizes
    shapes = _shapes(backbone, (image.channels, patch, patch) if patch else shape)
    modules = []
    for k, (span, plan) in enumerate(zip(spans, layout.modules, strict=True), start=1):
        blocks = _blocks(backbone, span, plan, config.seed)
        blocks = tiled(blocks, patch, image.sizes, k == 1) if patch else blocks
        if k == 1 and layout.masked and not isinstance(blocks[0], PatchEmbedding):
            raise ConfigError("model", config.model, f"a vision transformer (vit-tiny) with method {config.method}")
        shape = dry_run(blocks, shape).shape
        before = spans[k - 2].start if k > 1 else 0
        place = Place(backbone.blocks, shapes, span.stop - 1, k, config.depth, span.start, before)
        module = _module(str(k), blocks, plan, shape, config, backbone, image, place)
        if module.objective.views != layout.views:
            expected = f"a loss on {layout.views} view(s) of every image with method {config.method}"
            raise ConfigError("objective.loss", plan.objective.loss, expected)
        if (module.objective.masking is not None) != layout.masked:
            expected = "a loss on whole images, or method mae"
            raise ConfigError("objective.loss", plan.objective.loss, expected)
        modules.append(_with_context(module, config, image, place) if config.context != "none" else module)
    if layout.decoupled_classifier:
        modules.append(
            _module("classifier", nn.Sequential(), classifier_layout(config), shape, config, backbone, image)
        )
    follow_next(modules, config)
    return LocalNetwork(modules, config.overlap)


def _with_context(module: LocalModule, config: RunConfig, image: ImageShape, place: Place) -> ContextModule:
    """The same module with an adapter for what it is given beside features."""
    if module.objective.masking is not None:
        raise ConfigError("context", config.context, f"none with method {config.method}, which hides patches")
    fusion = Fusion(config.context)
    if place.first:
        context = image.sizes
        if config.context == "before" and place.before:
            context = place.shapes[place.before - 1]
        fusion = build_fusion(config.context, context, place.shapes[place.first - 1])
    initialise(fusion, 1, config.seed, module.name, "context")
    last = place.module == place.modules
    return ContextModule(module.name, module.blocks, module.objective, fusion, last)


def follow_next(modules: Iterable[LocalModule], config: RunConfig) -> None:
    """Let heads that look through the next module's first block follow it, from its present weights on.

    Raises:
        ConfigError: the runtime has other modules at another step.
    """
    for k, (module, following) in enumerate(pairwise(modules)):
        for head in module.objective.modules():
            if isinstance(head, MomentumHead):
                check_follows(config)
                head.follow(following.blocks[0])
                module.reads[k + 1] = [(weight, weight) for weight in following.blocks[0].parameters()]


def _spans(config: RunConfig, backbone: Backbone, image: ImageShape) -> tuple[range, ...]:
    names = [block.name for block in backbone.blocks]
    chosen = cuts.choose(backbone.family, names, block_costs(backbone, image), config.depth, config.cuts)
    return cuts.modules(chosen, len(names))


def block_costs(backbone: Backbone, image: ImageShape) -> list[int]:
    """Multiply-accumulates of every block of the unsplit backbone, for one image in a forward pass."""
    costs, shape = [], image.sizes
    for block in backbone.blocks:
        with torch.device("meta"):
            run = dry_run(block.make(groups=1, dense=True), shape)
        costs.append(run.macs)
        shape = run.shape
    return costs


def _shapes(backbone: Backbone, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Features of one image of this shape after every block."""
    shapes = []
    for block in backbone.blocks:
        with torch.device("meta"):
            shape = dry_run(block.make(groups=1, dense=True), shape).shape
        shapes.append(shape)
    return tuple(shapes)


def _blocks(backbone: Backbone, span: range, plan: ModuleLayout, seed: int) -> nn.Sequential:
    """The module's blocks. Its first one is dense: it sees the channels of all groups, or the image."""
    sequence = nn.Sequential()
    for i in span:
        block = backbone.blocks[i]
        if plan.channel_groups > 1 and not block.splits:
            expected = f"1 with {backbone.family}, whose attention mixes all channels"
            raise ConfigError("width", plan.channel_groups, expected)
        if block.channels % plan.channel_groups:
            expected = f"a divisor of the {block.channels} channels of block {block.name}"
            raise ConfigError("width", plan.channel_groups, expected)
        with seeded(seed, "layers", block.name):  # layers of a user's own that draw their weights themselves
            made = block.make(groups=plan.channel_groups, dense=i == span.start)
        sequence.add_module(block.name.replace(".", "_"), made)
    if plan.noise:
        sequence.add_module("noise", FeatureNoise(plan.noise, plan.channel_groups))
    return sequence


def _module(
    name: str,
    blocks: nn.Sequential,
    plan: ModuleLayout,
    shape: tuple[int, ...],
    config: RunConfig,
    backbone: Backbone,
    image: ImageShape,
    place: Place | None = None,
) -> LocalModule:
    given = ObjectiveInput(
        config=plan.objective,
        shape=shape,
        groups=plan.groups,
        classes=image.classes,
        image=image.sizes,
        widen=backbone.widen,
        family=backbone.family,
        position=(int(name) if name.isdigit() else config.depth, config.depth),
        place=place,
        inputs=() if place is None else place.shapes[place.first - 1] if place.first else image.sizes,
    )
    assert plan.objective.loss is not None
    with seeded(config.seed, "layers", name, "head"):
        objective = objectives.build(plan.objective.loss, given)
    all_channels = config.initial_variance == "module"
    initialise(blocks, plan.channel_groups, config.seed, name, "blocks", all_channels=all_channels)
    initialise(objective, plan.groups, config.seed, name, "head")
    objective.start()
    return LocalModule(name, blocks, objective, plan.groups)
