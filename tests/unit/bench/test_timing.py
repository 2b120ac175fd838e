import pytest

from locallearn.bench.timing import Timing, interleaved, ratio


def test_things_take_turns_and_warm_up_is_not_counted():
    order, now = [], [0.0]

    def thing(name, seconds):
        def call():
            order.append(name)
            now[0] += seconds

        return call

    times = interleaved({"a": thing("a", 3.0), "b": thing("b", 1.0)}, 4, clock=lambda: now[0])
    assert order == ["a", "b"] * 6
    assert times["a"].seconds == (3.0,) * 4
    assert ratio(times["a"], times["b"]) == 3.0


def test_the_ratio_is_taken_within_turns():
    """A machine that slows down for both in one turn changes no ratio."""
    assert ratio(Timing((2.0, 20.0, 2.0)), Timing((1.0, 10.0, 1.0))) == 2.0


def test_median_and_spread():
    timing = Timing((1.0, 2.0, 3.0, 100.0, 2.0))
    assert timing.median == 2.0
    assert timing.spread > 1
    assert Timing((5.0,)).spread == pytest.approx(0.0)
