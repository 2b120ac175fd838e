"""The whole of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

from tyro.conf import Suppress

from locallearn.arguments import checked_fields
from locallearn.config.checks import (
    STRICT,
    check,
    choice,
    fraction,
    is_int,
    positive_int,
)
from locallearn.config.data import AugmentConfig, DataConfig
from locallearn.config.logger_options import LoggersConfig
from locallearn.config.mesh_options import MeshConfig
from locallearn.config.objective import ObjectiveConfig
from locallearn.config.runtime import AsynchronousConfig, SequentialConfig, ThreadsConfig
from locallearn.config.training import CheckpointConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from locallearn.errors import ConfigError

OneProcess = Literal["inline", "threads", "cuda-graphs"]
"""Runtimes that train all modules on every batch, at the same step, in one process."""
ContextName = Literal["none", "image", "before"]
"""What a module is given beside features."""
RuntimeName = Literal[OneProcess, "distributed", "sequential", "asynchronous"]
EVERY_BATCH: tuple[RuntimeName, ...] = (*get_args(OneProcess), "distributed")
"""Those, and the one that does so in several: they train the same thing."""


@checked_fields
@dataclass(frozen=True)
class RunConfig:
    """Everything about one training: what the network is, how it is cut, its losses, data, optimizer and runtime.

    It is frozen; ``dataclasses.replace`` makes a changed one. ``ll.recipe(name)`` gives complete ones to begin with,
    ``ll.to_toml`` writes one as the ``config.toml`` of a run.

    Raises:
        ConfigError: where a value is wrong; the message names the field, the value and what would be right.
    """

    __pydantic_config__ = STRICT

    method: str = "gn-dgl"
    """How the network is cut and trained: e2e, dgl, gn-dgl, infopro, predsim or single-thread; without labels
    simclr, dgssl, dgssl-llm, blockwise-ssl, greedy-infomax or mae."""
    model: str = "resnet8"
    """Backbone, for example resnet8, resnet32, resnet32x2, vgg6a, vit-tiny."""
    depth: int = 1
    """K: depth modules that the backbone is cut into."""
    width: tuple[int, ...] = (1,)
    """G: width groups of every module, or one number for each module. They must divide the channels of a ResNet; a
    VGG's channels are narrowed to the next multiple."""
    cuts: tuple[str, ...] = ("auto",)
    """Where modules end: auto (the thesis's table, else balanced), balanced, layerwise, or the names of blocks."""
    dropout: float = 0.0
    """Dropout after every block of a VGG."""
    initial_variance: Literal["group", "module"] = "group"
    """Output channels that the initial variance of a convolution in a backbone counts: those of one group, or of all
    groups of its module together, which makes initial weights of G groups smaller by sqrt(G)."""
    context: ContextName = "none"
    """What a module is given beside the features of the one before it, through a small adapter of its own (ContSup):
    none, image, or before (what the module before was given). It travels forward with the features."""
    overlap: int = 0
    """With 1 a module's loss also trains the module before it: its gradient crosses one cut, and no other. Off (0) no
    gradient crosses a cut, which is what local learning is; runtimes inline, threads and distributed have the
    exception, whose graphs are of two modules at a time (docs/guides/methods.md)."""
    patch_size: int | None = None
    """Side of the patches that a vision transformer cuts images into [pixels]; by default the model's own."""
    seed: int = 0
    """Seed of everything random in the run."""
    runtime: RuntimeName = "inline"
    """How nodes are executed: inline (all modules on every batch, one after the other in one process), threads (the
    same, several modules at once on the threads of a CPU), cuda-graphs (the same, launched together on a GPU),
    distributed (the same on a mesh of processes), sequential (one module after the other, each for all its epochs,
    for a device that holds one module only), or asynchronous (a process for every module, which trains at its own
    pace from a buffer of the newest features)."""
    init_from: str | None = None
    """Begin with trained weights: the folder of a run or of an export, or a safetensors file. Model and width must be
    the same; heads that do not fit start from random weights. By default all weights do."""
    init_weights: Annotated[str | None, Suppress] = None
    """Digest of those weights, noted when the run starts."""
    plugins: Annotated[tuple[str, ...], Suppress] = ()
    """Files of the user's own that were loaded with --plugin; a resume loads them again."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    asynchronous: AsynchronousConfig = field(default_factory=AsynchronousConfig)
    sequential: SequentialConfig = field(default_factory=SequentialConfig)
    threads: ThreadsConfig = field(default_factory=ThreadsConfig)
    loggers: LoggersConfig = field(default_factory=LoggersConfig)

    def __post_init__(self) -> None:
        positive_int("depth", self.depth)
        if not self.width:
            raise ConfigError("width", self.width, "one number, or one for each module")
        for groups in self.width:
            positive_int("width", groups)
        if len(self.width) not in (1, self.depth):
            raise ConfigError("width", self.width, f"one number, or one for each of the {self.depth} modules")
        if not self.cuts:
            raise ConfigError("cuts", self.cuts, "auto, balanced, layerwise, or the names of blocks")
        fraction("dropout", self.dropout)
        choice("initial_variance", self.initial_variance, "group", "module")
        positive_int("patch_size", self.patch_size)
        check("overlap", self.overlap, lambda v: is_int(v) and v in (0, 1), "0, or 1 (the module before)")
        slow = self.asynchronous.slow_module
        check("asynchronous.slow_module", slow, lambda v: v <= self.depth, f"at most depth ({self.depth})")
        check("seed", self.seed, lambda v: is_int(v) and 0 <= v < 2**63, "a whole number in [0, 2^63)")
        choice("runtime", self.runtime, *get_args(RuntimeName))
        in_one_process = self.runtime in get_args(OneProcess)
        if self.mesh.size > 1 and in_one_process:
            raise ConfigError("runtime", self.runtime, f"distributed with a mesh of {self.mesh.size} processes")
        if self.mesh.wire is not None and in_one_process:
            raise ConfigError("mesh.wire", self.mesh.wire, f"none with runtime {self.runtime}, where nothing travels")
        if self.train.precision == "fp16" and self.runtime not in ("inline", "threads"):
            raise ConfigError("train.precision", "fp16", f"fp32 or bf16 with runtime {self.runtime}")
        self._check_overlap()
        self._check_context()
        if self.train.accumulate > 1 and self.runtime not in ("inline", "threads"):
            expected = f"1 with runtime {self.runtime}; inline and threads accumulate"
            raise ConfigError("train.accumulate", self.train.accumulate, expected)
        if self.checkpoint.keep_epochs and self.runtime == "asynchronous":
            raise ConfigError("checkpoint.keep_epochs", self.checkpoint.keep_epochs, "0 with runtime asynchronous")

    def _check_overlap(self) -> None:
        """Gradients go back to the module before where modules train on every batch, each whole."""
        if not self.overlap:
            return
        if self.depth == 1:
            raise ConfigError("overlap", self.overlap, "0 with depth 1: there is no module before")
        if self.runtime not in ("inline", "threads", "distributed"):
            expected = "inline, threads or distributed with overlap 1, whose gradients go back to the module before"
            raise ConfigError("runtime", self.runtime, expected)
        if self.mesh.width > 1:
            expected = "1 with overlap 1, where the losses of all groups of a module reach all of the one before"
            raise ConfigError("mesh.width", self.mesh.width, expected)
        if self.train.precision == "fp16":
            raise ConfigError(
                "train.precision", "fp16", "fp32 or bf16 with overlap 1: every stage scales its own loss"
            )

    def _check_context(self) -> None:
        """Context goes with features of every batch, to one module with all of its groups after the other."""
        choice("context", self.context, *get_args(ContextName))
        if self.context == "none":
            return
        if self.depth == 1:
            raise ConfigError("context", self.context, "none with depth 1: there is no module before")
        if self.mesh.width > 1:
            expected = f"1 with context {self.context}, which the groups of a module see in one process"
            raise ConfigError("mesh.width", self.mesh.width, expected)
        if self.runtime not in EVERY_BATCH:
            expected = f"inline, threads, cuda-graphs or distributed with context {self.context}"
            raise ConfigError("runtime", self.runtime, expected)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to another process as TOML, which there is read after the plugins that know its components."""
        from locallearn.config.toml import from_toml, to_toml

        return from_toml, (to_toml(self),)

    @property
    def groups(self) -> tuple[int, ...]:
        """G of each of the K modules."""
        return self.width if len(self.width) == self.depth else self.width * self.depth
