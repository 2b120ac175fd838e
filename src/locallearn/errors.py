"""Named errors. Every one of them is a message for the user: one line, no traceback on the command line."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST = 300
"""So many characters of a wrong value are shown."""


class LocalLearnError(Exception):
    """Base of every error that the package raises on purpose.

    The command line prints ``str(error)`` as one line and exits with ``exit_code``. Where processes are started again
    after one has died, they are not after an error that would come again; ``passing`` says that it need not.
    """

    exit_code = 1
    passing = False


class UsageError(LocalLearnError):
    """Something that the user asked for cannot be done as asked (exit code 2)."""

    exit_code = 2


class ConfigError(UsageError):
    """A setting has a wrong value.

    Args:
        field: dotted name of the setting, as in TOML and on the command line (``train.batch_size``).
        value: what was given.
        expected: what would be right, as a phrase (``"a positive integer"``).
        near: known names that may have been meant, where the value is an unknown one.
    """

    def __init__(self, field: str, value: object, expected: str, near: Sequence[str] = ()) -> None:
        meant = f"is not known. Did you mean {' or '.join(near)}?"
        try:
            shown = " ".join(repr(value).split())  # a tensor's is of several lines
            shown = shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}..."
        except RecursionError:  # text from elsewhere may be nested without end
            shown = f"a {type(value).__name__} of too many levels"
        super().__init__(f"{field}: {shown} {meant if near else f'is not valid; expected {expected}'}")
        self.field = field
        self.value = value
        self.expected = expected


class DataError(UsageError):
    """A data set is missing, damaged or not in a layout that the readers know."""


class DiskError(LocalLearnError):
    """A file cannot be written because the disk is full or broken; the same command may work later."""


class CheckpointError(LocalLearnError):
    """A checkpoint is missing, damaged or belongs to another configuration."""


class DivergedError(LocalLearnError):
    """A loss became NaN or infinite."""


class InterruptedRunError(LocalLearnError):
    """The user stopped a run; it can be resumed."""


def printable(text: str) -> str:
    """The text with control characters spelled out, so that a name can neither move a terminal's cursor nor hide."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def one_line(error: object) -> str:
    """What an error says, on one line."""
    return printable(" ".join(str(error).split()))
