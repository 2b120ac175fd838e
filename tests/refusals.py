"""Calls that must be refused in one line."""

import pytest

import locallearn as ll


def refused(call, *named):
    """The message of the error that names all these."""
    with pytest.raises(ll.LocalLearnError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert not [name for name in named if name not in message], message
    return message
