"""Builds the K x G network that a configuration describes."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import nn

from locallearn.arguments import checked
from locallearn.config import RunConfig
from locallearn.core.context_input import ContextModule
from locallearn.core.image_shape import ImageShape
from locallearn.core.methods import ModuleLayout, check_follows, classifier_layout, methods
from locallearn.core.module import LocalModule
from locallearn.core.network import LocalNetwork
from locallearn.core.tiling import tile_side, tiled
from locallearn.core.widths import divisible
from locallearn.errors import ConfigError
from locallearn.losses.objectives import ObjectiveInput, objectives
from locallearn.nn.auglocal import see_others
from locallearn.nn.backbones import Backbone, Place, build_backbone
from locallearn.nn.context import Fusion, build_adapter
from locallearn.nn.init import initialise
from locallearn.nn.macs import DryRun, dry_run
from locallearn.nn.momentum import MomentumHead
from locallearn.nn.ssl_head import FeatureNoise
from locallearn.nn.vit import PatchEmbedding
from locallearn.plan import cuts
from locallearn.seeding import seeded


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
    shape: tuple[int, ...] = image.sizes
    seen = (image.channels, patch, patch) if patch else shape
    runs = block_runs(backbone, seen)
    spans = _spans(config, backbone, runs)
    groups = [plan.channel_groups for span, plan in zip(spans, layout.modules, strict=True) for _ in span]
    unsplit, backbone = backbone, divisible(backbone, image.channels, groups)
    if [block.channels for block in unsplit.blocks] != [block.channels for block in backbone.blocks]:
        runs = block_runs(backbone, seen)
    shapes = tuple(run.shape for run in runs)
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
            one = "a loss on one view, like cross-entropy, {}; dgssl has losses on two"
            two = "a loss on two views of every image, like nt-xent, {}; dgl has losses on one"
            expected = (one if layout.views == 1 else two).format(f"with method {config.method}")
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
        shape = place.shapes[place.first - 1]
        fusion = Fusion(config.context, build_adapter(config.context, context, shape, groups=module.groups))
        if module.groups > 1:
            _see_others(module, config, shape)
    initialise(fusion, module.groups, config.seed, module.name, "context")
    last = place.module == place.modules
    return ContextModule(module.name, module.blocks, module.objective, fusion, last, module.groups)


def _see_others(module: LocalModule, config: RunConfig, shape: tuple[int, ...]) -> None:
    """Let the first block take a gradient by each group's own channels alone, which its own adapter has a part in."""
    first = module.blocks[0]
    if len(shape) != 3 or not any(isinstance(layer, nn.Conv2d) for layer in first.modules()):
        expected = f"none with {module.groups} groups where module {module.name} begins with a linear layer"
        raise ConfigError("context", config.context, expected)
    if shape[0] % module.groups:
        raise ConfigError("width", module.groups, f"a divisor of the {shape[0]} channels given to {module.name}")
    module.blocks[0] = see_others(first, module.groups)
    initialise(
        module.blocks,
        module.groups,
        config.seed,
        module.name,
        "blocks",
        all_channels=config.initial_variance == "module",
    )


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


def _spans(config: RunConfig, backbone: Backbone, runs: Iterable[DryRun]) -> tuple[range, ...]:
    names = [block.name for block in backbone.blocks]
    chosen = cuts.choose(backbone.family, names, [run.macs for run in runs], config.depth, config.cuts)
    return cuts.modules(chosen, len(names))


def block_runs(backbone: Backbone, shape: tuple[int, ...]) -> list[DryRun]:
    """What every block of the unsplit backbone costs and gives, for one image of this shape in a forward pass."""
    runs: list[DryRun] = []
    for block in backbone.blocks:
        with torch.device("meta"):
            made = block.make(groups=1, dense=True)
        runs.append(dry_run(made, shape))
        shape = runs[-1].shape
    return runs


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
