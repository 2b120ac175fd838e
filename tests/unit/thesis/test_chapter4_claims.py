import pytest
import small_results

from locallearn.thesis.catalogue import LAYOUTS, cells_of
from locallearn.thesis.chapter4 import SMALL, name_of
from locallearn.thesis.chapter4_claims import claims
from locallearn.thesis.judge import AGREES, CANNOT_TELL, DISAGREES, Term, check


def probed(cell, accuracies, seed=0):
    """A record whose linear probes reach these accuracies [%], one a block."""
    points = [{"depth": i, "accuracy": value / 100} for i, value in enumerate(accuracies, start=1)]
    found = small_results.record(cell, seed, probe={"points": points})
    found["accuracy"]["linear_probe"] = accuracies[-1] / 100
    return found


def published():
    """What Chapter 4 prints; probes rise along a line."""
    found = {}
    for name in ("table-4.1", "table-4.2", "table-4.3", "table-4.4"):
        for value in (value for row in LAYOUTS[name].rows for value in row.values if value):
            last = float(value.published)
            found[value.cell] = [probed(value.cell, [last * (i + 1) / 16 for i in range(16)])]
    return found


def by_text(start):
    return next(claim for claim in claims() if start in claim.text)


def test_the_thesis_agrees_with_what_it_prints():
    found = published()
    for start in ("the loss modification lifts", "DGSSL loses", "increasing difficulty beats", "negative pairs too"):
        assert check(by_text(start), small_results.twice(found)).verdict == AGREES
    one = "(standard error 0.00, 2 seeds)"
    assert check(by_text("the loss modification lifts"), small_results.twice(found)).numbers == (
        f"DGSSL-LLM above DGSSL at K = 4: 91.96 − 91.03 = +0.93 points {one}",
        f"DGSSL-LLM above DGSSL at K = 8: 90.51 − 88.81 = +1.70 points {one}",
        f"DGSSL-LLM above DGSSL at K = 16: 89.80 − 87.44 = +2.36 points {one}",
    )
    assert (
        check(by_text("1c2f heads beat"), small_results.twice(found)).verdict == CANNOT_TELL
    )  # heights of bars are not printed


def test_one_value_against_a_claim_turns_it():
    found = published()
    worse = name_of("resnet50", "dgssl-llm", 8, ratio="0.97")
    found[worse] = [probed(worse, [88.0])]
    assert check(by_text("the loss modification lifts"), small_results.twice(found)).verdict == DISAGREES
    assert check(by_text("increasing difficulty beats"), small_results.twice(found)).verdict == DISAGREES


def test_probes_at_a_quarter_and_gains_over_the_last_half():
    record = probed("cifar10-resnet50-simclr", [10, 30, 40, 50, 60, 70, 75, 80])
    assert Term(1, "x", "early_probe").of(record) == pytest.approx(30)
    assert Term(1, "x", "late_gain").of(record) == pytest.approx(30)
    short = probed("cifar10-resnet50-simclr", [40])
    assert [Term(1, "x", field).of(short) for field in ("early_probe", "late_gain")] == [pytest.approx(40), 0]


def test_early_plateau():
    claim = by_text("VGG6a x 0.5: early modules")
    model = next(iter(SMALL))
    cells = {k: name_of(model, "dgssl", k) for k in (4, 5)} | {1: name_of(model, "simclr")}
    rising, flat = [30, 40, 50, 60, 70], [45, 60, 62, 63, 63]
    found = {cell: [probed(cell, rising if k == 1 else flat)] for k, cell in cells.items()}
    assert check(claim, small_results.twice(found)).verdict == AGREES
    found[cells[4]] = [probed(cells[4], rising)]
    assert check(claim, small_results.twice(found)).verdict == CANNOT_TELL  # no difference at all
    found[cells[4]] = [probed(cells[4], [20, 30, 40, 60, 90])]
    assert check(claim, small_results.twice(found)).verdict == DISAGREES


def test_every_cell_of_a_claim_is_in_a_table():
    known = {cell for name in LAYOUTS for cell in cells_of(name)}
    assert all(cell in known for claim in claims() for cell in claim.cells)
