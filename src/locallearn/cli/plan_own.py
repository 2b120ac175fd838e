"""``locallearn plan`` for a model of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from locallearn.cli.own_model import own_model, refuse_changed
from locallearn.cli.plan_options import PlanOptions
from locallearn.config import ObjectiveConfig, OptimizerConfig
from locallearn.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from locallearn.costs.alternatives import Alternative
    from locallearn.costs.planner import Candidate, Refusal
    from locallearn.costs.timeline import Machine


def counted(
    options: PlanOptions, machine: Machine, on_step: Callable[[str], None]
) -> tuple[list[Candidate], list[Refusal], list[Alternative]]:
    """Candidates, what the model cannot be split into, and the usual ways.

    Raises:
        ConfigError: an option has no meaning with a model of the user's own.
        UsageError: the function fails, or gives something else than a model and a batch.
    """
    refuse_changed(options, "method", "widths", "measure", "repeats")
    if options.cuts[0] == "balanced":
        raise ConfigError("--cuts", "balanced", "auto, memory or time with a model of your own")
    if options.cuts[0] != "time":
        refuse_changed(options, "device")
    refuse_changed(options, "image_size", "channels", "classes", "batch_size")
    from locallearn.core.split_network import SplitNetwork
    from locallearn.costs.own_balance import BalancedCuts
    from locallearn.costs.own_planner import DEFAULT_HEAD, ModelToPlan
    from locallearn.training.setup import check_device

    model, batch = own_model(options.model)
    if isinstance(model, SplitNetwork):
        raise UsageError(f"--model: {options.model} gives a network that is split already; plan splits your model")
    precision = None if options.precision == "fp32" else options.precision
    own = ModelToPlan(model, batch, options.objective, OptimizerConfig(name=options.optimizer), precision)
    head, by = ObjectiveConfig().head, options.cuts[0]
    device = check_device(options.device) if by == "time" else None
    candidates, refused = own.candidates(
        machine=machine,
        depths=options.depths,
        heads=[DEFAULT_HEAD if options.heads == (head,) else each for each in options.heads],
        batches=options.batches,
        in_flight=options.in_flight,
        on_step=on_step,
        cuts_of=None if by == "auto" else BalancedCuts(own, by, device),  # type: ignore[arg-type]
    )
    on_step("the usual ways")
    others = own.usual_ways(machine=machine, devices=options.devices, depths=options.depths, batches=options.batches)
    return candidates, refused, others


def call(options: PlanOptions, proposal: Candidate | None, best: Alternative | None) -> str | None:
    """What trains the proposal, in Python; None where a usual way is as fast, which needs nothing of this package."""
    if proposal is None or (best is not None and best.makespan <= proposal.makespan):
        return None
    from locallearn.costs.own_planner import DEFAULT_HEAD

    config = proposal.config
    how = f"cuts={list(proposal.ends)}" if proposal.ends else "depth=1"
    how += "" if config.objective.head == DEFAULT_HEAD else f", head={config.objective.head!r}"
    how += "" if config.objective.loss is None else f", objective={config.objective.loss!r}"
    runtime = ', runtime="distributed"' if proposal.devices > 1 else ""
    found = f"ll.Trainer(ll.split(model, example=batch, {how}){runtime})"
    return found + (f"  # torchrun --nproc-per-node {proposal.devices}" if proposal.devices > 1 else "")
