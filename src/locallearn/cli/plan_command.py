"""``locallearn plan``: which K, G, cuts and head fit some devices, and what would serve better."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.text import Text

from locallearn.cli import houses
from locallearn.cli.console import Terminal
from locallearn.cli.early import check_names
from locallearn.cli.options import check_at_least, check_links, parse
from locallearn.config import ImageSize, ObjectiveConfig, OptimizerConfig, RunConfig, TrainConfig
from locallearn.errors import ConfigError, UsageError, printable
from locallearn.plan.cuts import DEPTHS, WIDTHS

if TYPE_CHECKING:
    from locallearn.core.network import ImageShape
    from locallearn.costs.alternatives import Alternative
    from locallearn.costs.planner import Candidate
    from locallearn.costs.timeline import Machine

_MEASURED = ("memory", "time")
"""What ``--cuts`` balances that multiply-accumulates do not tell."""

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class PlanOptions:
    """Options of ``plan``."""

    memory: str
    """Memory of each device, with a unit: 512MiB, 2GiB, 8GB."""
    devices: int = 1
    """How many devices there are."""
    model: str = "resnet32"
    """Backbone, for example resnet32, resnet32x2, vgg6a."""
    method: str = "gn-dgl"
    """How the network is trained, for example dgl or gn-dgl."""
    depths: tuple[int, ...] = DEPTHS
    """K to try."""
    widths: tuple[int, ...] = WIDTHS
    """G to try, the same in all modules."""
    heads: tuple[str, ...] = ("1c2f",)
    """Auxiliary heads to try; smaller heads are faster and less accurate."""
    cuts: tuple[str, ...] = ("auto",)
    """Where modules end: auto (the thesis's table, else balanced), balanced (multiply-accumulates of the blocks),
    memory (of blocks and heads, counted) or time (of blocks and heads, measured on this machine)."""
    objective: Annotated[ObjectiveConfig, tyro.conf.arg(name="")] = field(default_factory=ObjectiveConfig)
    optimizer: Literal["sgd", "adam"] = "sgd"
    """SGD with momentum, or Adam, which remembers twice as much."""
    image_size: ImageSize = 32
    """Side of an image, or height and width [pixels]."""
    channels: int = 3
    """Channels of an image."""
    classes: int = 10
    """Number of classes."""
    batch_size: int = 128
    """Images a step [images]."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """fp32, or bf16 autocast."""
    device_flops: float | None = None
    """Operations a second that one device reaches (a multiply-accumulate is two); without it, times are relative."""
    bandwidth: float | None = None
    """What one device sends, with --device-flops [bytes/s]; no limit by default."""
    latency: float | None = None
    """From the last byte sent to its arrival, with --device-flops [s]; 0 by default."""
    batches: int = 8
    """Batches of the predicted run."""
    in_flight: int = 2
    """Batches that a module may have begun and the next one not yet taken forward [batches]."""
    show: int = 5
    """How many plans to show."""
    all: bool = False
    """Also show every plan and every usual way, and what is not proposed and why."""
    measure: bool = False
    """Also run the proposed step on this machine, and show prediction and measurement side by side."""
    repeats: int = 10
    """Measurements of each module, with --measure; medians are shown."""
    device: str | None = None
    """Where to measure, cpu or cuda[:N]; by default the GPU where there is one."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        check_at_least(self, devices=1, image_size=4, channels=1, classes=2, batch_size=2)
        check_at_least(self, show=1, repeats=1, batches=1, in_flight=1)
        check_links(self.device_flops, bandwidth=self.bandwidth, latency=self.latency)
        if set(self.cuts) - {"auto", "balanced", *_MEASURED} or len(self.cuts) != 1:
            raise ConfigError("--cuts", self.cuts, "auto, balanced, memory or time")
        parse_bytes("--memory", self.memory)


def parse_bytes(name: str, text: str) -> int:
    """``2GiB`` as a number of bytes.

    Raises:
        ConfigError: it is not a number above 0 with a known unit.
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([KMG]i?B)?", text.strip(), re.IGNORECASE)
    size = int(float(match[1]) * _UNITS[(match[2] or "").upper()]) if match else 0
    if size < 1:
        raise ConfigError(name, text, "a size such as 512MiB, 2GiB or 8GB")
    return size


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    description = "Propose K, G, cuts and head that fit some devices, by predicted time (docs/guides/plan.md)."
    arguments = [argument.replace("--objective.", "--", 1) for argument in arguments]
    options = parse(PlanOptions, arguments, "plan", description)
    config = _config(options)
    check_names(config)
    from locallearn.cli import plan_tables
    from locallearn.costs.timeline import Machine

    # without a rate of the device every time is a multiple of the end-to-end step, and links cost nothing
    machine = Machine(options.device_flops or 1e12, options.bandwidth, options.latency or 0.0)
    values = _plan(options, config, machine)
    if options.json:
        print(json.dumps(values))
    else:
        plan_tables.show(values, options.show, timed=options.device_flops is not None, everything=options.all)
    return 0


def _config(options: PlanOptions) -> RunConfig:
    return RunConfig(
        method=options.method,
        model=options.model,
        cuts=("balanced",) if options.cuts[0] in _MEASURED else options.cuts,
        objective=options.objective,
        optimizer=OptimizerConfig(name=options.optimizer),
        train=TrainConfig(batch_size=options.batch_size, precision=options.precision),
    )


def _plan(options: PlanOptions, config: RunConfig, machine: Machine) -> dict[str, Any]:
    from locallearn.cli import plan_tables
    from locallearn.core.network import ImageShape
    from locallearn.costs.alternatives import advice, alternatives, fastest
    from locallearn.costs.planner import choose, enumerate_candidates, sift

    planned = houses.part("bench", "planned") if options.measure else None
    if options.measure and planned is None:
        raise UsageError("--measure: needs locallearn.bench, which is not installed")
    memory = parse_bytes("--memory", options.memory)
    image = ImageShape(options.channels, options.image_size, options.classes)
    with Terminal(stderr=True).status("counting") as status:
        candidates, refused = enumerate_candidates(
            config,
            image,
            machine=machine,
            depths=options.depths,
            widths=options.widths,
            heads=options.heads,
            batches=options.batches,
            in_flight=options.in_flight,
            on_step=lambda what: status.update(Text(printable(f"counting {what}"))),
            cuts_of=_balancing(options, image),
        )
        status.update("counting the usual ways")
        others = alternatives(
            config,
            image,
            machine=machine,
            devices=options.devices,
            depths=options.depths,
            batches=options.batches,
        )
    best = fastest(others, memory)
    pick = choose if best is None else sift  # where nothing at all fits, that is an error
    plan = pick(candidates, refused, devices=options.devices, memory=memory)
    proposal = plan.fits[0] if plan.fits else None
    found = plan_tables.to_json(plan, others, memory)
    found["advice"] = advice(proposal and proposal.makespan, others, memory)
    found["command"] = _command(options, config, proposal, best)
    found |= {"devices": options.devices, "batch_size": options.batch_size, "batches": options.batches}
    found |= {"device_flops": machine.device_flops, "precision": options.precision}
    if planned and proposal is not None:
        from locallearn.training import record
        from locallearn.training.setup import check_device

        device = check_device(options.device)
        found["measured"] = planned.measure(proposal.config, proposal.cost, image, device, options.repeats)
        found["measured"] |= {"hardware": record.hardware(str(device)), "versions": record.versions()}
    return found


def _balancing(options: PlanOptions, image: ImageShape) -> Callable[[RunConfig], tuple[str, ...]] | None:
    """Cuts that balance memory or time, where that is asked for; every head and G is looked at once."""
    by = options.cuts[0]
    if by not in _MEASURED:
        return None
    from locallearn.costs.balance import balanced_cuts, block_costs_of
    from locallearn.training.setup import check_device

    device = check_device(options.device) if by == "time" else None
    known: dict[Any, Any] = {}

    def cuts_of(config: RunConfig) -> tuple[str, ...]:
        key = config.objective.head, config.width
        if key not in known:
            known[key] = block_costs_of(config, image, by, device)  # type: ignore[arg-type]
        costs, names = known[key]
        if config.depth > len(names):
            raise ConfigError("depth", config.depth, f"at most {len(names)}, the number of blocks of {config.model}")
        return balanced_cuts(costs, names, config.depth)

    return cuts_of


def _command(
    options: PlanOptions, config: RunConfig, proposal: Candidate | None, best: Alternative | None
) -> str | None:
    """What trains the faster of the proposal and the usual ways; the proposal where that is nothing of ours."""
    from locallearn.cli import plan_call

    images = plan_call.Images(options.image_size, options.channels, options.classes)
    found = None
    if best is not None and (proposal is None or best.makespan <= proposal.makespan):
        found = plan_call.of_alternative(config, best, images)
    if found is None and proposal is not None:
        found = plan_call.of_candidate(proposal.config, proposal.devices, images)
    return plan_call.text(found) if found else None
