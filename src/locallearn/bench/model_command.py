"""``locallearn bench model``: a user's own model, trained locally and in the usual ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich import box
from rich.table import Table

from locallearn.bench.cells import MODELS
from locallearn.bench.measuring import check_positive, facts, show
from locallearn.bench.own_options import OwnOptions
from locallearn.cli.early import working
from locallearn.cli.options import check_at_least, parse
from locallearn.errors import ConfigError, UsageError
from locallearn.report.units import mebibytes


@dataclass(frozen=True)
class ModelOptions(OwnOptions):
    """Options of ``bench model``."""

    depth: tuple[int, ...] = (2, 4, 12)
    """K of the local networks, cut at places of balanced cost."""
    cuts: tuple[str, ...] = ()
    """Submodules that stages end after instead, of one local network."""
    runtimes: tuple[Literal["inline", "threads", "compiled-stages"], ...] = ("inline",)
    """How stages train: one after the other, several at once on the threads of a CPU, or one after the other with
    their blocks compiled."""
    baselines: tuple[Literal["compiled", "checkpointing", "compiled-checkpointing", "accumulation"], ...] = (
        "compiled",
        "checkpointing",
        "accumulation",
    )
    """What else to compare with plain backpropagation: compiled by torch.compile, with its blocks run again in
    the backward pass, both, on micro-batches."""
    micro_batches: int = 2
    """Micro-batches of a batch, of accumulation."""
    batch_size: int = 8
    """Examples a step, where MODEL brings no batch [examples]."""
    precision: str | None = None
    """fp32 or bf16 (autocast); by default fp32."""
    limit: float = 300.0
    """How long a way may take to build and to warm up, compiling included [s]; one that takes longer is left out."""
    repeats: int = 5
    """Turns of each way with plain backpropagation; medians are printed."""
    bytes_only: bool = False
    """Time nothing: the bytes that a step keeps for its backward pass."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "depth")
        if self.cuts:  # for which --depth is not asked
            object.__setattr__(self, "depth", (len(self.cuts) + 1,))
        check_at_least(self, batch_size=1, micro_batches=2)
        if not self.limit > 0:
            raise ConfigError("--limit", self.limit, "a number of seconds above 0")


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    help_wanted = {"-h", "--help", "--help-all"} & set(arguments)
    if not help_wanted and (not arguments or arguments[0].startswith("-")):
        raise UsageError(f"bench model: MODEL is missing; expected {MODELS}")
    description = (
        f"Time and memory of a step of a model of your own: {MODELS}. Each way runs in a process of its own, "
        "in turns with plain backpropagation."
    )
    rest = arguments if help_wanted else arguments[1:]
    options = parse(ModelOptions, rest, "bench model MODEL", description)
    precision = options.precision or "fp32"
    repeats = 0 if options.bytes_only else options.repeats
    with working("importing torch", options.json) as tell:
        import torch

        from locallearn.bench.model import ModelJob, bench_model
        from locallearn.bench.ways import Way, ways
        from locallearn.cli.named_models import Inputs

        device, _ = options.prepare()
        inputs = Inputs(options.batch_size, options.image_size, options.tokens)
        job = ModelJob(arguments[0], inputs, str(device), torch.get_num_threads(), repeats, options.limit)
        base = Way("backprop", precision=precision, heads=options.heads(), cuts=options.cuts)
        baselines = list(dict.fromkeys(options.baselines))
        chosen = ways(baselines, options.depth, options.runtimes, options.micro_batches, base)
        rows = bench_model(job, chosen, tell)
    setting = {
        "batch_size": options.batch_size,
        "tokens": options.tokens,
        "image_size": options.image_size,
        "heads": base.heads.as_dict(),
    }
    found = {"model": arguments[0], **facts(device, precision, repeats), **setting, "rows": rows}
    show(options, found, [_table(rows, arguments[0], options)])
    return 0


def _table(rows: Sequence[dict[str, Any]], model: str, options: ModelOptions) -> Table:
    failed = [f"{row['name']}: {row['error']}" for row in rows if "error" in row]
    caption = "MiB kept for the backward pass, and the process's peak in a step; x: over plain backpropagation's"
    for row in rows:
        if "graphs" in row:
            caption += f". {row['name']}: first step {row['warm_up_seconds']:.0f} s, {row['graphs']} graphs, "
            caption += f"{row['recompiles']} compiled after it"
    table = Table(title=f"{model}: a training step", caption="\n".join([caption, *failed]), box=box.SIMPLE_HEAD)
    timed = not options.bytes_only
    for column in ["", "MiB kept", "x", *(["peak MiB", "x", "s a step", "spread", "x"] if timed else [])]:
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for row in rows:
        if "error" in row:
            table.add_row(row["name"], "none")
            continue
        cells = [row["name"], mebibytes(row["activation_bytes"]), f"{row['memory']:.3f}"]
        if timed:
            cells += [f"{row['resident_bytes'] / 2**20:,.0f}", f"{row['resident']:.2f}"]
            cells += [f"{row['seconds']:.3f}", f"{row['spread']:.1%}", f"{row['time']:.2f}"]
        table.add_row(*cells)
    return table
