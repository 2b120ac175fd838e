"""Claims in words as comparisons of records, and how they are judged."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

AGREES, DISAGREES, CANNOT_TELL = "agrees", "disagrees", "cannot tell"


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


def check(claim: Claim, measured: Mapping[str, Sequence[Mapping[str, Any]]]) -> Verdict:
    """Judge a claim by records of one study.

    A comparison is made seed by seed, over the seeds that all its cells have. Where there are several seeds and the
    mean difference is not larger than its standard deviation over them, it cannot tell. One comparison against the
    claim is enough to disagree.

    Args:
        claim: the claim.
        measured: comparable records of every cell (:func:`locallearn.experiments.results.comparable`).
    """
    judged = [_compare(comparison, measured) for comparison in claim.comparisons]
    verdicts = [verdict for verdict, _ in judged]
    first = next((v for v in (DISAGREES, CANNOT_TELL) if v in verdicts), AGREES)
    return Verdict(claim.text, first, tuple(line for _, line in judged))


def _compare(comparison: Comparison, measured: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[str, str]:
    by_seed = [{r["seed"]: term.of(r) for r in measured.get(term.cell, ())} for term in comparison.terms]
    missing = list(dict.fromkeys(t.cell for t, v in zip(comparison.terms, by_seed, strict=True) if not v))
    if missing:
        return CANNOT_TELL, f"{comparison.text}: missing {', '.join(missing)}"
    seeds = sorted(set.intersection(*(set(values) for values in by_seed)))
    if not seeds:
        return CANNOT_TELL, f"{comparison.text}: its cells have no seed in common"
    signed = list(zip(comparison.terms, by_seed, strict=True))
    differences = [sum(term.sign * values[seed] for term, values in signed) for seed in seeds]
    mean = statistics.mean(differences)
    spread = statistics.stdev(differences) if len(seeds) > 1 else 0.0
    sums = " ".join(
        f"{'+' if term.sign > 0 else '−'} {statistics.mean(values[seed] for seed in seeds):.2f}"
        for term, values in signed
    ).removeprefix("+ ")
    n = f"± {spread:.2f}, {len(seeds)} seeds" if len(seeds) > 1 else "1 seed, spread not known"
    total = f"{mean:+.2f}".replace("-", "−")
    return _sign(mean, spread, comparison.or_equal), f"{comparison.text}: {sums} = {total} {comparison.unit} ({n})"


def _sign(mean: float, spread: float, or_equal: bool) -> str:
    if abs(mean) <= spread and spread > 0:
        return CANNOT_TELL
    if mean > 0 or (or_equal and mean == 0):
        return AGREES
    return DISAGREES if mean < 0 else CANNOT_TELL
