"""Pages and examples register things; the next test must not see them."""

import pytest

import locallearn as ll


@pytest.fixture(autouse=True)
def _registries(monkeypatch):
    for registry in (ll.backbones, ll.heads, ll.objectives, ll.methods, ll.datasets):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
