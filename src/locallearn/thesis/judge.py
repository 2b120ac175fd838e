"""Claims in words as comparisons of records, and how they are judged."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

AGREES, DISAGREES, CANNOT_TELL = "agrees", "disagrees", "cannot tell"

_MISSING = ": missing "


def lacks_cells(line: str) -> bool:
    """Whether the line of a comparison says that cells of it are missing."""
    return _MISSING in line


@dataclass(frozen=True)
class Term:
    """One number of a comparison: a field of a cell's record, with its sign.

    Attributes:
        sign: 1 or -1.
        cell: the cell.
        field: last_layer, ensemble, linear_probe (accuracy), largest_node (multiply-accumulates), early_probe (linear
            probe at a quarter of the depth) or late_gain (what probes gain over the last half of the depth).
    """

    sign: int
    cell: str
    field: str

    @property
    def is_counted(self) -> bool:
        """Whether it is the same for every seed."""
        return self.field == "largest_node"

    def of(self, record: Mapping[str, Any]) -> float:
        """The number in this record: accuracy in percent, or millions of multiply-accumulates."""
        if self.field == "largest_node":
            return record["macs"]["largest_node"] / 1e6
        if self.field in ("early_probe", "late_gain"):
            points = record["probe"]["points"]
            place = max(1, round(len(points) / (4 if self.field == "early_probe" else 2)))
            reached = 100 * points[place - 1]["accuracy"]
            return reached if self.field == "early_probe" else 100 * points[-1]["accuracy"] - reached
        return 100 * record["accuracy"][self.field]


@dataclass(frozen=True)
class Comparison:
    """What a claim says of a sum of terms: that it is above zero, or with ``or_equal`` not below."""

    text: str
    terms: tuple[Term, ...]
    unit: str = "points"
    or_equal: bool = False


@dataclass(frozen=True)
class Claim:
    """A claim that holds where all of its comparisons do."""

    text: str
    comparisons: tuple[Comparison, ...]

    @property
    def cells(self) -> tuple[str, ...]:
        """The cells that it needs, each once."""
        return tuple(dict.fromkeys(term.cell for comparison in self.comparisons for term in comparison.terms))


@dataclass(frozen=True)
class Verdict:
    """A claim's verdict and the numbers behind it, one line a comparison."""

    claim: str
    verdict: str
    numbers: tuple[str, ...]


def check(
    claim: Claim,
    measured: Mapping[str, Sequence[Mapping[str, Any]]],
    published: Mapping[tuple[str, str], float] | None = None,
) -> Verdict:
    """Judge a claim by records of one study.

    A comparison is paired: made seed by seed, over the seeds that all its cells have. It can be told where the mean
    difference is more than two of its standard errors from zero, which takes at least two seeds; what is counted
    differs in no seed and is told by one. One comparison against the claim is enough to disagree.

    Args:
        claim: the claim.
        measured: comparable records of every cell (``locallearn.thesis.cell_records.comparable``).
        published: the thesis's accuracies [%] by cell and field, which are shown beside.
    """
    judged = [_compare(comparison, measured, published or {}) for comparison in claim.comparisons]
    verdicts = [verdict for verdict, _ in judged]
    first = next((v for v in (DISAGREES, CANNOT_TELL) if v in verdicts), AGREES)
    return Verdict(claim.text, first, tuple(line for _, line in judged))


def _compare(
    comparison: Comparison,
    measured: Mapping[str, Sequence[Mapping[str, Any]]],
    published: Mapping[tuple[str, str], float],
) -> tuple[str, str]:
    told = _published(comparison, published)
    by_seed = [{r["seed"]: term.of(r) for r in measured.get(term.cell, ())} for term in comparison.terms]
    missing = list(dict.fromkeys(t.cell for t, v in zip(comparison.terms, by_seed, strict=True) if not v))
    if missing:
        return CANNOT_TELL, f"{comparison.text}{_MISSING}{', '.join(missing)}{told}"
    seeds = sorted(set.intersection(*(set(values) for values in by_seed)))
    if not seeds:
        return CANNOT_TELL, f"{comparison.text}: its cells have no seed in common{told}"
    signed = list(zip(comparison.terms, by_seed, strict=True))
    differences = [sum(term.sign * values[seed] for term, values in signed) for seed in seeds]
    mean, error = statistics.mean(differences), _standard_error(comparison, differences)
    sums = " ".join(
        f"{'+' if term.sign > 0 else '−'} {statistics.mean(values[seed] for seed in seeds):.2f}"
        for term, values in signed
    ).removeprefix("+ ")
    verdict = _sign(mean, error, comparison.or_equal)
    numbers = f"{sums} = {_signed(mean)} {comparison.unit} ({_of_seeds(error, len(seeds))})"
    return verdict, f"{comparison.text}: {numbers}{told}"


def _standard_error(comparison: Comparison, differences: Sequence[float]) -> float | None:
    """Of the mean difference; None where it is not known, and 0 where everything is counted."""
    if all(term.is_counted for term in comparison.terms):
        return 0.0
    return statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else None


def _of_seeds(error: float | None, seeds: int) -> str:
    if error is None:
        return "1 seed, standard error not known"
    return f"standard error {error:.2f}, {seeds} seeds" if error or seeds > 1 else "counted"


def _sign(mean: float, error: float | None, or_equal: bool) -> str:
    if error is None or (abs(mean) <= 2 * error and not (or_equal and mean >= 0)):
        return CANNOT_TELL
    if mean > 0 or (or_equal and mean == 0):
        return AGREES
    return DISAGREES if mean < 0 else CANNOT_TELL


def _published(comparison: Comparison, published: Mapping[tuple[str, str], float]) -> str:
    """What the thesis's own figures say, where it prints all of them."""
    keys = [(term.cell, term.field) for term in comparison.terms]
    if not all(key in published for key in keys):
        return ""
    total = sum(term.sign * published[key] for term, key in zip(comparison.terms, keys, strict=True))
    return f"; in the thesis {_signed(total)}"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")
