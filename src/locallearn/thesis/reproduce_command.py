"""``locallearn reproduce TABLE...``: its options, which ``--help`` shows without importing torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from locallearn.cli.early import working
from locallearn.cli.options import check_at_least, parse
from locallearn.config import OneProcess
from locallearn.errors import ConfigError, UsageError


@dataclass(frozen=True)
class Folders:
    """Where data are."""

    root: str | None = None
    """Folder that holds the data; by default $LOCALLEARN_DATA, then ~/.cache/locallearn/data."""
    download: bool = False
    """Fetch a data set if it is not there."""


@dataclass(frozen=True)
class ReproduceOptions:
    """Options of ``reproduce``."""

    tables: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="TABLE")] = ()
    """Tables and figures: table-3.1 to table-3.6, figure-3.5 to figure-3.7; table-4.1 to table-4.4, figure-4.3 to
    figure-4.9, figure-a.3 to figure-a.5; small-4.1, small-4.8 and small-a.3 with -vgg6a or -resnet18 for small
    machines; digits and digits-4, trials of minutes; methods-2026, methods of the field on ResNet-32, with -vit on
    vit-tiny, with -depth over K, with -published as their authors train them, with -groups in K x G nodes; sweep,
    with the protocol of that name. Or single cells by name, such as cifar10-resnet32-gn-dgl-k2-g2."""
    protocol: str = "quick"
    """paper (the thesis's epochs and batch: days), standard (a tenth of its epochs: half an hour to hours a cell) or
    quick (two epochs). sweep is that of the table of this name."""
    seeds: int = 1
    """Train every cell with the seeds 0 to N - 1; seed 0 of all cells comes before seed 1 of any."""
    budget: float | None = None
    """Stop cleanly after this wall-clock time [s]; what is unfinished goes on next time."""
    jobs: int | None = None
    """Cells at once; by default 1 on a CPU, and on a GPU one for every 6 GiB of free memory, at most one a core."""
    threads: int | None = None
    """CPU threads of each cell; by default the cores shared out."""
    device: str | None = None
    """Device to train on, cpu or cuda[:N]; by default the GPU where there is one."""
    runtime: OneProcess = "inline"
    """How modules of a cell train: one after the other, several at once on the threads of a CPU, or launched together
    on a GPU. What is trained is the same."""
    epochs: int | None = None
    """One-off study: train this many epochs instead [epochs]. Its results are kept apart."""
    train_limit: int | None = None
    """One-off study: use only the first N training images [images]. Its results are kept apart."""
    data: Folders = field(default_factory=Folders)
    results: str = "results"
    """Folder of the records, one JSON file for each cell and seed, and of report.html."""
    runs: str = "runs/reproduce"
    """Folder of the runs."""
    list: bool = False
    """Show the cells in the order of the queue, how far they are and how long they need still, and train nothing."""
    json: bool = False
    """Print what was done, every value and the claims as JSON, and no progress."""

    def __post_init__(self) -> None:
        check_at_least(self, seeds=1, jobs=1, threads=1, epochs=1, train_limit=2)
        if self.budget is not None and not self.budget > 0:
            raise ConfigError("--budget", self.budget, "seconds above 0")


USAGE = """Train what is missing of the thesis's tables and figures, one process a cell, and draw them.

Every cell and seed is a run of its own and leaves one record; finished ones are skipped. Stop it in any way (Ctrl-C,
kill -9, --budget) and call it again: it goes on. Several calls at once share the work."""


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(ReproduceOptions, arguments, "reproduce", USAGE)
    if not options.tables:
        raise UsageError(
            "reproduce: TABLE is missing; for example: locallearn reproduce table-3.4 --list; "
            "all names: locallearn reproduce --help"
        )
    from locallearn.thesis.asked import asked

    study, names = asked(options)
    with working("importing torch and matplotlib", options.json):
        from locallearn.thesis.reproduce import reproduce

    return reproduce(options, study, names)
