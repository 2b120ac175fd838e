"""The local loss of every node, and its auxiliary head."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from locallearn.arguments import checked_fields
from locallearn.config.checks import (
    MOST_UNITS,
    STRICT,
    check,
    choice,
    fraction,
    is_real,
    non_negative,
    positive_int,
    probability,
)
from locallearn.config.components import Defaults, of, settle_options
from locallearn.config.masking import MaskingConfig
from locallearn.config.modification import ModificationConfig
from locallearn.config.own_parts import PLAIN_HEAD
from locallearn.errors import ConfigError


@checked_fields
@dataclass(frozen=True)
class ObjectiveConfig:
    """The local loss of every node, and the auxiliary head that it looks through."""

    __pydantic_config__ = STRICT

    loss: str | None = None
    """Local loss: cross-entropy, predsim, infopro, supervised-contrastive, transport (another loss and a penalty on
    how far blocks move features), rebuilt-input or input-similarity (examples as alike as in the module's input); on
    two views of every image nt-xent, barlow-twins or vicreg.
    By default the method's own: cross-entropy for dgl and gn-dgl, nt-xent for simclr and dgssl, barlow-twins for
    blockwise-ssl; mae has masked-pixels alone, greedy-infomax patch-infonce."""
    head: str = PLAIN_HEAD
    """Auxiliary head: <n>c<m>f with n convolutions (the first of stride 2, doubling the channels) and m linear
    layers; mlp-sr (pooled to a quarter of each side, 1x1 convolutions, multi-layer perceptron); auglocal (copies of
    the backbone's later layers); patches (a head on 2 x 2 patches, outputs averaged); momentum (a head behind a
    moving average of the next module's first block); flat (a linear layer on every number); or wide-projector."""
    classifier_head: str = "0c1f"
    """Head of the network's own classifier, <n>c<m>f: 0c1f is average pooling and one linear layer, as the costs that
    the thesis prints have it; code that its experiments grew out of has 1c2f."""
    head_width: int = 128
    """Hidden units of the head's linear layers, times the model's width factor."""
    head_width_of: Literal["group", "module"] = "group"
    """What has that many: the head of every group, as in the thesis's counts, or the heads of a module together, of
    which each then has one G-th."""
    stop_gradient: bool = True
    """Each group's head also sees the other groups' features, without gradient (Algorithm 2)."""
    pool_others: int = 1
    """The other groups' features are averaged over squares of so many pixels a side before heads see them, as Sec.
    3.2.3 suggests: that much less travels, squared. 1 leaves them whole; a map's side or more leaves its mean."""
    diversity_weight: float = 0.5
    """Weight of the diversity penalty between groups (Eq. 1); 0 turns it off. The other group is detached, as in
    the thesis; code that does not detach it has twice the gradient at the same weight. Losses on two views have no
    class scores and so no such penalty."""
    diversity_temperature: float = 3.0
    """Softmax temperature of the diversity penalty."""
    label_smoothing: float = 0.0
    """Label smoothing of every cross entropy."""
    predsim_weight: float = 0.99
    """Share of the similarity loss in predsim; cross entropy has the rest. 1 is sim alone, 0 is pred alone."""
    predsim_inputs: int = 2048
    """Predsim pools features until its linear classifier has at most this many inputs [features]."""
    infopro_loss: Literal["contrastive", "cross-entropy"] = "contrastive"
    """Second term of InfoPro: supervised contrastive loss of a projection, or cross entropy."""
    infopro_weights: tuple[float, ...] = ()
    """InfoPro's weights of reconstruction and of the second term, of the first module and then of the last but one
    (four numbers; linear between); by default the published ones of the nearest depth."""
    temperature: float = 0.07
    """Temperature of the contrastive loss."""
    projection: int = 128
    """Outputs of the head whose projection the contrastive loss compares, and every loss on two views [features]."""
    redundancy_weight: float | None = None
    """Weight of the off-diagonal correlations in barlow-twins; by default 0.005, as published."""
    vicreg_weights: tuple[float, ...] = ()
    """Weights of invariance, variance and covariance in vicreg; by default 25, 25 and 1, as published."""
    modification: ModificationConfig = field(default_factory=ModificationConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    options: Any = field(default=Defaults(), metadata=of("objective.loss", by="loss"))
    """Settings of the loss's own, where it is registered with such."""
    head_options: Any = field(default=Defaults(), metadata=of("objective.head", by="head"))
    """Settings of the head's own, where it is registered with such."""

    def __post_init__(self) -> None:
        settle_options(self, "objective")
        for name in ("head_width", "predsim_inputs", "projection", "pool_others"):
            positive_int(f"objective.{name}", getattr(self, name), most=MOST_UNITS)
        choice("objective.head_width_of", self.head_width_of, "group", "module")
        for name in ("diversity_temperature", "temperature"):
            check(
                f"objective.{name}",
                getattr(self, name),
                lambda v: is_real(v) and v > 0,
                "a finite number above 0",
            )
        expected = "<n>c<m>f with n convolutions and m >= 1 linear layers, like 1c2f"
        is_head = re.compile(r"\d+c[1-9]f").fullmatch
        check("objective.classifier_head", self.classifier_head, lambda v: is_head(v) is not None, expected)
        probability("objective.predsim_weight", self.predsim_weight)
        self._check_pooling()
        choice("objective.infopro_loss", self.infopro_loss, "contrastive", "cross-entropy")
        for weight in self.infopro_weights:
            non_negative("objective.infopro_weights", weight)
        check("objective.infopro_weights", self.infopro_weights, lambda v: len(v) in (0, 4), "four numbers, or none")
        non_negative("objective.redundancy_weight", self.redundancy_weight)
        for weight in self.vicreg_weights:
            non_negative("objective.vicreg_weights", weight)
        check("objective.vicreg_weights", self.vicreg_weights, lambda v: len(v) in (0, 3), "three numbers, or none")
        non_negative("objective.diversity_weight", self.diversity_weight)
        fraction("objective.label_smoothing", self.label_smoothing)

    def _check_pooling(self) -> None:
        """Only where maps are exchanged there is something to pool."""
        if self.pool_others > 1 and not self.stop_gradient:
            raise ConfigError("objective.pool_others", self.pool_others, "1 without objective.stop_gradient")
        if self.pool_others > 1 and self.loss != "predsim" and (self.head == "mlp-sr" or self.head.startswith("0c")):
            expected = f"1 with objective.head {self.head}, which pools before it looks at the other groups"
            raise ConfigError("objective.pool_others", self.pool_others, expected)
