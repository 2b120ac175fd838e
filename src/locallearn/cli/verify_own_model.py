"""``locallearn verify --model package.module:function``: checks of a model of the user's own on this machine."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from locallearn.cli.early import working
from locallearn.cli.options import check_at_least, parse
from locallearn.cli.own_model import own_network
from locallearn.cli.verify_command import show
from locallearn.config import ObjectiveConfig
from locallearn.errors import ConfigError

if TYPE_CHECKING:
    from locallearn.core.split_network import SplitNetwork


@dataclass(frozen=True)
class OwnVerifyOptions:
    """Options of ``verify`` for a model of the user's own."""

    model: str
    """package.module:function, a function of your own that gives a pair: your model, or a network of ll.split, and a
    batch; every process calls it. Or timm:NAME or hf:CONFIG."""
    depth: int | None = None
    """K: stages that your model is cut into; 2 by default."""
    cuts: tuple[str, ...] = ("auto",)
    """Where stages end: auto (balanced), or paths of submodules."""
    width: tuple[int, ...] = (1,)
    """G: width groups of every stage but the last."""
    objective: Annotated[ObjectiveConfig, tyro.conf.arg(name="")] = field(default_factory=ObjectiveConfig)
    runtime: Literal["threads", "distributed"] | None = None
    """Compare this one with inline; by default both that the model can have."""
    processes: int = 2
    """Processes of runtime distributed, at most as many as stages."""
    replicas: int = 1
    """Also compare so many processes, each with every stage and a part of the batch, with one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """fp32, or bf16 autocast."""
    json: bool = False
    """Print what was checked as JSON."""

    def __post_init__(self) -> None:
        check_at_least(self, processes=2, replicas=1)


USAGE = """Check a model of your own on this machine: locallearn verify --model package.module:function.

In a few steps on one batch: no gradient crosses a boundary between stages, training is repeatable, a saved run
resumes exactly, and stages on threads and in several processes train what they train in turn; with --replicas R so do
R processes with a part of the batch each. Exit code 1 when a check fails."""


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    arguments = [argument.replace("--objective.", "--", 1) for argument in arguments]
    options = parse(OwnVerifyOptions, arguments, "verify --model package.module:function", USAGE)
    make = partial(own_network, options.model, options.depth, options.cuts, options.width, options.objective)
    with working("training a few steps, several times", options.json):
        from locallearn.training.verify_own import verify_own

        runtimes, refused = _runtimes(options, make()[0])
        checks = verify_own(
            make, runtimes, processes=options.processes, replicas=options.replicas, precision=options.precision
        )
    if options.json:
        values = {"data": options.model, "synthetic": False, "checks": [dataclasses.asdict(c) for c in checks]}
        print(json.dumps(values, indent=2))
    else:
        show(options.model, checks)
        if refused:
            print(f"Inline alone: {refused}")
    return 0 if all(check.passed for check in checks) else 1


def _runtimes(options: OwnVerifyOptions, network: SplitNetwork) -> tuple[tuple[str, ...], str]:
    """What to compare with inline, and why it is nothing.

    Raises:
        ConfigError: the model cannot have the runtime that the user named, or has too few stages.
    """
    from locallearn.training.trainer import Trainer
    from locallearn.training.verify_own import RUNTIMES

    asked = RUNTIMES if options.runtime is None else (options.runtime,)
    few = network.depth < options.processes
    if few and (options.runtime == "distributed" or options.processes > 2):
        raise ConfigError("--processes", options.processes, f"at most {network.depth}, the number of stages")
    try:
        network.run_apart()
        for name in asked:
            Trainer(network, runtime=name)
    except ConfigError as error:
        if options.runtime is not None:
            raise
        return (), str(error)
    return tuple(name for name in asked if name != "distributed" or not few), ""
