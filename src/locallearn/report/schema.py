"""What reports need of a run's records, so that a damaged file is found before anything is drawn.

Fields that are not named here are left alone; a figure that may be missing (a run that diverged, a device that
does not tell its memory) is ``None`` or absent.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from locallearn.config.recorded_node import RecordedNode


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class Node(RecordedNode):
    """One node and what was measured of it (losses, fractions in [0, 1])."""

    accuracy: float | None = None
    loss: float | None = None
    terms: dict[str, float | None] = Field(default_factory=dict)


class Start(_Model):
    """The first event of a run."""

    time: str | None = None
    nodes: list[Node] = Field(default_factory=list)


class Resume(_Model):
    """A run goes on from a checkpoint of this step."""

    step: int


class Train(_Model):
    """One epoch of training, means over the epoch."""

    epoch: int
    step: int
    learning_rate: float | None = None
    seconds: float | None = None
    images_per_second: float | None = None
    nodes: list[Node]


class Validation(_Model):
    """Accuracy on images that only choose the best checkpoint (fractions in [0, 1]), and how many they are."""

    last_layer: float | None = None
    ensemble: float | None = None
    images: int


class Evaluate(_Model):
    """One evaluation on the test images."""

    epoch: int
    step: int
    last_layer: float | None = None
    ensemble: float | None = None
    protocol: str | None = None
    validation: Validation | None = None
    nodes: list[Node] = Field(default_factory=list)


class Accuracy(_Model):
    """Final and best accuracy of a run (fractions in [0, 1])."""

    last_layer: float | None = None
    ensemble: float | None = None
    protocol: str | None = None
    best_last_layer: float | None = None
    best_epoch: int | None = None
    validation: Validation | None = None


class EarlierData(_Model):
    """Settings that a run was trained with until a step."""

    until_step: int
    digest: str


class Process(_Model):
    """How one process of a distributed run has fared; ``waiting`` is a share of the training time in [0, 1]."""

    process: int
    nodes: str
    waiting: float
    sent_bytes: int
    peak_rss_bytes: int
    images_per_second: float


class Summary(_Model):
    """``summary.json``."""

    status: Literal["finished", "diverged", "interrupted"]
    steps: int | None = None
    data_source: str | None = None
    digest: str | None = None
    accuracy: Accuracy | None = None
    nodes: list[Node] | None = None
    images_per_second: float | None = None
    seconds: float | None = None
    memory: dict[str, int | None] | None = None
    parameters: int | None = None
    deployed_parameters: int | None = None
    hardware: dict[str, Any] | None = None
    versions: dict[str, str | None] | None = None
    commit: str | None = None
    history: list[EarlierData] = Field(default_factory=list)
    processes: list[Process] = Field(default_factory=list)


class ProbePoint(_Model):
    """A probe at the end of one block (fractions in [0, 1])."""

    module: int
    block: str
    depth: int
    ends_module: bool
    features: int
    accuracy: float
    train_accuracy: float


class Probe(_Model):
    """``probe.json``, or ``probe-NAME.json``."""

    protocol: dict[str, Any]
    protocol_text: str
    points: list[ProbePoint] = Field(min_length=1)


EVENTS: dict[str, type[BaseModel]] = {"start": Start, "resume": Resume, "train": Train, "evaluate": Evaluate}
