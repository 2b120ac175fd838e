import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from locallearn.runtime.replay import ReplayBuffer, Sample


def taken(buffer, n):
    samples = [buffer.take() for _ in range(n)]
    return [sample and (sample.item, sample.uses) for sample in samples]


def filled(size, max_reuse, items):
    buffer = ReplayBuffer(size, max_reuse)
    for item in items:
        buffer.put(item)
    return buffer


def test_least_used_first_then_newest():
    buffer = filled(3, 2, "abc")
    expected = [("c", 0), ("b", 0), ("a", 0), ("c", 1), ("b", 1), ("a", 1), ("c", 2), ("b", 2), ("a", 2), None]
    assert taken(buffer, 10) == expected


def test_what_comes_new_is_used_first():
    buffer = filled(3, 1, "ab")
    assert taken(buffer, 3) == [("b", 0), ("a", 0), ("b", 1)]
    buffer.put("c")
    assert taken(buffer, 4) == [("c", 0), ("c", 1), ("a", 1), None]


def test_without_reuse_each_item_is_used_once():
    assert taken(filled(4, 0, "ab"), 3) == [("b", 0), ("a", 0), None]


def test_the_oldest_gives_way_used_or_not():
    buffer = filled(2, 5, "ab")
    assert taken(buffer, 1) == [("b", 0)]
    buffer.put("c")  # a goes, unused
    assert buffer.dropped == 1
    buffer.put("d")  # b goes, used
    assert buffer.dropped == 1
    assert taken(buffer, 2) == [("d", 0), ("c", 0)]


def test_staleness_counts_what_came_after():
    buffer = filled(3, 1, "abc")
    assert [buffer.take().staleness for _ in range(3)] == [0, 1, 2]
    buffer.put("d")
    assert buffer.take() == Sample("d", 0, 0)
    assert buffer.take() == Sample("d", 1, 0)
    assert buffer.take() == Sample("c", 1, 1)


def test_fresh_means_never_used():
    buffer = filled(3, 3, "ab")
    assert buffer.take(fresh=True).item == "b"
    assert buffer.take(fresh=True).item == "a"
    assert buffer.take(fresh=True) is None
    assert buffer.take().item == "b"


def test_an_empty_one_gives_nothing():
    assert ReplayBuffer(1, 0).take() is None


class Against(RuleBasedStateMachine):
    """The buffer against a list of (arrival, uses) that says what the rules say."""

    @initialize(size=st.integers(1, 5), max_reuse=st.integers(0, 3))
    def start(self, size, max_reuse):
        self.buffer, self.size, self.max_reuse = ReplayBuffer(size, max_reuse), size, max_reuse
        self.arrived, self.uses, self.all_uses = 0, {}, {}

    @rule()
    def put(self):
        self.arrived += 1
        self.buffer.put(self.arrived)
        self.uses[self.arrived] = self.all_uses[self.arrived] = 0
        if len(self.uses) > self.size:
            del self.uses[min(self.uses)]

    @rule(fresh=st.booleans())
    def take(self, fresh):
        sample = self.buffer.take(fresh)
        usable = {n: uses for n, uses in self.uses.items() if not (fresh and uses)}
        if not usable:
            assert sample is None
            return
        least = min(usable.values())
        newest = max(n for n, uses in usable.items() if uses == least)
        assert sample == Sample(newest, least, self.arrived - newest)
        self.uses[newest] += 1
        self.all_uses[newest] += 1
        if self.uses[newest] == 1 + self.max_reuse:
            del self.uses[newest]

    @invariant()
    def bounds(self):
        if hasattr(self, "buffer"):
            assert len(self.buffer) == len(self.uses) <= self.size
            assert self.buffer.unused == sum(uses == 0 for uses in self.uses.values())
            gone = set(self.all_uses) - set(self.uses)
            assert self.buffer.dropped == sum(self.all_uses[n] == 0 for n in gone)
            assert all(uses <= 1 + self.max_reuse for uses in self.all_uses.values())


TestAgainstTheRules = Against.TestCase
TestAgainstTheRules.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


class Oldest(ReplayBuffer):
    """A planted fault: the oldest of those that were used least."""

    def take(self, fresh=False):
        for entry in self._entries:
            entry.number = -entry.number
        sample = super().take(fresh)
        for entry in self._entries:
            entry.number = -entry.number
        return sample and Sample(sample.item, sample.uses, 0)


class Unbounded(ReplayBuffer):
    """A planted fault: reuse without a bound."""

    def take(self, fresh=False):
        self.max_reuse = 10**9
        return super().take(fresh)


@pytest.mark.parametrize("broken", [Oldest, Unbounded])
def test_planted_faults_are_caught(broken, monkeypatch):
    monkeypatch.setitem(globals(), "ReplayBuffer", broken)
    with pytest.raises(AssertionError):
        test_least_used_first_then_newest()


@given(st.integers(1, 6), st.integers(0, 4), st.integers(0, 12))
def test_without_new_items_each_is_used_one_plus_max_reuse_times(size, max_reuse, n):
    buffer = filled(size, max_reuse, range(n))
    items = []
    while (sample := buffer.take()) is not None:
        items.append(sample.item)
    kept = range(max(0, n - size), n)
    assert items == [*reversed(kept)] * (1 + max_reuse)
    assert len(buffer) == 0
