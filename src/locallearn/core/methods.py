"""Methods: named choices of cuts, groups, heads and objectives. A method turns a configuration into a layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from locallearn.arguments import checked_fields
from locallearn.config import EVERY_BATCH, ObjectiveConfig, RunConfig
from locallearn.config.loss_settings import check_settings
from locallearn.config.own_parts import PLAIN_HEAD, without_head
from locallearn.errors import ConfigError
from locallearn.registry import Registry
from locallearn.validation import Defaults

CROSS_ENTROPY = "cross-entropy"

PROJECTION_HEAD = "0c2f"
"""Average pooling and two linear layers: SimCLR's projection head."""

NT_XENT = "nt-xent"
BARLOW_TWINS = "barlow-twins"
FEATURE_NOISE = 0.25
"""Standard deviations of noise on the features of ``blockwise-ssl``."""
MODIFIED_NT_XENT = "nt-xent-llm"
MASKED_PIXELS = "masked-pixels"
PATCH_INFONCE = "patch-infonce"


@checked_fields
@dataclass(frozen=True)
class ModuleLayout:
    """How one module is built.

    Attributes:
        groups: G, the number of nodes.
        channel_groups: what its convolutions are split into; G, but for ``single-thread``.
        objective: settings of its nodes' objective; their ``loss`` names one.
        noise: what is added to its features in training, in their standard deviations.
        tiled: whether its blocks see the patches of an image one by one.
    """

    groups: int
    channel_groups: int
    objective: ObjectiveConfig
    noise: float = 0.0
    tiled: bool = False


@checked_fields
@dataclass(frozen=True)
class Layout:
    """What a method answers: how each of the K modules is built, and whether a classifier of its own follows them.

    That classifier (Fig. 3.4) is trained on the detached features of the last module's groups.

    ``views`` is the number of views of every image that the losses must be made for: 2 in self-supervised methods,
    whose networks have no classifier. ``masked`` says that the losses must be made for hidden patches; such networks
    have none either.
    """

    modules: tuple[ModuleLayout, ...]
    decoupled_classifier: bool
    views: int = 1
    masked: bool = False

    def __post_init__(self) -> None:
        for given in [module.objective for module in self.modules if self.views == 1]:
            instead = without_head(given.loss, given.options)
            if instead and given.head != PLAIN_HEAD:
                expected = f"{PLAIN_HEAD}, the default, with loss {given.loss}, {instead}"
                raise ConfigError("objective.head", given.head, expected)

    @property
    def labelled(self) -> bool:
        """Whether the network ends in a classifier."""
        return self.views == 1 and not self.masked and not self.modules[0].tiled


def classifier_layout(config: RunConfig, channel_groups: int = 1) -> ModuleLayout:
    """A module of one node that ends in the network's classifier: average pooling and a linear layer by default."""
    objective = dataclasses.replace(
        config.objective,
        loss=CROSS_ENTROPY,
        options=Defaults(),
        head=config.objective.classifier_head,
        head_options=Defaults(),
        stop_gradient=False,
        pool_others=1,
        diversity_weight=0.0,
    )
    return ModuleLayout(1, channel_groups, objective)


methods: Registry[Callable[[RunConfig], Layout]] = Registry("method", "config: RunConfig", Layout)
"""Methods by name."""


def _need(config: RunConfig, field: str, expected: str, ok: bool) -> None:
    if not ok:
        raise ConfigError(field, getattr(config, field), f"{expected} with method {config.method}")


def _need_loss(config: RunConfig, loss: str) -> None:
    """The method has one loss: ``objective.loss`` names it or is left out."""
    if config.objective.loss not in (None, loss):
        raise ConfigError("objective.loss", config.objective.loss, f"{loss} with method {config.method}")


