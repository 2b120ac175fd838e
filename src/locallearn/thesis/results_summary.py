"""What leads the page of results: the gap to end to end by protocol, the thesis's beside it, and the verdicts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from locallearn.report.compare import MISSING, Measured
from locallearn.thesis.results_grids import StudyData, numbers

FIGURE = "figure-3.5"
"""Its first panel has the networks of Table 3.4, with what the thesis prints of them."""

NOTE = (
    "How much accuracy local learning loses on the thesis's networks: measured here, with the thesis's own "
    "figures beside it. K is the number of modules in depth, G the number of groups in width. Accuracy depends on"
    " how long a network is trained, and every protocol here but `paper` trains for less time than the thesis "
    "did. So compare gaps and not accuracies: a gap is the accuracy of a network less that of the same network "
    "trained end to end, with the same protocol and seed. It is given as mean over seeds ± standard error (number"
    " of seeds) [points]."
)

VERDICTS = (
    "*Agrees* and *disagrees* need a mean difference of more than two standard errors, so at least two seeds; "
    "*cannot tell* is everything else, and a dash stands where nothing was measured. The differences behind each "
    "verdict, with their standard errors and the thesis's own, are below."
)


@dataclass(frozen=True)
class Gap:
    """Accuracy of a network less that of end to end, paired by seed.

    Attributes:
        mean: over seeds [points].
        error: standard error of the mean; NaN for one seed.
        seeds: their number.
    """

    mean: float
    error: float
    seeds: int

    def __str__(self) -> str:
        error = "" if math.isnan(self.error) else f" ± {self.error:.2f}"
        return f"{self.mean:+.2f}".replace("-", "−") + f"{error} ({self.seeds})"


def points_of(study: StudyData) -> Sequence[Mapping[str, Any]]:
    """The networks of Fig. 3.5's first panel with a published accuracy; none where the study has none of them."""
    found = [figure for figure in study["figures"] if figure["name"] == FIGURE]
    return [point for point in found[0]["panels"][0]["points"] if point["published"]] if found else []


def gap(point: Mapping[str, Any], end_to_end: Mapping[str, Any], measured: Measured) -> Gap | None:
    """A network's gap to end to end over the seeds that both have; None where there are none."""
    by_seed = [
        {record["seed"]: numbers([record], of["field"])[0] for record in measured.get(of["cell"], ())}
        for of in (point, end_to_end)
    ]
    differences = [by_seed[0][seed] - by_seed[1][seed] for seed in by_seed[0] if seed in by_seed[1]]
    if not differences:
        return None
    n = len(differences)
    error = statistics.stdev(differences) / math.sqrt(n) if n > 1 else math.nan
    return Gap(statistics.mean(differences), error, n)


FEWEST_RANKED = 3
"""Networks below which a rank correlation says nothing."""


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rank correlation; equal values share the mean of their ranks, and NaN is that of constants."""
    ranks = [_ranks(x), _ranks(y)]
    if any(len(set(values)) < 2 for values in ranks):
        return math.nan
    return statistics.correlation(*ranks)


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) + 1) / 2 for value in values]


def summary(studies: Sequence[StudyData], picture: str | None = None) -> str:
    """The lead of the page as Markdown, longest training first.

    Args:
        studies: what was measured, in the order of columns.
        picture: path of the figure, as seen from the page.
    """
    with_points = [study for study in studies if points_of(study)]
    parts = ["# Results", NOTE]
    if picture:
        text = "Accuracy [%] against the multiply-accumulates of the largest node: ours filled, the thesis's hollow"
        parts.append(f"![{text}]({picture})\n\n*{text}, in the form of its Fig. 3.5.*")
    if with_points:
        parts.append("## Gap to end to end\n\n" + "\n".join(_gaps(with_points)))
    claims = _claims(studies)
    if claims:
        parts.append("## The thesis's claims\n\n" + "\n".join(claims))
    return "\n\n".join(parts) + "\n"


def _gaps(studies: Sequence[StudyData]) -> list[str]:
    points = points_of(studies[0])
    end_to_end, *others = points
    lines = [
        "| ResNet-32 on CIFAR-10 | largest node [million MACs] | thesis | "
        + " | ".join(f"`{study['name']}`" for study in studies)
        + " |",
        "| --- |" + " ---: |" * (len(studies) + 2),
    ]
    for point in others:
        gaps = [gap(point, end_to_end, study["measured"]) for study in studies]
        if any(gaps):
            records = [r for study in studies for r in study["measured"].get(point["cell"], ())]
            published = float(point["published"]) - float(end_to_end["published"])
            texts = [MISSING if found is None else str(found) for found in gaps]
            node = f"{records[0]['macs']['largest_node'] / 1e6:.3f}"
            thesis = f"{published:+.2f}".replace("-", "−")
            lines.append(f"| {point['label']} | {node} | {thesis} | {' | '.join(texts)} |")
    accuracies = [_accuracies(points, study["measured"]) for study in studies]
    lines.append("| end to end itself [%] | | " + f"{end_to_end['published']} | " + _row(_end_to_end, accuracies))
    lines.append("| Spearman's rank correlation with the thesis (networks) | | | " + _row(_correlation, accuracies))
    return lines


def _accuracies(points: Sequence[Mapping[str, Any]], measured: Measured) -> list[tuple[str, float, float]]:
    """Method, accuracy and the thesis's accuracy of every network that is measured [%]."""
    means = [(point, numbers(measured.get(point["cell"], ()), point["field"])) for point in points]
    return [(point["method"], statistics.mean(found), float(point["published"])) for point, found in means if found]


def _row(text: Any, accuracies: Sequence[list[tuple[str, float, float]]]) -> str:
    return " | ".join(text(found) for found in accuracies) + " |"


def _end_to_end(found: Sequence[tuple[str, float, float]]) -> str:
    return next((f"{accuracy:.2f}" for method, accuracy, _ in found if method == "e2e"), MISSING)


def _correlation(found: Sequence[tuple[str, float, float]]) -> str:
    if len(found) < FEWEST_RANKED:
        return MISSING
    value = rank_correlation([ours for _, ours, _ in found], [theirs for *_, theirs in found])
    return MISSING if math.isnan(value) else f"{value:.2f} ({len(found)})"


def _claims(studies: Sequence[StudyData]) -> list[str]:
    verdicts = {study["name"]: {claim["claim"]: claim["verdict"] for claim in study["claims"]} for study in studies}
    touched = sorted(
        (study for study in studies if verdicts[study["name"]]), key=lambda study: not points_of(study)
    )  # Chapter 3 first
    names = dict.fromkeys(claim["claim"] for study in touched for claim in study["claims"])
    lines = [
        "| claim | " + " | ".join(f"`{study['name']}`" for study in touched) + " |",
        "| --- |" + " --- |" * len(touched),
    ]
    for name in names:
        lines.append(f"| {name} | " + " | ".join(verdicts[s["name"]].get(name, MISSING) for s in touched) + " |")
    lines.append("")
    lines.append(VERDICTS)
    return lines if names else []
