"""Frozen dataclasses that describe a run completely, validated where they are built.

``RunConfig`` is the whole of it; ``to_toml`` and ``from_toml`` write and read it without loss. A field
that is ``None`` is decided when a run starts (from the data set, the model or the machine) and the run folder
holds what was decided.
"""

from locallearn.config.data import AugmentConfig, DataConfig, ImageSize, sides, size_of
from locallearn.config.logger_options import LoggersConfig
from locallearn.config.masking import MaskingConfig
from locallearn.config.mesh_options import MeshConfig
from locallearn.config.modification import ModificationConfig
from locallearn.config.objective import ObjectiveConfig
from locallearn.config.probe_options import ProbeConfig
from locallearn.config.run import EVERY_BATCH, ContextName, OneProcess, RunConfig, RuntimeName
from locallearn.config.runtime import AsynchronousConfig, SequentialConfig, ThreadsConfig
from locallearn.config.toml import digest, from_dict, from_toml, to_dict, to_toml
from locallearn.config.training import CheckpointConfig, OptimizerConfig, ScheduleConfig, TrainConfig

__all__ = [
    "EVERY_BATCH",
    "AsynchronousConfig",
    "AugmentConfig",
    "CheckpointConfig",
    "ContextName",
    "DataConfig",
    "ImageSize",
    "LoggersConfig",
    "MaskingConfig",
    "MeshConfig",
    "ModificationConfig",
    "ObjectiveConfig",
    "OneProcess",
    "OptimizerConfig",
    "ProbeConfig",
    "RunConfig",
    "RuntimeName",
    "ScheduleConfig",
    "SequentialConfig",
    "ThreadsConfig",
    "TrainConfig",
    "digest",
    "from_dict",
    "from_toml",
    "sides",
    "size_of",
    "to_dict",
    "to_toml",
]
