"""Pages and examples register things; the next test must not see them."""

import contextlib

import pytest

import locallearn as ll


@pytest.fixture(autouse=True)
def _registries():
    with contextlib.ExitStack() as scopes:
        for registry in (ll.backbones, ll.heads, ll.objectives, ll.methods, ll.datasets):
            scopes.enter_context(registry.scope())
        yield
