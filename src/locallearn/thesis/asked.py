"""What ``locallearn reproduce`` is asked for: a study and its cells. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from locallearn.errors import ConfigError, UsageError
from locallearn.thesis import chapter4, sweep
from locallearn.thesis.catalogue import cells_of
from locallearn.thesis.protocols import Study

if TYPE_CHECKING:
    from locallearn.thesis.reproduce_command import ReproduceOptions


def asked(options: ReproduceOptions) -> tuple[Study, list[str]]:
    """The study, and the names of the cells of all tables.

    Raises:
        UsageError: no such table or protocol, or they do not fit each other.
    """
    study = Study(options.protocol, options.epochs, options.train_limit)
    names = [cell for table in dict.fromkeys(options.tables) for cell in _with_scorers(cells_of(table))]
    _check_sweep(options, names)
    return study, names


def _check_sweep(options: ReproduceOptions, names: Sequence[str]) -> None:
    """The sweep is scored on images that its own protocol alone holds out."""
    for name in names:
        if (name in sweep.configs()) != (options.protocol == "sweep"):
            fitting = "sweep" if name in sweep.configs() else "one other than sweep"
            raise UsageError(f"--protocol: {options.protocol!r} does not fit {name}; expected {fitting}")
    if options.protocol == "sweep" and (options.train_limit or 0) > sweep.IMAGES:
        raise ConfigError("--train-limit", options.train_limit, f"at most {sweep.IMAGES} with protocol sweep")


def _with_scorers(names: Sequence[str]) -> list[str]:
    """The cells, and before them the cells whose networks score pairs for them."""
    scorers = [scorer for scorer in map(chapter4.scorer_of, names) if scorer]
    return list(dict.fromkeys([*scorers, *names]))
