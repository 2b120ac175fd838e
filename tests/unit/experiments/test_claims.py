import pytest

import small_results
from locallearn.experiments.catalogue import LAYOUTS
from locallearn.experiments.claims import CLAIMS
from locallearn.experiments.judge import AGREES, CANNOT_TELL, DISAGREES, Claim, Comparison, Term, check

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
    verdicts = [check(claim, found) for claim in CLAIMS[:5]]
    assert [verdict.verdict for verdict in verdicts] == [AGREES, AGREES, AGREES, DISAGREES, AGREES]
    one = "(1 seed, spread not known)"
    assert verdicts[0].numbers == (
        f"accuracy of GN-DGL (ensemble) above DGL (last layer): 89.68 − 88.62 = +1.06 points {one}",
        f"largest node of DGL above GN-DGL's: − 11.11 + 19.34 = +8.23 million MACs {one}",
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
        f"ensemble not below last layer at K = 4, G = 4: 88.11 − 88.25 = −0.14 points {one}"
    ]
    assert [line.split(" = ")[1][:5] for line in verdicts[4].numbers] == ["+0.80", "+1.30"]


def test_a_planted_change_of_one_value_turns_the_verdict():
    found = {record["cell"]: [record] for record in small_results.published_records([LAYOUTS["table-3.4"]])}
    cell = "cifar10-resnet32-gn-dgl-k2-g2"
    found[cell] = [small_results.record(cell, last_layer=95.0, ensemble=88.61, speedups=(6.304, 1.899))]
    assert check(CLAIMS[0], found).verdict == DISAGREES
    found[cell] = [small_results.record(cell, ensemble=89.68, speedups=(3.622, 1.899))]  # not a smaller node
    assert check(CLAIMS[0], found).verdict == CANNOT_TELL
    found[cell] = [small_results.record(cell, ensemble=89.68, speedups=(3.5, 1.899))]
    assert check(CLAIMS[0], found).verdict == DISAGREES


@pytest.mark.parametrize(
    ("accuracies", "verdict", "line"),
    [
        ({"a": [91.0], "b": [90.0]}, AGREES, "91.00 − 90.00 = +1.00 points (1 seed, spread not known)"),
        ({"a": [90.0], "b": [91.0]}, DISAGREES, "90.00 − 91.00 = −1.00 points (1 seed, spread not known)"),
        ({"a": [91.0]}, CANNOT_TELL, f"missing {B}"),
        # differences 1.0 and 3.0: mean 2, standard deviation 1.41
        ({"a": [91.0, 92.0], "b": [90.0, 89.0]}, AGREES, "91.50 − 89.50 = +2.00 points (± 1.41, 2 seeds)"),
        # differences 2.0 and -1.0: mean 0.5, standard deviation 2.12
        ({"a": [92.0, 90.0], "b": [90.0, 91.0]}, CANNOT_TELL, "91.00 − 90.50 = +0.50 points (± 2.12, 2 seeds)"),
        # only seeds that both have are compared
        ({"a": [91.0, 10.0], "b": [90.0]}, AGREES, "91.00 − 90.00 = +1.00 points (1 seed, spread not known)"),
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
    assert check(Claim("", (hurts,)), measured(a=[91.0])).verdict == AGREES
    assert check(ABOVE, measured(a=[91.0], b=[91.0])).verdict == CANNOT_TELL
