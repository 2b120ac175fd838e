"""Training on several processes of this machine: the distributed runtime beside torch's pipelining and DDP, in turns.

Every contender has processes of its own (``locallearn.bench.crew``), all started before anything is timed. In each
turn one after the other trains some steps while the others wait. A turn's time is that of a step in the steady state:
the longest time from step to step of its processes, without the steps that fill and empty a pipeline.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from locallearn.bench.compiled import LIMIT as COMPILING
from locallearn.bench.crew import Crew
from locallearn.bench.own_jobs import OwnModel, own_jobs
from locallearn.bench.predicted import LinkSpeed, link_of, predict
from locallearn.bench.step import Setting, step_config
from locallearn.bench.timing import Timing, ratio
from locallearn.bench.trainers import Lap, TimedJob, Way
from locallearn.config import MeshConfig, RunConfig
from locallearn.core.assembly import build_network

_IDLE_TURNS = 1000
"""How many times longer than an answer may take a process group waits for the next turn."""


@dataclass(frozen=True)
class CrewPlan:
    """What to measure.

    Attributes:
        model: backbone.
        processes: how many, N.
        cells: (K, G) of the local networks, each with K x G = N.
        cuts: where the network with K = N modules is cut, and the pipelines.
        peers: of ``"e2e"``, ``"compiled"``, ``"1f1b"``, ``"gpipe"`` and ``"ddp"``.
        microbatches: parts of a batch in the pipelines.
        steps: timed steps of a turn.
        setting: batch, precision, repeats, and the threads of each of N processes.
        timeout: how long a turn of one contender may take [s].
        in_flight: batches of features on the way to the next module.
        lead: steps of a turn before those that are timed, while the pipeline fills.
        own: the user's own model that takes the place of ``model`` and ``cuts``.
    """

    model: str
    processes: int
    cells: tuple[tuple[int, int], ...]
    cuts: tuple[str, ...]
    peers: tuple[str, ...]
    microbatches: int
    steps: int
    setting: Setting
    timeout: float
    in_flight: int = MeshConfig.in_flight
    lead: int = 2
    own: OwnModel | None = None

    @property
    def cell_names(self) -> list[str]:
        """How the local networks are named."""
        return [cell_name(*cell) for cell in self.cells]

    def mesh(self, depth: int = 1, width: int = 1, data: int = 1) -> MeshConfig:
        """A mesh whose processes may wait for their turn."""
        return MeshConfig(depth, width, data, in_flight=self.in_flight, timeout=self.timeout * _IDLE_TURNS)


def bench_distributed(plan: CrewPlan, tell: Callable[[str], None]) -> dict[str, Any]:
    """Measure everything in turns.

    Args:
        plan: what to measure.
        tell: is called with what is being done.

    Returns:
        ``link`` (``bandwidth`` [bytes/s] and ``latency`` [s] between two processes here); ``rows``, see ``_row``;
        and ``ratios``, see ``ratios``.

    Raises:
        LocalLearnError: a process failed or hung; all are ended.
    """
    jobs = jobs_of(plan)
    with contextlib.ExitStack() as stack:
        crews = {
            name: Crew(name, job, plan.timeout + COMPILING * (job.way == "compiled")) for name, job in jobs.items()
        }
        for crew in crews.values():
            stack.callback(crew.close)
        started = {name: crew.answers() for name, crew in crews.items()}
        laps = {name: Laps(crew, plan) for name, crew in crews.items()}
        for name, lap in laps.items():
            tell(f"warming up: {name}")
            lap.turn()  # not counted
        peaks = {name: crew.ask("memory") for name, crew in crews.items()}
        for lap in laps.values():
            lap.turn_of_parts()
            lap.forget()
        link = measure_link(crews)
        for turn in range(plan.setting.repeats):
            for name, lap in laps.items():
                tell(f"turn {turn + 1} of {plan.setting.repeats}: {name}")
                lap.turn()
            for name, lap in laps.items():
                tell(f"turn {turn + 1} of {plan.setting.repeats}: parts of {name}")
                lap.turn_of_parts()
        kept = {name: crew.ask("weigh", 2) for name, crew in crews.items()}
    rows = {name: _row(jobs[name], laps[name]) for name in jobs}
    for name, row in rows.items():
        row |= {"activation_bytes": kept[name], "peak_bytes": peaks[name], "start_bytes": started[name]}
        row |= predict(jobs[name], row["apart_seconds"], statistics.median(row["seconds"]), link)
    return {"link": link._asdict() if link else None, "rows": list(rows.values()), "ratios": ratios(plan, laps)}


def jobs_of(plan: CrewPlan) -> dict[str, TimedJob]:
    """The jobs of all contenders by their names.

    Raises:
        ConfigError: a network cannot be built or cut so.
    """
    if plan.own is not None:
        return own_jobs(plan, plan.own)
    n, one = plan.processes, plan.setting
    many = dataclasses.replace(one, threads=n * (one.threads or 1))
    pipeline = _config(plan, n, 1, MeshConfig(depth=n))
    e2e = _config(plan, 1, 1, MeshConfig())
    jobs = {}
    if "e2e" in plan.peers:
        jobs |= {"e2e": TimedJob("inline", e2e, one), "e2e, threads": TimedJob("inline", e2e, many)}
    if "compiled" in plan.peers:
        jobs["compiled"] = TimedJob("compiled", e2e, one)
    for depth, width in plan.cells:
        name = cell_name(depth, width)
        inline = _config(plan, depth, width, MeshConfig())
        jobs[f"{name} inline"] = TimedJob("inline", inline, one)
        jobs[f"{name} inline, threads"] = TimedJob("inline", inline, many)
        jobs[name] = TimedJob("distributed", _config(plan, depth, width, MeshConfig(depth=depth, width=width)), one)
    ways: dict[str, Way] = {"1f1b": "1f1b", "gpipe": "gpipe"}
    jobs |= {
        name: TimedJob(way, pipeline, one, plan.microbatches) for name, way in ways.items() if name in plan.peers
    }
    if "ddp" in plan.peers:
        jobs["ddp"] = TimedJob("ddp", dataclasses.replace(e2e, runtime="distributed", mesh=plan.mesh(data=n)), one)
    for job in jobs.values():  # before any process is started
        with torch.device("meta"):
            build_network(job.config, one.image)
    return jobs


def cell_name(depth: int, width: int) -> str:
    """How a K x G network is named: ``dgl K=2 G=1``."""
    return f"{'dgl' if width == 1 else 'gn-dgl'} K={depth} G={width}"


def _config(plan: CrewPlan, depth: int, width: int, mesh: MeshConfig) -> RunConfig:
    method = "e2e" if depth == width == 1 else "dgl" if width == 1 else "gn-dgl"
    config = step_config(plan.model, method, depth, width)
    cuts = plan.cuts if depth == plan.processes else config.cuts
    if mesh.size == 1:
        return dataclasses.replace(config, cuts=cuts)
    return dataclasses.replace(config, cuts=cuts, runtime="distributed", mesh=plan.mesh(mesh.depth, mesh.width))


class Laps:
    """What the turns of one contender took.

    Attributes:
        seconds: of a step in each turn [s].
        waits: for each process, the share of each turn that it waited for others.
        alone: for each process, the seconds of its part of a step, while the others wait, turn by turn.
        apart: the same while the others do theirs, without a message between them.
    """

    def __init__(self, crew: Crew, plan: CrewPlan) -> None:
        self.crew, self.lead, self.steps = crew, plan.lead, plan.steps
        mesh = crew.job.config.mesh
        # the first modules are ahead by what is on its way, and they must not end while the last one is timed
        self.tail = 2 * mesh.in_flight + 2 if crew.job.way == "distributed" and mesh.depth > 1 else 0
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.seconds: list[float] = []
        self.waits: list[list[float]] = [[] for _ in range(self.crew.size)]
        self.alone: list[list[float]] = [[] for _ in range(self.crew.size)]
        self.apart: list[list[float]] = [[] for _ in range(self.crew.size)]

    def turn(self) -> None:
        """Train."""
        laps = self.crew.ask("run", self.lead + self.steps + self.tail)
        self.seconds.append(max(step_seconds(lap, self.lead, self.steps) for lap in laps))
        for waits, lap in zip(self.waits, laps, strict=True):
            waits.append(waited_share(lap, self.lead, self.steps))

    def turn_of_parts(self) -> None:
        """Let the processes, where there are several, do their parts of a step: one after the other, then at once."""
        if self.crew.size == 1:
            return
        for rank, alone in enumerate(self.alone):
            alone.append(self._parts([rank])[0])
        for apart, seconds in zip(self.apart, self._parts(range(self.crew.size)), strict=True):
            apart.append(seconds)

    def _parts(self, ranks: Sequence[int]) -> list[float]:
        laps = self.crew.ask("alone", 1 + self.steps, ranks=ranks)
        return [step_seconds(lap, 1, self.steps) for lap in laps]

    @property
    def timing(self) -> Timing:
        """Of a step [s]."""
        return Timing(tuple(self.seconds))


def medians(seconds: Sequence[Sequence[float]]) -> list[float]:
    """The median of what each process took; none where nothing was taken."""
    return [statistics.median(each) for each in seconds if each]


def slowest(seconds: Sequence[Sequence[float]]) -> Timing:
    """What the process took that takes longest."""
    return Timing(tuple(max(seconds, key=statistics.median)))


def step_seconds(lap: Lap, lead: int, steps: int) -> float:
    """Seconds from step to step, over ``steps`` steps after the first ``lead``."""
    return (lap.ends[lead + steps - 1] - lap.ends[lead - 1]) / steps


def waited_share(lap: Lap, lead: int, steps: int) -> float:
    """The share of the same time that was spent waiting for others."""
    waited = lap.waits[lead + steps - 1] - lap.waits[lead - 1]
    return waited / (steps * step_seconds(lap, lead, steps))


def measure_link(crews: Mapping[str, Crew]) -> LinkSpeed | None:
    """Time messages between the first two processes of a crew whose threads do not listen meanwhile."""
    idle = [crew for crew in crews.values() if crew.job.way in ("1f1b", "gpipe", "ddp")]
    if not idle:
        return None
    small, large = 8, 2**22
    return link_of(idle[0].ask("echo", small, 50)[0], idle[0].ask("echo", large, 20)[0], large)


def _row(job: TimedJob, laps: Laps) -> dict[str, Any]:
    """Figures of one contender.

    ``name``, ``label`` (the same for all ways to run one network), ``processes``, ``threads`` (of each process),
    ``images_per_second`` (median), ``spread`` (quartile distance over median), ``seconds`` (of a step, by turn),
    ``waiting`` (median share of a step that each process waits for others; None where it is not known), and each
    process's part of a step (medians): ``alone_seconds`` while the others wait, ``apart_seconds`` while they do
    theirs without a message.

    The caller adds for each process ``activation_bytes`` (peak of what autograd keeps), ``peak_bytes`` and
    ``start_bytes`` (resident memory: the most, and before the first step), and what ``predict`` tells.
    """
    timing = laps.timing
    measured = job.way == "distributed"
    name = laps.crew.name
    return {
        "name": name,
        "label": name.split(",")[0].removesuffix(" inline"),
        "processes": laps.crew.size,
        "threads": job.setting.threads,
        "images_per_second": job.setting.batch_size / timing.median,
        "spread": timing.spread,
        "seconds": list(timing.seconds),
        "waiting": medians(laps.waits) if measured else None,
        "alone_seconds": medians(laps.alone),
        "apart_seconds": medians(laps.apart),
    }


def ratios(plan: CrewPlan, laps: Mapping[str, Laps]) -> dict[str, dict[str, float]]:
    """For every cell how many times as fast it is as each peer, and the share of what its slowest process does.

    ``of slower node alone``: while the others wait; ``of slower node apart``: while they do their parts without
    messages, so that what is missing is the messages' alone. Medians over turns of the ratio within a turn.
    """
    found = {}
    for depth, width in plan.cells:
        own = laps[cell_name(depth, width)]
        others = {name: lap.timing for name, lap in laps.items() if lap is not own and not _is_cell(name, plan)}
        found[own.crew.name] = {f"x {name}": ratio(timing, own.timing) for name, timing in others.items()}
        found[own.crew.name]["of slower node alone"] = ratio(slowest(own.alone), own.timing)
        found[own.crew.name]["of slower node apart"] = ratio(slowest(own.apart), own.timing)
    return found


def _is_cell(name: str, plan: CrewPlan) -> bool:
    return name in {cell_name(*cell) for cell in plan.cells}
