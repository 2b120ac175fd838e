"""Errors of what the user gave (optimizers, schedules, batches), as one line that names it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from locallearn.errors import LocalLearnError, UsageError, one_line


@contextlib.contextmanager
def told_of(name: str, what: str) -> Iterator[None]:
    """While it lasts, errors are of the argument ``name``.

    Args:
        name: of the argument.
        what: does not work, as the beginning of a sentence.

    Raises:
        UsageError: something failed; memory that is full is left as it is.
    """
    try:
        yield
    except (LocalLearnError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        hint = _ONE_ROW if "more than 1 value per channel" in str(error) else ""
        raise UsageError(f"{name}: {what}: {type(error).__name__}: {one_line(error)}{hint}") from error


_ONE_ROW = "; batch norm needs several examples, and drop_last=True of a DataLoader leaves out a last one"
