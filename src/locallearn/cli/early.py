"""What a command can refuse or say before torch is imported, which takes seconds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.text import Text

from locallearn.cli.console import Terminal
from locallearn.config import RunConfig
from locallearn.errors import UsageError, printable


def check_names(config: RunConfig) -> None:
    """Refuse a model, method, head, loss or data set that nobody registered.

    A depth or width that the method does not have is refused as well.

    Raises:
        UsageError: one line names the setting, its value and what would be right.
    """
    from locallearn.config.own_parts import check_part
    from locallearn.core.methods import methods
    from locallearn.data.datasets import datasets
    from locallearn.nn.backbones import check_model

    check_model(config.model)
    methods.build(config.method, config)
    check_part("objective.head", config.objective.head)
    if config.objective.loss is not None:
        check_part("objective.loss", config.objective.loss)
    name = config.data.name
    if name not in datasets and Path(name).is_dir():
        raise UsageError(f"--data: {name} is a folder; images in it are read with --data folder --data-root {name}")
    datasets.get(name)


def check_run(folder: str) -> None:
    """Refuse a folder that is no run.

    Raises:
        UsageError: it has no config.toml, or not one that this version reads.
    """
    from locallearn.training.record import RunFolder

    RunFolder(Path(folder)).config()


@contextlib.contextmanager
def working(what: str, quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """Show on a terminal, while it lasts, that something is being done; a log file gets nothing.

    Gives a function that is told what is being done now.

    Args:
        what: is being done, as in "reading the run".
        quiet: show nothing.
    """
    console = Terminal(stderr=True)
    if quiet or not console.is_terminal:
        yield _silent
        return
    with console.status(printable(what)) as status:
        yield lambda now: status.update(Text(printable(now)))


def _silent(_: str) -> None:
    pass
