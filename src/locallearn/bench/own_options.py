"""Options of the commands of ``bench`` that measure a user's own model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from locallearn.bench.measuring import MeasuringOptions
from locallearn.cli.options import check_at_least
from locallearn.cli.own_model import names_own
from locallearn.errors import ConfigError

if TYPE_CHECKING:
    from locallearn.bench.own_jobs import OwnModel
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


def check_microbatches(options: Any, processes: int) -> None:
    """Refuse batches that the pipelines cannot be given in equal parts; a user's own batch is looked at later."""
    examples, parts = options.examples, options.microbatches
    if parts < processes or examples % parts:
        expected = f"a divisor of the {examples} examples of a batch, at least {processes}"
        raise ConfigError("--microbatches", parts, expected)
    least = 2 * max(processes, parts)
    if not options.is_own and examples < least:
        raise ConfigError("--batch-size", examples, f"at least {least} (batch norm needs two images)")
