"""Methods: named choices of cuts, groups, heads and objectives. A method turns a configuration into a layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from locallearn.config import RunConfig
from locallearn.errors import ConfigError
from locallearn.registry import Registry

CLASSIFIER_HEAD = "0c1f"
"""Average pooling and one linear layer."""


@dataclass(frozen=True)
class ModuleLayout:
    """How one module is built.

    Attributes:
        groups: G, the number of nodes.
        channel_groups: what its convolutions are split into; G, but for ``single-thread``.
        head: auxiliary head of its nodes, ``<n>c<m>f``.
        stop_gradient: whether heads see the other groups' features, detached.
        diversity_weight: weight of the diversity penalty.
    """

    groups: int
    channel_groups: int
    head: str
    stop_gradient: bool
    diversity_weight: float


@dataclass(frozen=True)
class Layout:
    """How the K modules are built, and whether a decoupled classifier follows them (Fig. 3.4)."""

    modules: tuple[ModuleLayout, ...]
    decoupled_classifier: bool


methods: Registry[Callable[[RunConfig], Layout]] = Registry("method")


def _need(config: RunConfig, field: str, expected: str, ok: bool) -> None:
    if not ok:
        raise ConfigError(field, getattr(config, field), f"{expected} with method {config.method}")


@methods.register("e2e")
def end_to_end(config: RunConfig) -> Layout:
    """Backpropagation through the whole network: one node."""
    _need(config, "depth", "1", config.depth == 1)
    _need(config, "width", "1", set(config.groups) == {1})
    return grouped(config)


@methods.register("dgl")
def decoupled_greedy(config: RunConfig) -> Layout:
    """Decoupled greedy learning (Belilovsky et al., 2020): K modules of one group."""
    _need(config, "width", "1 (use gn-dgl for groups)", set(config.groups) == {1})
    return grouped(config)


@methods.register("gn-dgl")
def grouped(config: RunConfig) -> Layout:
    """Grouped-neuron DGL: K modules times G groups (Algorithms 1 and 2, Sec. 3.2.4)."""
    objective = config.objective
    layouts = [
        ModuleLayout(g, g, objective.head, objective.stop_gradient, objective.diversity_weight) for g in config.groups
    ]
    decoupled = layouts[-1].groups > 1
    if not decoupled:  # with one group the last module ends in the network's classifier, trained with it
        layouts[-1] = ModuleLayout(1, 1, CLASSIFIER_HEAD, False, 0.0)
    return Layout(tuple(layouts), decoupled)


@methods.register("single-thread")
def single_thread(config: RunConfig) -> Layout:
    """The baseline of Sec. 3.3.2: every convolution split G ways, trained end to end with one loss."""
    _need(config, "depth", "1", config.depth == 1)
    return Layout((ModuleLayout(1, config.groups[0], CLASSIFIER_HEAD, False, 0.0),), False)
