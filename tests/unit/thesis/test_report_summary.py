import math

import pytest
import small_results

from locallearn.thesis.protocols import Study
from locallearn.thesis.results_summary import gap, points_of, rank_correlation, summary
from locallearn.thesis.studies import study_data, write_markdown

E2E, DGL, GN = (f"cifar10-resnet32-{name}" for name in ("e2e", "dgl-k4", "gn-dgl-k2-g2"))


def three(study):
    """End to end with three seeds, DGL with two of them, GN-DGL with one."""
    return study_data(
        study,
        ["table-3.4", "figure-3.5"],
        [
            *(small_results.record(E2E, seed, value, study=study) for seed, value in enumerate((70.0, 72.0, 74.0))),
            *(small_results.record(DGL, seed, value, study=study) for seed, value in enumerate((69.0, 69.0))),
            small_results.record(GN, 0, 60.0, 68.5, study=study, speedups=(6.304, 1.0)),
        ],
    )


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ([1, 2, 3], [10, 20, 15], 0.5),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([1, 1, 2], [1, 2, 3], math.sqrt(3) / 2),  # ranks 1.5, 1.5, 3
    ],
)
def test_rank_correlation(x, y, expected):
    assert rank_correlation(x, y) == pytest.approx(expected)
    assert math.isnan(rank_correlation(x, [5] * len(x)))


def test_gaps_are_paired_by_seed():
    study = three(Study("quick"))
    points = {point["label"]: point for point in points_of(study)}
    found = gap(points["DGL K=4"], points["e2e"], study["measured"])
    assert found is not None
    assert (found.mean, found.error, found.seeds) == (pytest.approx(-2.0), pytest.approx(1.0), 2)  # -1 and -3
    assert str(found) == "−2.00 ± 1.00 (2)"
    assert str(gap(points["GN-DGL G=2 K=2"], points["e2e"], study["measured"])) == "−1.50 (1)"  # its ensemble
    assert gap(points["InfoPro K=2"], points["e2e"], study["measured"]) is None


def test_the_page_leads_with_gaps_beside_the_thesis_and_with_verdicts():
    text = summary([three(Study("standard")), three(Study("quick"))], "results/figure.svg")
    assert text.startswith("# Results\n\nHow much accuracy local learning loses on the thesis's networks")
    assert "compare gaps and not accuracies" in text
    assert "](results/figure.svg)" in text
    assert "| DGL K=4 | 70.063 | −4.39 | −2.00 ± 1.00 (2) | −2.00 ± 1.00 (2) |" in text
    assert "| GN-DGL G=2 K=2 | 11.114 | −3.33 | −1.50 (1) | −1.50 (1) |" in text
    assert "InfoPro K=2" not in text  # measured nowhere
    assert "| end to end itself [%] | | 93.01 | 72.00 | 72.00 |" in text
    # 93.01, 88.62, 89.68 in the thesis; 72, 69, 68.5 here: ranks 3 1 2 against 3 2 1
    assert "(networks) | | | 0.50 (3) | 0.50 (3) |" in text
    assert "| InfoPro beats DGL on CIFAR-10 at each K | cannot tell | cannot tell |" in text


def test_the_order_of_two_networks_says_nothing():
    records = [small_results.record(cell, study=Study("standard")) for cell in (E2E, "cifar10-resnet32-dgl-k4")]
    text = summary([study_data(Study("standard"), ["table-3.4", "figure-3.5"], records)])
    assert "| DGL K=4 |" in text
    assert "(networks) | | | – |" in text


def test_the_longest_training_comes_first_and_gives_the_picture(tmp_path):
    page = write_markdown([three(Study("quick")), three(Study("standard"))], tmp_path / "page.md")
    assert page.read_text().index("## Protocol `standard`") < page.read_text().index("## Protocol `quick`")
    picture = (tmp_path / "page" / "figure-3.5.svg").read_text()
    assert "standard: accuracy" in picture
    assert all(text in picture for text in ("DGL K=4: 69.00 %", "DGL K=4: 88.62 % published"))


def test_a_study_that_has_only_begun_does_not_give_the_picture(tmp_path):
    begun = study_data(
        Study("standard"), ["table-3.4", "figure-3.5"], [small_results.record(E2E, study=Study("standard"))]
    )
    page = write_markdown([begun, three(Study("quick"))], tmp_path / "page.md")
    assert page.read_text().index("## Protocol `standard`") < page.read_text().index("## Protocol `quick`")
    assert "quick: accuracy" in (tmp_path / "page" / "figure-3.5.svg").read_text()


def test_other_studies_have_no_gaps():
    study = study_data(Study("quick"), ["digits"], [small_results.record("digits-resnet8-e2e")])
    assert points_of(study) == []
    assert "Gap to end to end" not in summary([study])
