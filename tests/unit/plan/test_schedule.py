import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallearn.plan.schedule import (
    Need,
    NodeWork,
    Schedule,
    backpropagation,
    data_parallel,
    gpipe,
    local,
    one_forward_one_backward,
)


def rows(schedule):
    """A schedule as one string a device: F0 B0 ..."""
    return [" ".join(f"{work.kind}{work.microbatch}" for work in items) for items in schedule.order]


def test_gpipe_of_3_stages_and_4_microbatches():
    assert rows(gpipe(3, 4)) == ["F0 F1 F2 F3 B3 B2 B1 B0"] * 3


def test_1f1b_of_3_stages_and_4_microbatches():
    assert rows(one_forward_one_backward(3, 4)) == [
        "F0 F1 F2 B0 F3 B1 B2 B3",
        "F0 F1 B0 F2 B1 F3 B2 B3",
        "F0 B0 F1 B1 F2 B2 F3 B3",
    ]


def test_1f1b_with_fewer_microbatches_than_stages():
    assert rows(one_forward_one_backward(4, 2)) == ["F0 F1 B0 B1"] * 3 + ["F0 B0 F1 B1"]


def test_local_learning_of_3_modules_and_4_batches():
    assert rows(local([1, 1, 1], 4)) == ["F0 H0 B0 F1 H1 B1 F2 H2 B2 F3 H3 B3"] * 3


def test_the_next_batch_begins_after_the_last_has_ended():
    assert rows(gpipe(2, 2, 2)) == ["F0 F1 B1 B0 F2 F3 B3 B2"] * 2
    assert rows(backpropagation(2)) == ["F0 B0 F1 B1"]
    assert rows(data_parallel(2, 2)) == ["F0 B0 R0 F1 B1 R1"] * 2


def test_what_local_work_waits_for():
    needs = local([2, 1], 3, 2, [True, False], [True, False]).needs
    forward = [NodeWork(0, "F", 1, 2), NodeWork(1, "F", 1, 2)]
    assert needs[NodeWork(2, "F", 2, 2)] == (Need(forward[0], "features"), Need(forward[1], "features"))
    assert needs[forward[0]] == (Need(NodeWork(2, "F", 2, 0), ""),)  # room in the queue
    assert needs[NodeWork(0, "F", 1, 1)] == ()
    assert needs[NodeWork(0, "H", 1, 2)] == (Need(forward[1], "shared"),)
    assert needs[NodeWork(0, "B", 1, 2)] == (Need(NodeWork(1, "H", 1, 2), "scores"),)
    assert needs[NodeWork(2, "H", 2, 2)] == needs[NodeWork(2, "B", 2, 2)] == ()


def test_what_pipelines_wait_for():
    for schedule in (gpipe(3, 4), one_forward_one_backward(3, 4)):
        assert schedule.needs[NodeWork(1, "F", 2, 3)] == (Need(NodeWork(0, "F", 1, 3), "features"),)
        assert schedule.needs[NodeWork(1, "B", 2, 3)] == (Need(NodeWork(2, "B", 3, 3), "gradient"),)
        assert schedule.needs[NodeWork(0, "F", 1, 3)] == schedule.needs[NodeWork(2, "B", 3, 3)] == ()


@st.composite
def schedules(draw):
    """A schedule and the work that it must hold."""
    batches = draw(st.integers(1, 4))
    kind = draw(st.sampled_from(["local", "gpipe", "1f1b", "data-parallel"]))
    if kind == "local":
        groups = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
        flags = [draw(st.lists(st.booleans(), min_size=len(groups), max_size=len(groups))) for _ in range(2)]
        plan = local(groups, batches, draw(st.integers(1, 3)), *flags)
        modules = [k for k, n in enumerate(groups, start=1) for _ in range(n)]
        return plan, {NodeWork(d, f, k, b) for d, k in enumerate(modules) for f in "FHB" for b in range(batches)}
    n, micro = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    if kind == "data-parallel":
        return data_parallel(n, batches), {
            NodeWork(d, f, 1, b) for d in range(n) for f in "FBR" for b in range(batches)
        }
    plan = (gpipe if kind == "gpipe" else one_forward_one_backward)(n, micro, batches)
    return plan, {NodeWork(d, f, d + 1, m) for d in range(n) for f in "FB" for m in range(micro * batches)}


def check_complete(schedule, expected):
    items = [work for order in schedule.order for work in order]
    assert sorted(items) == sorted(expected)
    assert set(schedule.needs) == expected
    assert {need.work for needs in schedule.needs.values() for need in needs} <= expected
    for device, order in enumerate(schedule.order):
        assert {work.device for work in order} == {device}
        for work in order:
            position = {item: i for i, item in enumerate(order)}
            if work.kind == "B":
                assert position[work._replace(kind="F")] < position[work]


@given(schedules())
def test_every_piece_of_work_is_there_once_and_forward_comes_before_backward(drawn):
    check_complete(*drawn)


@pytest.mark.parametrize("fault", ["lost", "twice", "backward first"])
def test_a_faulty_schedule_is_caught(fault):
    schedule = gpipe(2, 2)
    expected = set(schedule.needs)
    first = list(schedule.order[0])
    changed = {"lost": first[1:], "twice": [*first, first[0]], "backward first": first[::-1]}[fault]
    with pytest.raises(AssertionError):
        check_complete(Schedule((tuple(changed), *schedule.order[1:]), schedule.needs), expected)


@given(st.integers(1, 6), st.integers(1, 8))
def test_1f1b_holds_at_most_as_many_microbatches_as_stages_are_left(stages, micro):
    for k, order in enumerate(one_forward_one_backward(stages, micro).order):
        held = peak = 0
        for work in order:
            held += 1 if work.kind == "F" else -1
            peak = max(peak, held)
        assert peak == min(stages - k, micro)
