"""The thesis's claims in words, and the order in which their cells are trained."""

from __future__ import annotations

from collections.abc import Sequence

from locallearn.plan.cuts import GN_DEPTHS
from locallearn.thesis import chapter4_claims
from locallearn.thesis.judge import Claim, Comparison, Term
from locallearn.thesis.matrix import DEPTHS, resnet_name, vgg_name
from locallearn.thesis.published import accuracy_field


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


CLAIMS = (
    _gn_beats_dgl(),
    _wider_loses_less(),
    _infopro_beats_dgl(),
    _ensemble_never_hurts(),
    _ablations(),
    *chapter4_claims.claims(),
)
"""In the order in which their cells are trained."""

FIRST = tuple(resnet_name("cifar10", "resnet32", *key) for key in (("e2e", 1, 1), ("dgl", 4, 1), ("gn-dgl", 2, 2)))
"""The cells that are trained before all others."""


def in_order(names: Sequence[str]) -> list[str]:
    """Cells in the order in which they are trained: the first, then those that claims need, then as given."""
    needed = [*FIRST, *(cell for claim in CLAIMS for cell in claim.cells)]
    return [cell for cell in dict.fromkeys((*needed, *names)) if cell in set(names)]
