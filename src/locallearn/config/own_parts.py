"""The package's own losses and heads by name, with the settings of each.

They are here, and not beside the code that computes with them, so that a wrong name or setting is refused and a
recipe is built before torch is imported. ``locallearn.losses`` registers each under its name.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from locallearn import plugins, registry
from locallearn.errors import ConfigError


@dataclass(frozen=True)
class AugLocalOptions:
    """Copies of the backbone's own later layers."""

    layers: Annotated[int, Field(ge=1)] = 2
    """Layers of the first module's head, d."""
    slope: Annotated[float, Field(ge=0, le=1)] = 0.5
    """How steeply their number falls with depth, c: 0 not at all, 1 to one layer."""


@dataclass(frozen=True)
class FlatOptions:
    """Linear layers on the flattened features."""

    hidden: Annotated[int, Field(ge=0)] = 0
    """Units between two linear layers; 0 has one layer."""


@dataclass(frozen=True)
class WideProjectorOptions:
    """A 1x1 convolution, pooling and a projector of three layers."""

    channels: Annotated[int, Field(gt=0)] = 2048
    """Channels that the 1x1 convolution makes."""
    hidden: Annotated[int, Field(gt=0)] = 8192
    """Hidden units of the projector."""


@dataclass(frozen=True)
class PatchOptions:
    """A head on patches, whose outputs are averaged."""

    of: str = "1c2f"
    """The head that sees the patches; one without options, or with its defaults."""
    patches: Annotated[int, Field(ge=1)] = 2
    """Patches a side."""


@dataclass(frozen=True)
class MomentumOptions:
    """A head behind a moving average of the next module's first block, and a trained copy of it."""

    of: str = "1c2f"
    """The head that sees their sum; one without options, or with its defaults."""
    momentum: Annotated[float, Field(ge=0, le=1)] = 0.995
    """How much of the moving average a step keeps."""


@dataclass(frozen=True)
class TerminalOptions:
    """The model's own unembedding behind blocks of the module's own, for models split with ``ll.split``."""

    blocks: Annotated[int, Field(ge=0)] = 1
    """Transformer blocks of the head's own."""
    stale: Annotated[int, Field(ge=0)] = 0
    """Read the unembedding every so many training steps [steps]; 0 reads it at each."""


@dataclass(frozen=True)
class TokenOptions:
    """Which tokens are scored, and how many scores there are at a time."""

    positions: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of a batch's tokens that a module before the last one scores at a training step, drawn anew at each;
    tokens whose label does not count come last. The last module and evaluation score all."""
    chunk: Annotated[int, Field(ge=0)] = 0
    """Compute so many scores at a time and keep none for the backward pass, as well as the last module's where its
    loss is the cross entropy of its last linear layer [scores]. 0 keeps all scores."""


@dataclass(frozen=True)
class TransportOptions:
    """Another loss, and a penalty on how far a module's blocks move its features."""

    of: str = "cross-entropy"
    """The other loss; one without options, or with its defaults."""
    tau: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Step size: the penalty is divided by twice this."""


@dataclass(frozen=True)
class RebuiltInputOptions:
    """Reconstruction of a module's input."""

    bottleneck: Annotated[int, Field(gt=0)] = 4
    """The bottleneck has the features' channels divided by this."""


@dataclass(frozen=True)
class SupervisedContrastiveOptions:
    """Supervised contrastive learning."""

    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    """Temperature of the similarities."""
    projection: Annotated[int, Field(gt=0)] = 128
    """Outputs of the head whose projections are compared [features]."""


@dataclass(frozen=True)
class PatchInfoNCEOptions:
    """Contrastive prediction of patches."""

    patch: Annotated[int, Field(ge=2)] | None = None
    """Side of the patches, each half over the one before [pixels]; by default a quarter of the image's."""
    steps: Annotated[int, Field(ge=1)] = 5
    """Rows that are predicted, or as many as there are, beginning two below."""
    negatives: Annotated[int, Field(ge=1)] = 16
    """Other patches that every predicted one is told from."""


