from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallearn.errors import ConfigError
from locallearn.plan import cuts

RESNET32 = ["stem", *(f"{s}.{b}" for s in (1, 2, 3) for b in range(5))]


def test_thesis_tables_as_they_are_printed():
    assert cuts.TABLES["resnet32"][4] == ("1.2", "2.1", "3.0")
    assert cuts.TABLES["resnet32"][16] == tuple(RESNET32[:-1])
    assert cuts.TABLES["resnet50"][16] == (
        "1.0", "1.1", "1.2", "2.0", "2.1", "2.2", "2.3", "3.0", "3.1", "3.2", "3.3", "3.4", "3.5", "4.0", "4.1",
    )  # fmt: skip
    assert cuts.TABLES["resnet110"][16] == (
        "1.1", "1.4", "1.7", "1.10", "1.13", "1.16", "2.1", "2.4", "2.7", "2.11", "2.15", "3.1", "3.5", "3.9", "3.13",
    )  # fmt: skip
    for table in cuts.TABLES.values():
        assert all(len(names) == depth - 1 for depth, names in table.items())


def test_auto_takes_the_table_and_balances_elsewhere():
    costs = [1.0] * 16
    assert cuts.choose("resnet32", RESNET32, costs, 2, ("auto",)) == (RESNET32.index("2.1"),)
    assert cuts.choose("resnet32", RESNET32, costs, 2, ("balanced",)) == (7,)
    assert cuts.choose("resnet32", RESNET32, costs, 5, ("auto",)) == cuts.balanced(costs, 5)
    assert cuts.choose("resnet32", RESNET32, costs, 1, ("auto",)) == ()


def test_layerwise_cuts_after_every_block():
    assert cuts.choose("resnet32", RESNET32, [1.0] * 16, 16, ("layerwise",)) == tuple(range(15))
    with pytest.raises(ConfigError, match="depth: 4 is not valid; expected 16, the number of blocks"):
        cuts.choose("resnet32", RESNET32, [1.0] * 16, 4, ("layerwise",))


def test_named_blocks():
    assert cuts.choose("resnet32", RESNET32, [1.0] * 16, 3, ("stem", "2.4")) == (0, 10)


@pytest.mark.parametrize(
    ("depth", "names", "message"),
    [
        (17, ("auto",), "depth: 17 is not valid; expected at most 16"),
        (2, ("9.9",), "cuts: '9.9' is not valid; expected blocks of resnet32"),
        (2, ("3.4",), "cuts: '3.4' is not valid"),
        (3, ("1.0",), "2 rising block names"),
        (3, ("2.0", "1.0"), "2 rising block names"),
    ],
)
def test_wrong_cuts_are_one_clear_line(depth, names, message):
    with pytest.raises(ConfigError, match=message):
        cuts.choose("resnet32", RESNET32, [1.0] * 16, depth, names)


def largest(costs, chosen):
    return max(sum(costs[i] for i in span) for span in cuts.modules(chosen, len(costs)))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.data())
def test_balanced_cuts_are_the_best_of_all(costs, data):
    depth = data.draw(st.integers(1, len(costs)))
    chosen = cuts.balanced(costs, depth)
    every = combinations(range(len(costs) - 1), depth - 1)
    assert largest(costs, chosen) == min(largest(costs, other) for other in every)


def test_modules_cover_every_block_once():
    assert cuts.modules((0, 2), 5) == (range(1), range(1, 3), range(3, 5))
