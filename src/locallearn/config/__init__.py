"""Frozen dataclasses that describe a run completely, validated where they are built.

``RunConfig`` is the whole of it; :func:`to_toml` and :func:`from_toml` write and read it without loss. A field
that is ``None`` is decided when a run starts (from the data set, the model or the machine) and the run folder
holds what was decided.
"""

from locallearn.config.data import AugmentConfig, DataConfig
from locallearn.config.files import digest, from_dict, from_toml, to_dict, to_toml
from locallearn.config.mesh import MeshConfig
from locallearn.config.objective import ObjectiveConfig
from locallearn.config.run import RunConfig
from locallearn.config.training import CheckpointConfig, OptimizerConfig, ScheduleConfig, TrainConfig

__all__ = [
    "AugmentConfig",
    "CheckpointConfig",
    "DataConfig",
    "MeshConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "RunConfig",
    "ScheduleConfig",
    "TrainConfig",
    "digest",
    "from_dict",
    "from_toml",
    "to_dict",
    "to_toml",
]