@methods.register("e2e")
def end_to_end(config: RunConfig) -> Layout:
    """Backpropagation through the whole network: one node."""
    _need(config, "depth", "1", config.depth == 1)
    _need(config, "width", "1", set(config.groups) == {1})
    _need_loss(config, CROSS_ENTROPY)
    check_settings(config.objective, CROSS_ENTROPY)
    return Layout((classifier_layout(config),), False)


@methods.register("dgl")
def decoupled_greedy(config: RunConfig) -> Layout:
    """Decoupled greedy learning (Belilovsky et al., 2020): K modules of one group."""
    _need(config, "width", "1 (use gn-dgl for groups)", set(config.groups) == {1})
    return grouped(config)


@methods.register("gn-dgl")
def grouped(config: RunConfig) -> Layout:
    """Grouped-neuron DGL: K modules times G groups (Algorithms 1 and 2, Sec. 3.2.4), with any local loss.

    A last module of one group ends in the network's classifier, trained with it. One of several groups keeps its
    local loss and the classifier is decoupled; with predsim it is so for one group too, as its authors have it.
    """
    return _local(config, config.objective.loss or CROSS_ENTROPY)


@methods.register("infopro")
def infopro(config: RunConfig) -> Layout:
    """DGL with InfoPro's loss (Wang et al., 2021): K modules of one group."""
    _need(config, "width", "1 (InfoPro splits in depth only)", set(config.groups) == {1})
    _need_loss(config, "infopro")
    return _local(config, "infopro")


@methods.register("predsim")
def predsim(config: RunConfig) -> Layout:
    """Grouped-neuron DGL with predsim (Nokland and Eidnes, 2019; Sec. 3.3.1)."""
    _need_loss(config, "predsim")
    return _local(config, "predsim")


def check_follows(config: RunConfig) -> None:
    """Refuse runtimes whose modules do not train on every batch, one step after the other, with head ``momentum``."""
    if config.runtime not in EVERY_BATCH:
        expected = "inline, threads, cuda-graphs or distributed with head momentum, which follows the next module"
        raise ConfigError("runtime", config.runtime, expected)


def _need_whole_images(config: RunConfig, loss: str) -> None:
    """Refuse the losses of one method alone, which shows its modules parts of images."""
    for name, method in ((MASKED_PIXELS, "mae"), (PATCH_INFONCE, "greedy-infomax")):
        if loss == name:
            expected = f"a loss on whole images with method {config.method}, or method {method}"
            raise ConfigError("objective.loss", loss, expected)


def _local(config: RunConfig, loss: str) -> Layout:
    """K modules of G groups that have the local loss of that name."""
    _need_whole_images(config, loss)
    check_settings(config.objective, loss)
    if config.objective.head == "momentum":
        check_follows(config)
    objective = dataclasses.replace(config.objective, loss=loss)
    layouts = tuple(ModuleLayout(groups, groups, objective) for groups in config.groups)
    if layouts[-1].groups > 1 or loss == "predsim":
        return Layout(layouts, True)
    return Layout((*layouts[:-1], classifier_layout(config)), False)


@methods.register("single-thread")
def single_thread(config: RunConfig) -> Layout:
    """The baseline of Sec. 3.3.2: every convolution split G ways, trained end to end with one loss."""
    _need(config, "depth", "1", config.depth == 1)
    _need_loss(config, CROSS_ENTROPY)
    check_settings(config.objective, CROSS_ENTROPY)
    return Layout((classifier_layout(config, config.groups[0]),), False)


@methods.register("simclr")
def simclr(config: RunConfig) -> Layout:
    """SimCLR (Chen et al., 2020), end to end; or another loss on two views."""
    _need(config, "depth", "1 (use dgssl for modules)", config.depth == 1)
    _need(config, "width", "1 (use dgssl for groups)", set(config.groups) == {1})
    return decoupled_greedy_self_supervised(config)


@methods.register("dgssl")
def decoupled_greedy_self_supervised(config: RunConfig) -> Layout:
    """Decoupled greedy self-supervised learning (Algorithm 3): K modules of G groups with losses on two views."""
    return _self_supervised(config, config.objective.loss or NT_XENT)


