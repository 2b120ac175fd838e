"""Places of nodes and what ranks do with a batch, against literal lists and over many shapes; no processes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallearn.errors import ConfigError
from locallearn.plan.mesh import Action, Mesh, RankPlace, place_nodes, split


def actions(mesh, groups, decoupled=False, costs=None):
    placement = place_nodes(mesh, groups, costs or [1.0] * len(groups), decoupled)
    return [[tuple(action) for action in placement.actions(rank)] for rank in range(mesh.size)]


def test_depth():
    assert actions(Mesh(2), (1, 1)) == [
        [("images", 0, ()), ("step", 0, ()), ("send", 0, (1,))],
        [("receive", 0, (0,)), ("step", 1, ())],
    ]


def test_several_modules_on_a_rank_by_cost():
    assert actions(Mesh(2), (1, 1, 1), costs=[5, 2, 2]) == [
        [("images", 0, ()), ("step", 0, ()), ("send", 0, (1,))],
        [("receive", 0, (0,)), ("step", 1, ()), ("step", 2, ())],
    ]
    assert actions(Mesh(2), (1, 1, 1), costs=[2, 2, 5])[0] == [
        ("images", 0, ()),
        ("step", 0, ()),
        ("step", 1, ()),
        ("send", 1, (1,)),
    ]


def test_one_rank_has_everything():
    assert actions(Mesh(), (2, 4), decoupled=True) == [
        [("images", 0, ()), ("step", 0, ()), ("step", 1, ()), ("step", 2, ())]
    ]


def test_width_with_the_decoupled_classifier():
    assert actions(Mesh(1, 2), (2,), decoupled=True) == [
        [("images", 0, ()), ("step", 0, ()), ("gather", 0, (0, 1)), ("step", 1, ())],
        [("images", 0, ()), ("step", 0, ()), ("gather", 0, (0, 1))],
    ]


def test_depth_and_width():
    assert actions(Mesh(2, 2), (2, 2, 2), decoupled=True) == [
        [("images", 0, ()), ("step", 0, ()), ("send", 0, (2, 3))],
        [("images", 0, ()), ("step", 0, ()), ("send", 0, (2, 3))],
        [
            ("receive", 0, (0, 1)),
            ("step", 1, ()),
            ("gather", 1, (2, 3)),
            ("step", 2, ()),
            ("gather", 2, (2, 3)),
            ("step", 3, ()),
        ],
        [("receive", 0, (0, 1)), ("step", 1, ()), ("gather", 1, (2, 3)), ("step", 2, ()), ("gather", 2, (2, 3))],
    ]


def test_replicas_send_to_their_own_kind():
    assert actions(Mesh(2, 1, 2), (1, 1)) == [
        [("images", 0, ()), ("step", 0, ()), ("send", 0, (2,))],
        [("images", 0, ()), ("step", 0, ()), ("send", 0, (3,))],
        [("receive", 0, (0,)), ("step", 1, ())],
        [("receive", 0, (1,)), ("step", 1, ())],
    ]


def test_ranks_count_through_data_then_width_then_depth():
    mesh = Mesh(2, 3, 4)
    assert mesh.rank(RankPlace(1, 2, 3)) == 23
    assert mesh.rank(RankPlace(1, 0, 0)) == 12
    assert [mesh.rank(mesh.place(rank)) for rank in range(24)] == list(range(24))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match=r"mesh.depth: 3 .* at most 2"):
        place_nodes(Mesh(3), (1, 1), [1, 1], False)
    with pytest.raises(ConfigError, match=r"mesh.width: 2 .* every module \(2/1\)"):
        place_nodes(Mesh(1, 2), (2, 1), [1, 1], False)


def test_split():
    assert split(7, 3) == (range(3), range(3, 5), range(5, 7))
    assert split(8, 2) == (range(4), range(4, 8))


@st.composite
def placements(draw):
    mesh = Mesh(draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    n = draw(st.integers(mesh.depth, 7))
    groups = [mesh.width * draw(st.integers(1, 3)) for _ in range(n)]
    costs = [draw(st.floats(0.1, 10)) for _ in range(n)]
    return place_nodes(mesh, groups, costs, draw(st.booleans()))


@given(placements())
def test_every_node_has_one_place_in_every_replica(placement):
    for replica in range(placement.mesh.data):
        for module, groups in enumerate(placement.groups):
            held = [g for rank in placement.holders(module, replica) for g in placement.held(module, rank)]
            assert held == list(range(groups))


@given(placements())
def test_the_batch_passes_through_every_rank_without_waiting_for_itself(placement):
    """Ranks run their lists against each other: sends meet receives, and gathers meet on all their ranks."""
    todo = {rank: list(placement.actions(rank)) for rank in range(placement.mesh.size)}
    sent: set[tuple[int, int, int]] = set()
    trained = []
    while any(todo.values()):
        moved = False
        for rank, items in todo.items():
            if items and _possible(items[0], rank, todo, sent):
                action = items[0]
                for each in action.ranks if action.kind == "gather" else (rank,):
                    todo[each].pop(0)
                sent |= {(action.module, rank, to) for to in action.ranks if action.kind == "send"}
                if action.kind == "receive":
                    sent -= {(action.module, source, rank) for source in action.ranks}
                if action.kind == "step":
                    trained.append((action.module, rank))
                moved = True
        assert moved
    assert not sent
    assert sorted(trained) == [(m, r) for m in range(len(placement.groups)) for r in todo if placement.held(m, r)]


def _possible(action: Action, rank: int, todo, sent) -> bool:
    if action.kind == "receive":
        return all((action.module, source, rank) in sent for source in action.ranks)
    if action.kind == "gather":
        return all(todo[each] and todo[each][0] == action for each in action.ranks)
    return True
