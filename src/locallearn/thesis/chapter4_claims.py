"""The thesis's claims of Chapter 4, for ResNet-50 and for the networks of small machines."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from locallearn.thesis.chapter4 import BEST, DEPTHS, FIELD, SMALL, SMALL_RATIO, name_of
from locallearn.thesis.judge import Claim, Comparison, Term


def _probed(name: str) -> Term:
    return Term(1, name, FIELD)


def _above(text: str, better: Term, worse: Term) -> Comparison:
    return Comparison(text, (better, dataclasses.replace(worse, sign=-1)))


def _difficulty_helps(title: str, model: str, ratios: Mapping[int, str]) -> Claim:
    """Table 4.1."""
    return Claim(
        f"{title}: the loss modification lifts the last module at each K (Table 4.1)",
        tuple(
            _above(
                f"DGSSL-LLM above DGSSL at K = {k}",
                _probed(name_of(model, "dgssl-llm", k, ratio=ratio)),
                _probed(name_of(model, "dgssl", k)),
            )
            for k, ratio in ratios.items()
        ),
    )


def _depth_costs(title: str, model: str, depths: Sequence[int]) -> Claim:
    """Table 4.1, Figs. 4.4 and 4.5."""
    steps = [(1, name_of(model, "simclr")), *((k, name_of(model, "dgssl", k)) for k in depths)]
    return Claim(
        f"{title}: DGSSL loses accuracy as K grows",
        tuple(
            _above(f"K = {few} above K = {many}", _probed(better), _probed(worse))
            for (few, better), (many, worse) in itertools.pairwise(steps)
        ),
    )


def _early_plateau(title: str, model: str, depths: Sequence[int]) -> Claim:
    """Fig. 4.7."""
    comparisons = []
    end_to_end = name_of(model, "simclr")
    for k in depths:
        local = name_of(model, "dgssl", k)
        early = (Term(1, local, "early_probe"), Term(1, end_to_end, "early_probe"))
        late = (Term(1, end_to_end, "late_gain"), Term(1, local, "late_gain"))
        comparisons += [
            _above(f"probe at a quarter of the depth: DGSSL K = {k} above SimCLR", *early),
            _above(f"gain over the last half: SimCLR above DGSSL K = {k}", *late),
        ]
    return Claim(f"{title}: early modules are better under DGSSL, later ones plateau (Fig. 4.7)", tuple(comparisons))


def _ablations_of_difficulty() -> list[Claim]:
    """Tables 4.3 and 4.4."""

    def llm(k: int, extra: str = "") -> Term:
        return _probed(name_of("resnet50", "dgssl-llm", k, ratio=BEST[k], extra=extra))

    order = [_above(f"increasing above decreasing at K = {k}", llm(k), llm(k, "decreasing")) for k in BEST]
    positive = (
        _above("positive and negative pairs above positive pairs only", llm(16), llm(16, "positive")),
        _above("positive pairs only above DGSSL", llm(16, "positive"), _probed(name_of("resnet50", "dgssl", 16))),
    )
    return [
        Claim("ResNet-50: increasing difficulty beats decreasing difficulty (Table 4.3)", tuple(order)),
        Claim("ResNet-50: choosing negative pairs too helps (Table 4.4)", positive),
    ]


def _heads_help() -> Claim:
    """Fig. 4.4."""
    comparisons = [
        _above(
            f"1c2f above 0c2f at K = {k}",
            _probed(name_of("resnet50", "dgssl", k)),
            _probed(name_of("resnet50", "dgssl", k, "0c2f")),
        )
        for k in DEPTHS
    ]
    return Claim("ResNet-50: 1c2f heads beat 0c2f heads (Fig. 4.4)", tuple(comparisons))


def claims() -> list[Claim]:
    """All of them."""
    depths = tuple(BEST)
    found = [
        _difficulty_helps("ResNet-50", "resnet50", BEST),
        _depth_costs("ResNet-50", "resnet50", depths),
        _early_plateau("ResNet-50", "resnet50", depths),
        *_ablations_of_difficulty(),
        _heads_help(),
    ]
    for model, (title, few) in SMALL.items():
        found += [
            _difficulty_helps(title, model, dict.fromkeys(few, SMALL_RATIO)),
            _depth_costs(title, model, few),
            _early_plateau(title, model, few),
        ]
    return found
