import pytest
import small_results

from locallearn.thesis.catalogue import LAYOUTS, published_accuracies
from locallearn.thesis.claims import CLAIMS
from locallearn.thesis.judge import AGREES, CANNOT_TELL, DISAGREES, Claim, Comparison, Term, check

A, B = "cifar10-resnet32-e2e", "cifar10-resnet32-dgl-k4"
ABOVE = Claim("A is better than B", (Comparison("A above B", (Term(1, A, "last_layer"), Term(-1, B, "last_layer"))),))


def measured(**accuracies):
    """Records of the cells a and b: one accuracy a seed."""
    cells = {"a": A, "b": B}
    return {
        cells[key]: [small_results.record(cells[key], seed, value) for seed, value in enumerate(values)]
        for key, values in accuracies.items()
    }


def test_the_published_values_and_the_claims():
    """The thesis agrees with itself, but for one cell of Table 3.6 where the ensemble is below the last layer."""
    tables = [LAYOUTS[name] for name in ("table-3.1", "table-3.2", "table-3.4", "table-3.6")]
    found = {record["cell"]: [record] for record in small_results.published_records(tables)}
    verdicts = [check(claim, small_results.twice(found), published_accuracies()) for claim in CLAIMS[:5]]
    assert [verdict.verdict for verdict in verdicts] == [AGREES, AGREES, AGREES, DISAGREES, AGREES]
    one = "(standard error 0.00, 2 seeds)"
    assert verdicts[0].numbers == (
        "accuracy of GN-DGL (ensemble) above DGL (last layer): 89.68 − 88.62 = +1.06 points (standard error 0.00, "
        "2 seeds); in the thesis +1.06",
        "largest node of DGL above GN-DGL's: − 11.11 + 19.34 = +8.23 million MACs (standard error 0.00, 2 seeds)",
    )
    # losses from K*G = 8 to 32: 4.56 (G=2), 4.18 (G=4), 1.00 (G=8)
    assert "87.94 − 83.38 − 89.27 + 85.09 = +0.38 points" in verdicts[1].numbers[0]
    assert "89.27 − 85.09 − 88.86 + 87.86 = +3.18 points" in verdicts[1].numbers[1]
    assert [line.split(" = ")[2].split(" ")[0] for line in verdicts[2].numbers] == [
        "+0.88",
        "+2.63",
        "+2.97",
        "+3.15",
    ]
    assert [line for line in verdicts[3].numbers if "= −" in line] == [
        f"ensemble not below last layer at K = 4, G = 4: 88.11 − 88.25 = −0.14 points {one}; in the thesis −0.14"
    ]
    assert [line.split(" = ")[1][:5] for line in verdicts[4].numbers] == ["+0.80", "+1.30"]


def test_a_planted_change_of_one_value_turns_the_verdict():
    found = {record["cell"]: [record] for record in small_results.published_records([LAYOUTS["table-3.4"]])}
    cell = "cifar10-resnet32-gn-dgl-k2-g2"
    found[cell] = [small_results.record(cell, last_layer=95.0, ensemble=88.61, speedups=(6.304, 1.899))]
    assert check(CLAIMS[0], small_results.twice(found)).verdict == DISAGREES
    found[cell] = [small_results.record(cell, ensemble=89.68, speedups=(3.622, 1.899))]  # not a smaller node
    assert check(CLAIMS[0], small_results.twice(found)).verdict == CANNOT_TELL
    found[cell] = [small_results.record(cell, ensemble=89.68, speedups=(3.5, 1.899))]
    assert check(CLAIMS[0], small_results.twice(found)).verdict == DISAGREES


@pytest.mark.parametrize(
    ("accuracies", "verdict", "line"),
    [
        ({"a": [91.0], "b": [90.0]}, CANNOT_TELL, "91.00 − 90.00 = +1.00 points (1 seed, standard error not known)"),
        ({"a": [91.0]}, CANNOT_TELL, f"missing {B}"),
        # differences 1.0 and 2.0: mean 1.5, standard deviation 0.707, error 0.5
        (
            {"a": [91.0, 92.0], "b": [90.0, 90.0]},
            AGREES,
            "91.50 − 90.00 = +1.50 points (standard error 0.50, 2 seeds)",
        ),
        (
            {"a": [90.0, 90.0], "b": [91.0, 92.0]},
            DISAGREES,
            "90.00 − 91.50 = −1.50 points (standard error 0.50, 2 seeds)",
        ),
        # differences 1.0, 1.0 and 4.0: mean 2, standard deviation 1.73, error 1.00
        (
            {"a": [91.0, 91.0, 94.0], "b": [90.0, 90.0, 90.0]},
            CANNOT_TELL,
            "92.00 − 90.00 = +2.00 points (standard error 1.00, 3 seeds)",
        ),
        # the seeds themselves vary more than their differences
        (
            {"a": [91.0, 81.0], "b": [90.0, 80.0]},
            AGREES,
            "86.00 − 85.00 = +1.00 points (standard error 0.00, 2 seeds)",
        ),
        # only seeds that both have are compared
        (
            {"a": [91.0, 10.0], "b": [90.0]},
            CANNOT_TELL,
            "91.00 − 90.00 = +1.00 points (1 seed, standard error not known)",
        ),
    ],
)
def test_verdicts(accuracies, verdict, line):
    found = check(ABOVE, measured(**accuracies))
    assert found.verdict == verdict
    assert found.numbers == (f"A above B: {line}",)


def test_no_seed_in_common():
    records = measured(a=[91.0], b=[90.0, 89.0])
    records[B] = records[B][1:]
    assert check(ABOVE, records).numbers == ("A above B: its cells have no seed in common",)


def test_an_equal_ensemble_does_not_hurt():
    hurts = Comparison("", (Term(1, A, "ensemble"), Term(-1, A, "last_layer")), or_equal=True)
    assert check(Claim("", (hurts,)), measured(a=[91.0, 90.0])).verdict == AGREES
    assert check(ABOVE, measured(a=[91.0, 90.0], b=[91.0, 90.0])).verdict == CANNOT_TELL


def test_what_is_counted_needs_one_seed():
    smaller = Comparison("A larger than B", (Term(1, A, "largest_node"), Term(-1, B, "largest_node")), "million MACs")
    records = {
        A: [small_results.record(A, speedups=(1.0, 1.0))],
        B: [small_results.record(B, speedups=(3.622, 1.0))],
    }
    found = check(Claim("", (smaller,)), records)
    assert (found.verdict, found.numbers) == (
        AGREES,
        ("A larger than B: 70.06 − 19.34 = +50.72 million MACs (counted)",),
    )


def test_the_thesis_stands_beside_what_is_missing_too():
    found = check(ABOVE, {}, {(A, "last_layer"): 93.01, (B, "last_layer"): 88.62})
    assert found.numbers == (f"A above B: missing {A}, {B}; in the thesis +4.39",)
