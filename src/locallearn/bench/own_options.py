"""Options of the commands of ``bench`` that measure a user's own model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from locallearn.bench.measuring import MeasuringOptions, check_positive
from locallearn.cli.options import check_at_least
from locallearn.cli.own_model import names_own
from locallearn.errors import ConfigError

if TYPE_CHECKING:
    from locallearn.bench.own_jobs import OwnModel
    from locallearn.bench.processes import CrewPlan
    from locallearn.bench.ways import Heads


@dataclass(frozen=True)
class OwnOptions(MeasuringOptions):
    """What a user's own model is given, and how its stages learn."""

    head: str | None = None
    """Auxiliary head of a model of your own, as ll.split takes it; by default its own choice."""
    objective: str | None = None
    """Loss of its stages, as ll.split takes it; by default what the labels ask for."""
    positions: float | None = None
    """Share of the tokens that its stages before the last one score, of losses of tokens."""
    chunk: int | None = None
    """Scores that are computed at a time and not kept, of losses of tokens [scores]."""
    image_size: int | None = None  # type: ignore[assignment]
    """Side of an image, where MODEL brings no batch; by default what the model was made for [pixels]."""
    tokens: int = 256
    """Length of a text, where MODEL brings no batch [tokens]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, tokens=2)

    def heads(self) -> Heads:
        """Heads and losses of local stages."""
        from locallearn.bench.ways import Heads

        given = {"positions": self.positions, "chunk": self.chunk}
        return Heads(self.head, self.objective, {name: v for name, v in given.items() if v is not None})


@dataclass(frozen=True)
class OwnProcessesOptions(OwnOptions):
    """Options of commands whose ``--model`` is a backbone of the package or a model of the user's own."""

    model: str = "resnet32"
    """Backbone, or a model of your own: package.module:function, timm:NAME or hf:CONFIG like hf:gpt2."""
    image_size: int | None = None  # type: ignore[assignment]
    """Side of an image; by default 32, and for a model of your own what it was made for [pixels]."""
    batch_size: int | None = None
    """Examples a step; by default 128, and 8 for a model of your own that brings no batch [examples]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.is_own:
            for name in ("head", "objective", "positions", "chunk"):
                if getattr(self, name) is not None:
                    raise ConfigError(f"--{name}", getattr(self, name), "none but with a --model of your own")

    @property
    def is_own(self) -> bool:
        """Whether ``--model`` is a model of the user's own."""
        return names_own(self.model)

    @property
    def examples(self) -> int:
        """Examples a step, where the model brings no batch."""
        return self.batch_size or (8 if self.is_own else 128)

    def own(self, depth: int, cuts: tuple[str, ...]) -> OwnModel | None:
        """The user's own model; None with a backbone of the package."""
        if not self.is_own:
            return None
        from locallearn.bench.own_jobs import OwnModel
        from locallearn.cli.named_models import Inputs

        inputs = Inputs(self.examples, self.image_size, self.tokens)
        return OwnModel(self.model, inputs, depth, cuts, self.heads())

    def figures(self) -> dict[str, Any]:
        """What describes the setting beside the model's name."""
        own = {"tokens": self.tokens, "heads": self.heads().as_dict()} if self.is_own else {}
        return {"model": self.model, "batch_size": self.examples, **own}


@dataclass(frozen=True)
class CrewOptions(OwnProcessesOptions):
    """Options of commands whose contenders have processes of their own, which train in turns."""

    processes: int = 2
    """How many train together [processes]."""
    depth: tuple[int, ...] = ()
    """K of the local networks, with --width; by default as many modules as processes."""
    width: tuple[int, ...] = ()
    """G of the local networks, as many as --depth; K x G is the number of processes."""
    cuts: tuple[str, ...] = ("auto",)
    """Where the network is cut into as many modules as processes, in the pipelines too: auto, balanced, or blocks;
    auto or submodules of a model of your own."""
    microbatches: int = 4
    """Parts of a batch in the pipelines; a divisor of --batch-size."""
    steps: int = 8
    """Timed steps of a turn."""
    device: str | None = "cpu"
    """cpu."""
    threads: int | None = 1
    """CPU threads of each process."""
    timeout: float = 120.0
    """A turn that takes longer has failed [s]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, processes=2, steps=1)
        check_positive(self, "depth", "width")
        if self.device != "cpu":
            raise ConfigError("--device", self.device, "cpu")
        if len(self.depth) != len(self.width):
            raise ConfigError("--width", self.width, f"as many numbers as --depth has ({len(self.depth)})")
        for depth, width in self.cells:
            if depth * width != self.processes:
                raise ConfigError("--depth", f"{depth} x {width}", f"K x G = {self.processes}, the processes")
        if not 0 < self.timeout < math.inf:
            raise ConfigError("--timeout", self.timeout, "seconds, above 0")
        if self.is_own and self.cells != ((self.processes, 1),):
            raise ConfigError("--width", self.width, f"1 with a model of your own, and --depth {self.processes}")
        self._check_microbatches()

    @property
    def cells(self) -> tuple[tuple[int, int], ...]:
        """(K, G)."""
        return tuple(zip(self.depth, self.width, strict=True)) or ((self.processes, 1),)

    def figures(self) -> dict[str, Any]:
        """What describes the setting."""
        names = ("processes", "microbatches", "steps")
        return super().figures() | {"cuts": list(self.cuts), **{name: getattr(self, name) for name in names}}

    def plan(self, peers: tuple[str, ...], **others: Any) -> CrewPlan:
        """What to measure; ``others`` is what else a ``CrewPlan`` has."""
        from locallearn.bench.processes import CrewPlan
        from locallearn.bench.step import Setting
        from locallearn.core.image_shape import ImageShape

        device, precision = self.prepare(here=False)
        image = ImageShape(3, self.image_size or 32, 10)
        return CrewPlan(
            self.model,
            self.processes,
            self.cells,
            self.cuts,
            peers,
            self.microbatches,
            self.steps,
            Setting(image, self.examples, device, precision, self.repeats, self.threads),
            self.timeout,
            own=self.own(self.processes, self.cuts),
            **others,
        )

    def _check_microbatches(self) -> None:
        """Refuse batches that the pipelines cannot be given in equal parts; a user's own batch is looked at later."""
        examples, parts = self.examples, self.microbatches
        if parts < self.processes or examples % parts:
            expected = f"a divisor of the {examples} examples of a batch, at least {self.processes}"
            raise ConfigError("--microbatches", parts, expected)
        least = 2 * max(self.processes, parts)
        if not self.is_own and examples < least:
            raise ConfigError("--batch-size", examples, f"at least {least} (batch norm needs two images)")
