import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_schedule import schedules

from locallearn.plan.clock import Links, Span, picture, simulate
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


def unit(work):
    """Everything takes a second, but heads nothing."""
    return 0.0 if work.kind == "H" else 1.0


def drawn(schedule):
    run = simulate(schedule, unit)
    return picture(run.spans, round(run.makespan)).splitlines()


def test_picture_of_gpipe():
    assert drawn(gpipe(3, 4)) == [
        "device 0 |FFFF....BBBB|",
        "device 1 |.FFFF..BBBB.|",
        "device 2 |..FFFFBBBB..|",
    ]


def test_picture_of_1f1b():
    assert drawn(one_forward_one_backward(3, 4)) == [
        "device 0 |FFF..BFB.B.B|",
        "device 1 |.FF.BFBFB.B.|",
        "device 2 |..FBFBFBFB..|",
    ]


def test_picture_of_local_learning():
    assert drawn(local([1, 1, 1], 4)) == [
        "device 0 |FBFBFBFB..|",
        "device 1 |.FBFBFBFB.|",
        "device 2 |..FBFBFBFB|",
    ]


def test_picture_of_groups_and_of_data_parallelism():
    assert drawn(local([2, 1], 2, 2, [True, False], [True, False])) == [
        "device 0 |FBFB.|",
        "device 1 |FBFB.|",
        "device 2 |.FBFB|",
    ]
    assert drawn(data_parallel(2, 2)) == ["device 0 |FBRFBR|", "device 1 |FBRFBR|"]


def test_picture_with_names_and_another_scale():
    spans = [Span(NodeWork(0, "F", 1, 0), 0.0, 1.0), Span(NodeWork(1, "B", 2, 0), 1.0, 4.0)]
    assert picture(spans, 8, ["a", "bc"]).splitlines() == ["a  |FF......|", "bc |..BBBBBB|"]


def test_a_column_shows_what_takes_most_of_it():
    spans = [Span(NodeWork(0, kind, 1, 0), a, b) for kind, a, b in (("F", 0, 1.4), ("B", 1.4, 2.4), ("F", 3.4, 4))]
    assert picture(spans, 4).splitlines() == ["device 0 |FB.F|"]
    assert picture(spans, 2).splitlines() == ["device 0 |F.|"]


def test_a_module_is_not_far_ahead_of_a_slow_next_one():
    slow = simulate(local([1, 1], 4, in_flight=2), lambda work: {"F": 1, "H": 0, "B": 0}[work.kind] * work.module**2)
    starts = [span.start for span in slow.spans if span.work[1:3] == ("F", 1)]
    assert starts == [0, 1, 5, 9]  # batch b waits until module 2 has done batch b - 2
    free = simulate(local([1, 1], 4, in_flight=4), lambda work: {"F": 1, "H": 0, "B": 0}[work.kind] * work.module**2)
    assert [span.start for span in free.spans if span.work[1:3] == ("F", 1)] == [0, 1, 2, 3]


def test_messages_share_a_link_and_arrive_after_the_latency():
    """Module 1 sends 10 bytes to each of 2 nodes, one after the other at 5 bytes/s; 3 s later they arrive."""
    run = simulate(local([1, 2], 1), unit, Links(lambda need: 10.0, bandwidth=5.0, latency=3.0))
    starts = {span.work.device: span.start for span in run.spans if span.work.kind == "F"}
    assert starts == {0: 0.0, 1: 1 + 2 + 3, 2: 1 + 4 + 3}
    assert run.wire_bytes == 20


def test_sending_does_not_stop_a_device():
    run = simulate(local([1, 1], 3), unit, Links(lambda need: 1.0, bandwidth=0.1))
    assert [span.start for span in run.spans if span.work[:2] == (0, "F")][:2] == [0.0, 2.0]


def test_waiting_work_is_caught():
    a, b = NodeWork(0, "F", 1, 0), NodeWork(1, "F", 2, 0)
    circle = Schedule(((a,), (b,)), {a: (Need(b, ""),), b: (Need(a, ""),)})
    with pytest.raises(ValueError, match="never ends"):
        simulate(circle, unit)


def critical_path(schedule, seconds):
    """Longest chain of work that must be done one after the other, without messages."""
    before = {work: [need.work for need in needs] for work, needs in schedule.needs.items()}
    for order in schedule.order:
        for first, then in pairwise(order):
            before[then].append(first)
    ends = {}

    def end(work):
        if work not in ends:
            ends[work] = seconds[work] + max(map(end, before[work]), default=0.0)
        return ends[work]

    return max(map(end, before))


def check(schedule, run, seconds):
    """No device does two things at once, nothing begins before what it needs, everything is done once."""
    spans = {span.work: span for span in run.spans}
    assert len(spans) == len(run.spans) == sum(map(len, schedule.order))
    for order in schedule.order:
        for first, then in pairwise(order):
            assert spans[first].end <= spans[then].start
    for work, needs in schedule.needs.items():
        assert spans[work].end - spans[work].start == pytest.approx(seconds[work], abs=1e-9)
        assert all(spans[need.work].end <= spans[work].start for need in needs)
    assert run.makespan >= critical_path(schedule, seconds) * (1 - 1e-12)


@given(drawn=schedules(), data=st.data(), linked=st.booleans())
def test_a_run_is_possible_and_as_fast_as_it_can_be(drawn, data, linked):
    schedule, work = drawn
    seconds = {item: data.draw(st.integers(0, 5)) for item in sorted(work)}
    links = Links(lambda need: 3.0, bandwidth=2.0, latency=0.5) if linked else None
    run = simulate(schedule, seconds.__getitem__, links)
    check(schedule, run, seconds)
    if not linked:
        assert run.makespan == critical_path(schedule, seconds)


def test_a_run_that_ignores_what_work_needs_is_caught():
    schedule = gpipe(2, 2)
    seconds = dict.fromkeys(schedule.needs, 1.0)
    careless = simulate(Schedule(schedule.order, dict.fromkeys(schedule.needs, ())), unit)
    with pytest.raises(AssertionError):
        check(schedule, careless, seconds)


@given(batches=st.integers(1, 5), forward=st.integers(0, 5), heads=st.integers(0, 5))
def test_one_local_node_takes_as_long_as_backpropagation_on_one_device(batches, forward, heads):
    times = {"F": forward, "H": heads, "B": 2 * (forward + heads)}
    whole = {"F": forward + heads, "B": 2 * (forward + heads)}
    node = simulate(local([1], batches), lambda work: times[work.kind])
    device = simulate(backpropagation(batches), lambda work: whole[work.kind])
    assert node.makespan == device.makespan == 3 * batches * (forward + heads)
    assert math.isclose(node.busy(0), device.busy(0))