@methods.register("dgssl-llm")
def layerwise_loss_modification(config: RunConfig) -> Layout:
    """DGSSL with layerwise loss modification (Algorithms 5 to 7): the last module alone sees every pair."""
    _need_loss(config, MODIFIED_NT_XENT)
    scorer = config.objective.modification.scorer
    if scorer == "ema" and config.depth > 1 and config.runtime == "distributed":
        expected = "another scorer with runtime distributed, where no process has the whole network"
        raise ConfigError("objective.modification.scorer", scorer, expected)
    return _self_supervised(config, MODIFIED_NT_XENT)


@methods.register("blockwise-ssl")
def blockwise_self_supervised(config: RunConfig) -> Layout:
    """Blockwise self-supervised learning (Siddiqui et al., 2023).

    K modules of G groups with Barlow Twins' loss (or another on two views), the last one's too behind the head that
    the settings name (``wide-projector`` in the recipe); noise of 0.25 standard deviations is added to what every
    module gives to its head and to the next module.
    """
    layout = _self_supervised(config, config.objective.loss or BARLOW_TWINS)
    first = layout.modules[0].objective
    noisy = tuple(dataclasses.replace(plan, objective=first, noise=FEATURE_NOISE) for plan in layout.modules)
    return dataclasses.replace(layout, modules=noisy)


def _self_supervised(config: RunConfig, loss: str) -> Layout:
    """K modules of G groups without a classifier; the head of the last one is SimCLR's projection head."""
    _need_whole_images(config, loss)
    check_settings(config.objective, loss)
    _need(config, "runtime", "inline, threads, cuda-graphs or distributed", config.runtime in EVERY_BATCH)
    objective = dataclasses.replace(config.objective, loss=loss, diversity_weight=0.0)
    layouts = [ModuleLayout(groups, groups, objective) for groups in config.groups]
    last = dataclasses.replace(objective, head=PROJECTION_HEAD, head_options=Defaults(), pool_others=1)
    layouts[-1] = dataclasses.replace(layouts[-1], objective=last)
    return Layout(tuple(layouts), False, views=2)


@methods.register("greedy-infomax")
def greedy_infomax(config: RunConfig) -> Layout:
    """Greedy InfoMax (Loewe, O'Connor and Veeling, NeurIPS 2019): patches predicted from those above them.

    Images are cut into overlapping patches, which the K modules encode one by one; each has a loss of its own.
    """
    _need(config, "width", "1", set(config.groups) == {1})
    _need(config, "context", "none", config.context == "none")
    _need(config, "runtime", "inline, threads, cuda-graphs or distributed", config.runtime in EVERY_BATCH)
    _need(config, "model", "a ResNet or VGG, whose blocks see maps of any size", not config.model.startswith("vit"))
    _need_loss(config, PATCH_INFONCE)
    check_settings(config.objective, PATCH_INFONCE)
    objective = dataclasses.replace(config.objective, loss=PATCH_INFONCE, diversity_weight=0.0)
    return Layout((ModuleLayout(1, 1, objective, tiled=True),) * config.depth, False)


@methods.register("mae")
def masked_autoencoder(config: RunConfig) -> Layout:
    """Masked autoencoding (He et al., 2022) of a vision transformer: end to end, or K modules with own decoders."""
    _need(config, "width", "1", set(config.groups) == {1})
    _need(config, "runtime", "inline, threads, cuda-graphs or distributed", config.runtime in EVERY_BATCH)
    _need_loss(config, MASKED_PIXELS)
    check_settings(config.objective, MASKED_PIXELS)
    objective = dataclasses.replace(config.objective, loss=MASKED_PIXELS, diversity_weight=0.0)
    return Layout((ModuleLayout(1, 1, objective),) * config.depth, False, masked=True)
