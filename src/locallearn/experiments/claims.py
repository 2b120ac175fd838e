"""The thesis's claims in words, checked on records."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from locallearn.experiments.matrix import DEPTHS, GN_DEPTHS, resnet_name, vgg_name
from locallearn.experiments.published import accuracy_field

AGREES, DISAGREES, CANNOT_TELL = "agrees", "disagrees", "cannot tell"


@dataclass(frozen=True)
class Term:
    """One number of a comparison: a field of a cell's record, with its sign.

    Attributes:
        sign: 1 or -1.
        cell: the cell.
        field: last_layer, ensemble (accuracy) or largest_node (multiply-accumulates).
    """

    sign: int
    cell: str
    field: str

    def of(self, record: Mapping[str, Any]) -> float:
        """The number in this record: accuracy in percent, or millions of multiply-accumulates."""
        if self.field == "largest_node":
            return record["macs"]["largest_node"] / 1e6
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


def _term(sign: int, method: str, depth: int, width: int = 1, field: str | None = None) -> Term:
    cell = resnet_name("cifar10", "resnet32", method, depth, width)
    return Term(sign, cell, field or accuracy_field(method))


def _gn_beats_dgl() -> Claim:
    def terms(sign: int, field: str | None = None) -> tuple[Term, Term]:
        return (_term(sign, "gn-dgl", 2, 2, field), _term(-sign, "dgl", 4, 1, field))

    return Claim(
        "At K*G = 4, GN-DGL (K = 2, G = 2) beats DGL (K = 4) at a smaller node",
        (
            Comparison("accuracy of GN-DGL (ensemble) above DGL (last layer)", terms(1)),
            Comparison("largest node of DGL above GN-DGL's", terms(-1, "largest_node"), "million MACs"),
        ),
    )


def _ablations() -> Claim:
    naive, diverse, both = (vgg_name("vgg6a", 6, extra) for extra in ("", "-diversity", "-diversity-stop-gradient"))

    def above(text: str, better: str, worse: str) -> Comparison:
        return Comparison(text, (Term(1, better, "last_layer"), Term(-1, worse, "last_layer")))

    return Claim(
        "The diversity penalty and stop-gradient communication each help (Table 3.2)",
        (
            above("with diversity above naive splitting", diverse, naive),
            above("with stop-gradient and diversity above diversity alone", both, diverse),
        ),
    )


def _wider_loses_less(least: int = 8, most: int = 32) -> Claim:
    """From K*G = 8 to 32, the range that all of G = 2, 4 and 8 have."""

    def drop(sign: int, width: int) -> tuple[Term, Term]:
        return (_term(sign, "gn-dgl", least // width, width), _term(-sign, "gn-dgl", most // width, width))

    return Claim(
        f"Wider groups lose less accuracy as K grows (from K*G = {least} to {most})",
        tuple(
            Comparison(f"the loss with G = {narrow} above that with G = {wide}", (*drop(1, narrow), *drop(-1, wide)))
            for narrow, wide in ((2, 4), (4, 8))
        ),
    )


def _infopro_beats_dgl() -> Claim:
    return Claim(
        "InfoPro beats DGL on CIFAR-10 at each K",
        tuple(
            Comparison(f"InfoPro above DGL at K = {k}", (_term(1, "infopro", k), _term(-1, "dgl", k))) for k in DEPTHS
        ),
    )


def _ensemble_never_hurts() -> Claim:
    keys = [(k, g) for g, depths in GN_DEPTHS.items() for k in depths if k > 1]
    return Claim(
        "The layerwise ensemble never hurts (Table 3.6)",
        tuple(
            Comparison(
                f"ensemble not below last layer at K = {k}, G = {g}",
                (_term(1, "gn-dgl", k, g, "ensemble"), _term(-1, "gn-dgl", k, g, "last_layer")),
                or_equal=True,
            )
            for k, g in keys
        ),
    )


CLAIMS = (_gn_beats_dgl(), _wider_loses_less(), _infopro_beats_dgl(), _ensemble_never_hurts(), _ablations())
"""In the order in which their cells are trained."""

FIRST = tuple(resnet_name("cifar10", "resnet32", *key) for key in (("e2e", 1, 1), ("dgl", 4, 1), ("gn-dgl", 2, 2)))
"""The cells that are trained before all others."""


def in_order(names: Sequence[str]) -> list[str]:
    """Cells in the order in which they are trained: the first, then those that claims need, then as given."""
    needed = [*FIRST, *(cell for claim in CLAIMS for cell in claim.cells)]
    return [cell for cell in dict.fromkeys((*needed, *names)) if cell in set(names)]