OWN: dict[str, dict[str, type | None]] = {
    "objective.loss": {
        "barlow-twins": None,
        "cross-entropy": None,
        "infopro": None,
        "input-similarity": None,
        "masked-pixels": None,
        "next-token": TokenOptions,
        "nt-xent": None,
        "nt-xent-llm": None,
        "patch-infonce": PatchInfoNCEOptions,
        "predsim": None,
        "random-targets": None,
        "rebuilt-input": RebuiltInputOptions,
        "supervised-contrastive": SupervisedContrastiveOptions,
        "token": TokenOptions,
        "transport": TransportOptions,
        "vicreg": None,
    },
    "objective.head": {
        "auglocal": AugLocalOptions,
        "flat": FlatOptions,
        "mlp-sr": None,
        "momentum": MomentumOptions,
        "patches": PatchOptions,
        "terminal": TerminalOptions,
        "wide-projector": WideProjectorOptions,
    },
}
"""Settings of every loss and head of the package by the option that names it; None where it has none."""

_WITHOUT_HEAD = {
    "input-similarity": "which compares features",
    "masked-pixels": "which has a decoder of its own",
    "patch-infonce": "which has predictors of its own",
    "predsim": "which has classifiers and convolutions of its own",
    "random-targets": "which has none",
    "rebuilt-input": "which has a decoder of its own",
}
"""What losses that no auxiliary head is made for have instead."""

PLAIN_HEAD = "1c2f"
"""The head where none is named."""


def without_head(loss: str | None, options: object = None) -> str:
    """What a loss has instead of an auxiliary head, to end a sentence with; empty where a head is made for it.

    Args:
        loss: its name.
        options: its own settings, which may name the loss that it has beside it (``of``).
    """
    return _WITHOUT_HEAD.get(getattr(options, "of", None) or loss or "", "")


LAYERED = "<n>c<m>f with n convolutions and m >= 1 linear layers, like 1c2f"
"""Heads that are named by their layers."""


def is_layered(head: str) -> bool:
    """Whether a head is named by its layers, ``<n>c<m>f``."""
    return re.fullmatch(r"\dc[1-9]f", head) is not None


def own_options(kind: str, name: str, given: object, where: str) -> Any:
    """The settings of its own that a component gets; None where it has none.

    Args:
        kind: the option that names the component (``"objective.loss"``).
        name: of the component.
        given: an instance of its dataclass, or a mapping of what is not at its default.
        where: dotted name of the settings, for messages (``"objective.options"``).

    Raises:
        ConfigError: an unknown setting, a wrong value, or settings of another component.
    """
    if registry.is_filled(kind) or not _is_own(kind, name):
        return registry.named(kind).options(name, given, where)
    return registry.settled(kind, name, OWN[kind].get(name), given, where)


def check_part(kind: str, name: str) -> None:
    """Refuse a loss or head that nobody registered.

    Raises:
        ConfigError: the message names those that there are.
    """
    if _is_own(kind, name):
        return
    if kind == "objective.head" and name == "shared":
        expected = "a head of images, such as 1c2f; shared reads the unembedding of a language model of your own"
        raise ConfigError(kind, name, expected)
    if registry.is_filled(kind) or plugins.load_named() or plugins.loaded():
        names = list(registry.named(kind))
    else:
        names = sorted(OWN[kind])
    if name in names:
        return
    if kind == "objective.head":
        near = difflib.get_close_matches(name, names, n=3)
        raise ConfigError(kind, name, f"{', '.join(names)}, or {LAYERED}", near)
    raise registry.unknown(kind, name, names)


def _is_own(kind: str, name: str) -> bool:
    return name in OWN.get(kind, {}) or (kind == "objective.head" and is_layered(name))
