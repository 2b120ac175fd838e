"""Frozen dataclasses that describe a run completely, validated where they are built.

``RunConfig`` is the whole of it; :func:`to_toml` and :func:`from_toml` write and read it without loss. A field
that is ``None`` is decided when a run starts (from the data set, the model or the machine) and the run folder
holds what was decided.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import tomli_w
from pydantic import ConfigDict, TypeAdapter, ValidationError

from locallearn.errors import ConfigError

_STRICT = ConfigDict(extra="forbid", strict=False)


def _check(name: str, value: Any, ok: Callable[[Any], bool], expected: str) -> None:
    if value is not None and not ok(value):
        raise ConfigError(name, value, expected)


def _positive_int(name: str, value: Any) -> None:
    _check(name, value, lambda v: _is_int(v) and v >= 1, "a whole number of at least 1")


def _count(name: str, value: Any) -> None:
    _check(name, value, lambda v: _is_int(v) and v >= 0, "a whole number of at least 0")


def _non_negative(name: str, value: Any) -> None:
    _check(name, value, lambda v: _is_real(v) and v >= 0, "a finite number of at least 0")


def _fraction(name: str, value: Any) -> None:
    _check(name, value, lambda v: _is_real(v) and 0 <= v < 1, "a number in [0, 1)")


def _probability(name: str, value: Any) -> None:
    _check(name, value, lambda v: _is_real(v) and 0 <= v <= 1, "a number in [0, 1]")


def _choice(name: str, value: Any, *choices: str) -> None:
    _check(name, value, lambda v: v in choices, "one of " + ", ".join(choices))


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class DataConfig:
    """Which images to train on and where they are."""

    __pydantic_config__ = _STRICT

    name: str = "digits"
    """Data set: digits, cifar10, cifar100, imagenet32 or folder."""
    root: str | None = None
    """Folder that holds the data; by default $LOCALLEARN_DATA, then ~/.cache/locallearn/data."""
    download: bool = False
    """Fetch the data set if it is not there (resumable, checked by checksum)."""
    train_limit: int = 0
    """Use only the first N training images [images]; 0 means all."""
    test_limit: int = 0
    """Use only the first N test images [images]; 0 means all."""
    image_size: int | None = None
    """Side that images of a folder are resized to [pixels]; by default 32. Other sets have their own size."""

    def __post_init__(self) -> None:
        _count("data.train_limit", self.train_limit)
        _count("data.test_limit", self.test_limit)
        _check(
            "data.image_size",
            self.image_size,
            lambda v: _is_int(v) and v >= 4,
            "a whole number of at least 4",
        )


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of training images, drawn per image; ``None`` means the data set's own custom."""

    __pydantic_config__ = _STRICT

    crop_padding: int | None = None
    """Pad each side by this much, then crop at a random place [pixels]; 0 turns it off."""
    padding_mode: Literal["reflect", "constant"] | None = None
    """What the padding holds: the mirrored image, or zeros."""
    flip: float | None = None
    """Probability of a horizontal flip."""
    jitter: float = 0.0
    """Probability of changing an image's colours."""
    brightness: float = 0.4
    """Largest relative change of brightness, where colours change."""
    contrast: float = 0.4
    """Largest relative change of contrast, where colours change."""
    saturation: float = 0.4
    """Largest relative change of saturation, where colours change."""
    hue: float = 0.1
    """Largest change of hue, where colours change [fraction of the colour circle]."""
    grey: float = 0.0
    """Probability of turning an image grey."""

    def __post_init__(self) -> None:
        _count("augment.crop_padding", self.crop_padding)
        _choice("augment.padding_mode", self.padding_mode, "reflect", "constant")
        for name in ("flip", "jitter", "grey"):
            _probability(f"augment.{name}", getattr(self, name))
        for name in ("brightness", "contrast", "saturation"):
            _probability(f"augment.{name}", getattr(self, name))
        _check("augment.hue", self.hue, lambda v: _is_real(v) and 0 <= v <= 0.5, "a number in [0, 0.5]")


