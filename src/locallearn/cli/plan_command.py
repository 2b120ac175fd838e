"""``locallearn plan``: which K, G, cuts and head fit some devices, and what would serve better."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from locallearn.cli import houses
from locallearn.cli.early import check_names, working
from locallearn.cli.options import parse
from locallearn.cli.own_model import names_own
from locallearn.cli.plan_options import MEASURED, PlanOptions, parse_bytes
from locallearn.config import OptimizerConfig, RunConfig, TrainConfig
from locallearn.config.own_parts import check_part
from locallearn.errors import ConfigError, UsageError
from locallearn.recipes.named import recipe

if TYPE_CHECKING:
    from locallearn.core.image_shape import ImageShape
    from locallearn.costs.alternatives import Alternative
    from locallearn.costs.planner import Candidate, Plan
    from locallearn.costs.timeline import Machine


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    description = "Propose K, G, cuts and head that fit some devices, by predicted time (docs/guides/plan.md)."
    if arguments and not arguments[0].startswith("-"):
        raise _no_recipe(arguments[0])
    arguments = [argument.replace("--objective.", "--", 1) for argument in arguments]
    options = parse(PlanOptions, arguments, "plan", description)
    own = names_own(options.model)
    for head in options.heads:
        if not (own and head == "shared"):
            check_part("objective.head", head)
    with working("importing torch", options.json) as tell:
        values = _of_own(options, tell) if own else _of_backbone(options, tell)
    if options.json:
        print(json.dumps(values))
    else:
        from locallearn.cli import plan_tables

        plan_tables.show(values, options.show, timed=options.device_flops is not None, everything=options.all)
    return 0


def _no_recipe(name: str) -> UsageError:
    """What to type instead of a recipe, which names a K and a G already."""
    config = recipe(name)
    settings = f"--model {config.model} --method {config.method} --heads {config.objective.head}"
    return UsageError(
        f"plan: {name} is a recipe, with K and G of its own; try: locallearn plan {settings} --memory 2GiB"
    )


def _of_own(options: PlanOptions, tell: Callable[[str], None]) -> dict[str, Any]:
    """For a model of the user's own."""
    from locallearn.cli import plan_own

    candidates, refused, others = plan_own.counted(options, _machine(options), _counting(tell))
    plan, best = _chosen(options, candidates, refused, others)
    values = _values(options, plan, others, others[0].batch_size)
    return {**values, "command": plan_own.call(options, plan.fits[0] if plan.fits else None, best)}


def _of_backbone(options: PlanOptions, tell: Callable[[str], None]) -> dict[str, Any]:
    """For a backbone of the package."""
    config = _config(options)
    check_names(config)
    from locallearn.core.image_shape import ImageShape
    from locallearn.costs.alternatives import stages, usual_ways
    from locallearn.costs.planner import enumerate_candidates

    planned = houses.part("bench", "planned") if options.measure else None
    if options.measure and planned is None:
        raise UsageError("--measure: needs locallearn.bench, which is not installed")
    image, machine = ImageShape(options.channels, options.image_size, options.classes), _machine(options)
    candidates, refused = enumerate_candidates(
        config,
        image,
        machine=machine,
        depths=options.depths,
        widths=options.widths,
        heads=options.heads,
        batches=options.batches,
        in_flight=options.in_flight,
        on_step=_counting(tell),
        cuts_of=_balancing(options, image),
    )
    tell("counting the usual ways")
    others = usual_ways(
        partial(stages, config, image),
        config.optimizer,
        machine=machine,
        devices=options.devices,
        depths=options.depths,
        batches=options.batches,
    )
    plan, best = _chosen(options, candidates, refused, others)
    proposal = plan.fits[0] if plan.fits else None
    found = _values(options, plan, others, options.batch_size)
    found["command"] = _command(options, config, proposal, best)
    if planned and proposal is not None:
        from locallearn.training import provenance
        from locallearn.training.setup import check_device

        device = check_device(options.device)
        tell("measuring the proposed step")
        found["measured"] = planned.measure(proposal.config, proposal.cost, image, device, options.repeats)
        found["measured"] |= {"hardware": provenance.hardware(str(device)), "versions": provenance.versions()}
    return found


def _machine(options: PlanOptions) -> Machine:
    """The devices; without a rate every time is a multiple of the end-to-end step, and links cost nothing."""
    from locallearn.costs.timeline import Machine

    return Machine(options.device_flops or 1e12, options.bandwidth, options.latency or 0.0)


def _counting(tell: Callable[[str], None]) -> Callable[[str], None]:
    return lambda what: tell(f"counting {what}")


def _chosen(
    options: PlanOptions, candidates: Sequence[Candidate], refused: Sequence[Any], others: Sequence[Alternative]
) -> tuple[Plan, Alternative | None]:
    """What fits, and the fastest of the usual ways that does."""
    from locallearn.costs.alternatives import fastest
    from locallearn.costs.planner import choose, sift

    memory = parse_bytes("--memory", options.memory)
    best = fastest(others, memory)
    pick = choose if best is None else sift  # where nothing at all fits, that is an error
    return pick(candidates, refused, devices=options.devices, memory=memory), best


def _values(options: PlanOptions, plan: Plan, others: Sequence[Alternative], batch_size: int) -> dict[str, Any]:
    """A plan as it is printed, without the command."""
    from locallearn.cli import plan_tables
    from locallearn.costs.alternatives import advice

    memory = parse_bytes("--memory", options.memory)
    found = plan_tables.to_json(plan, others, memory)
    found["advice"] = advice(plan.fits[0].makespan if plan.fits else None, others, memory)
    found |= {"command": None, "devices": options.devices, "batch_size": batch_size, "batches": options.batches}
    return found | {"device_flops": _machine(options).device_flops, "precision": options.precision}


def _config(options: PlanOptions) -> RunConfig:
    return RunConfig(
        method=options.method,
        model=options.model,
        cuts=("balanced",) if options.cuts[0] in MEASURED else options.cuts,
        objective=options.objective,
        optimizer=OptimizerConfig(name=options.optimizer),
        train=TrainConfig(batch_size=options.batch_size, precision=options.precision),
    )


def _balancing(options: PlanOptions, image: ImageShape) -> Callable[[RunConfig], tuple[str, ...]] | None:
    """Cuts that balance memory or time, where that is asked for; every head and G is looked at once."""
    by = options.cuts[0]
    if by not in MEASURED:
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
