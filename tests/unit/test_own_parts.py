"""Losses and heads of the package are known by name before the code of any is imported."""

import pytest

import locallearn as ll
from locallearn import registry
from locallearn.config.own_parts import OWN, check_part
from locallearn.errors import ConfigError
from locallearn.nn.heads import build_head


@pytest.mark.parametrize("kind", sorted(OWN))
def test_what_is_known_is_what_is_registered(kind):
    registered = registry.named(kind)
    own = {name for name in registered if registered.place(name) is None}
    assert own == set(OWN[kind])
    for name, options in OWN[kind].items():
        assert registered.options(name, None, "options") == (None if options is None else options())


def test_parts_of_the_users_own_are_known_too():
    ll.heads.add("of-mine", lambda given: build_head("0c1f", given.shape, given.outputs))
    check_part("objective.head", "of-mine")
    check_part("objective.head", "3c2f")


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("objective.head", "auglocl", "objective.head: 'auglocl' is not known. Did you mean auglocal?"),
        ("objective.head", "1c0f", "'1c0f' is not valid; expected auglocal, .*, or <n>c<m>f with n convolutions"),
        ("objective.loss", "predism", "objective.loss: 'predism' is not known. Did you mean predsim?"),
        (
            "objective.loss",
            "mine",
            "objective.loss: 'mine' is not valid; expected one of barlow-twins, cr",
        ),
    ],
)
def test_unknown_parts_are_one_line(kind, name, message):
    with pytest.raises(ConfigError, match=message):
        check_part(kind, name)