@dataclass(frozen=True)
class ObjectiveConfig:
    """The local loss of every node, and the auxiliary head that it looks through."""

    __pydantic_config__ = _STRICT

    loss: str | None = None
    """Local loss: cross-entropy, predsim or infopro; by default the method's own, which is cross-entropy for dgl and
    gn-dgl."""
    head: str = "1c2f"
    """Auxiliary head: <n>c<m>f with n convolutions (the first of stride 2, doubling the channels) and m linear
    layers, or mlp-sr (pooled to a quarter of each side, 1x1 convolutions, multi-layer perceptron)."""
    head_width: int = 128
    """Hidden units of the head's linear layers, times the model's width factor."""
    stop_gradient: bool = True
    """Each group's head also sees the other groups' features, without gradient (Algorithm 2)."""
    diversity_weight: float = 0.5
    """Weight of the diversity penalty between groups (Eq. 1); 0 turns it off. The other group is detached, as in
    the thesis; code that does not detach it has twice the gradient at the same weight."""
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
    """Outputs of the head whose projection the contrastive loss compares [features]."""

    def __post_init__(self) -> None:
        for name in ("head_width", "predsim_inputs", "projection"):
            _positive_int(f"objective.{name}", getattr(self, name))
        for name in ("diversity_temperature", "temperature"):
            _check(
                f"objective.{name}",
                getattr(self, name),
                lambda v: _is_real(v) and v > 0,
                "a finite number above 0",
            )
        _probability("objective.predsim_weight", self.predsim_weight)
        _choice("objective.infopro_loss", self.infopro_loss, "contrastive", "cross-entropy")
        for weight in self.infopro_weights:
            _non_negative("objective.infopro_weights", weight)
        _check("objective.infopro_weights", self.infopro_weights, lambda v: len(v) in (0, 4), "four numbers, or none")
        _non_negative("objective.diversity_weight", self.diversity_weight)
        _fraction("objective.label_smoothing", self.label_smoothing)


@dataclass(frozen=True)
class OptimizerConfig:
    """Every node's own optimizer."""

    __pydantic_config__ = _STRICT

    name: Literal["sgd", "adam"] = "sgd"
    """SGD with momentum, or Adam."""
    learning_rate: float = 0.1
    """Initial (peak) learning rate."""
    momentum: float = 0.9
    """Momentum of SGD."""
    nesterov: bool = True
    """Nesterov's momentum (SGD)."""
    weight_decay: float = 1e-4
    """L2 penalty on every parameter."""
    clip_norm: float = 0.0
    """Largest gradient norm of one node; 0 means no clipping."""

    def __post_init__(self) -> None:
        _choice("optimizer.name", self.name, "sgd", "adam")
        _non_negative("optimizer.learning_rate", self.learning_rate)
        _fraction("optimizer.momentum", self.momentum)
        _non_negative("optimizer.weight_decay", self.weight_decay)
        _non_negative("optimizer.clip_norm", self.clip_norm)
        if self.name == "sgd" and self.nesterov and self.momentum == 0:
            raise ConfigError("optimizer.nesterov", True, "false where optimizer.momentum is 0")


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate changes over a run."""

    __pydantic_config__ = _STRICT

    name: Literal["cosine", "milestones", "constant"] = "cosine"
    """Cosine to zero, steps at milestones, or none."""
    warmup_epochs: int = 0
    """Epochs of linear warm-up [epochs]."""
    warmup_rate: float = 0.01
    """Learning rate that the warm-up starts from."""
    milestones: tuple[int, ...] = ()
    """Epochs (counted from 1) after which the rate changes [epochs]."""
    factors: tuple[float, ...] = ()
    """What the initial rate is multiplied by after each milestone."""
    unit: Literal["epoch", "step"] = "epoch"
    """Change the rate once an epoch (as the thesis does) or at every step."""

    def __post_init__(self) -> None:
        _choice("schedule.name", self.name, "cosine", "milestones", "constant")
        _choice("schedule.unit", self.unit, "epoch", "step")
        _count("schedule.warmup_epochs", self.warmup_epochs)
        _non_negative("schedule.warmup_rate", self.warmup_rate)
        for milestone in self.milestones:
            _positive_int("schedule.milestones", milestone)
        for factor in self.factors:
            _non_negative("schedule.factors", factor)
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ConfigError("schedule.milestones", self.milestones, "rising epochs")
        if len(self.factors) != len(self.milestones):
            raise ConfigError("schedule.factors", self.factors, f"one factor for each of {self.milestones}")


@dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    __pydantic_config__ = _STRICT

    epochs: int = 10
    """Passes over the training images [epochs]."""
    batch_size: int = 128
    """Images a step [images]."""
    evaluate_every: int = 1
    """Evaluate on the test images after every N epochs [epochs]; 0 means at the end only."""
    evaluate_batch_size: int = 500
    """Images a forward pass in evaluation [images]."""
    device: str | None = None
    """Device to train on, cpu or cuda[:N]; by default the GPU where there is one."""
    precision: Literal["fp32", "bf16"] | None = None
    """fp32, or bf16 autocast; by default bf16 where the device computes it natively."""
    channels_last: bool | None = None
    """Keep images channels-last in memory; by default on."""
    threads: int | None = None
    """CPU threads; by default as many as torch chooses."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "evaluate_batch_size", "threads"):
            _positive_int(f"train.{name}", getattr(self, name))
        _check("train.batch_size", self.batch_size, lambda v: v >= 2, "at least 2 (batch norm needs two images)")
        _count("train.evaluate_every", self.evaluate_every)
        _choice("train.precision", self.precision, "fp32", "bf16")


@dataclass(frozen=True)
class CheckpointConfig:
    """What is kept of a run while it trains. There is always a checkpoint at the end of every epoch."""

    __pydantic_config__ = _STRICT

    every_steps: int = 0
    """Also write a checkpoint every N steps [steps]; 0 means at the end of epochs only."""
    keep_last: int = 2
    """How many of the newest checkpoints to keep."""
    keep_best: bool = True
    """Also keep the checkpoint of the best test accuracy of the last layer."""

    def __post_init__(self) -> None:
        _count("checkpoint.every_steps", self.every_steps)
        _positive_int("checkpoint.keep_last", self.keep_last)


@dataclass(frozen=True)
class RunConfig:
    """Everything about one training.

    Raises:
        ConfigError: where a value is wrong; the message names the field, the value and what would be right.
    """

    __pydantic_config__ = _STRICT

    method: str = "gn-dgl"
    """How the network is cut and trained: e2e, dgl, gn-dgl, infopro, predsim or single-thread."""
    model: str = "resnet8"
    """Backbone, for example resnet8, resnet32, resnet32x2, vgg6a."""
    depth: int = 1
    """K: depth modules that the backbone is cut into."""
    width: tuple[int, ...] = (1,)
    """G: width groups of every module, or one number for each module. They must divide the channels of a ResNet; a
    VGG's channels are narrowed to the next multiple."""
    cuts: tuple[str, ...] = ("auto",)
    """Where modules end: auto (the thesis's table, else balanced), balanced, layerwise, or the names of blocks."""
    dropout: float = 0.0
    """Dropout after every block of a VGG."""
    seed: int = 0
    """Seed of everything random in the run."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        _positive_int("depth", self.depth)
        if not self.width:
            raise ConfigError("width", self.width, "one number, or one for each module")
        for groups in self.width:
            _positive_int("width", groups)
        if len(self.width) not in (1, self.depth):
            raise ConfigError("width", self.width, f"one number, or one for each of the {self.depth} modules")
        if not self.cuts:
            raise ConfigError("cuts", self.cuts, "auto, balanced, layerwise, or the names of blocks")
        _fraction("dropout", self.dropout)
        _check("seed", self.seed, lambda v: _is_int(v) and 0 <= v < 2**63, "a whole number in [0, 2^63)")
        if self.schedule.warmup_epochs > self.train.epochs:
            raise ConfigError(
                "schedule.warmup_epochs",
                self.schedule.warmup_epochs,
                f"at most train.epochs ({self.train.epochs})",
            )

    @property
    def groups(self) -> tuple[int, ...]:
        """G of each of the K modules."""
        return self.width if len(self.width) == self.depth else self.width * self.depth


_ADAPTER = TypeAdapter(RunConfig)


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The configuration as plain nested dictionaries; fields that are ``None`` are left out."""
    return _without_none(dataclasses.asdict(config))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return list(value) if isinstance(value, tuple) else value


def from_dict(values: dict[str, Any]) -> RunConfig:
    """Build a configuration from plain nested dictionaries.

    Raises:
        ConfigError: an unknown key, a wrong type or a wrong value.
    """
    try:
        return _ADAPTER.validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        unknown = first["type"] in ("extra_forbidden", "unexpected_keyword_argument")
        expected = "a known setting (this one is not)" if unknown else first["msg"].removeprefix("Input should be ")
        raise ConfigError(name, first["input"], expected) from None


def to_toml(config: RunConfig) -> str:
    """The configuration as TOML text; :func:`from_toml` gives back an equal configuration."""
    return tomli_w.dumps(to_dict(config))


def from_toml(text: str) -> RunConfig:
    """Read TOML text that :func:`to_toml` wrote, or that a user did.

    Raises:
        ConfigError: not TOML, an unknown key, a wrong type or a wrong value.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError("config", "text", f"TOML ({error})") from None
    return from_dict(values)


def digest(config: RunConfig) -> str:
    """Sixteen hexadecimal digits that name what is computed.

    Runs with equal digests and seeds train the same thing; where data lies, which device computes, how often
    checkpoints are written and the seed itself are left out.
    """
    values = to_dict(config)
    for key in ("seed", "checkpoint"):
        values.pop(key)
    for group, keys in {
        "data": ("root", "download"),
        "train": ("device", "threads", "evaluate_batch_size"),
    }.items():
        for key in keys:
            values[group].pop(key, None)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
