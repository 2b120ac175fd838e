import json
import subprocess

import pytest

from locallearn.training import provenance

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Installed:
    def __init__(self, noted):
        self.noted = noted

    def read_text(self, name):
        assert name == "direct_url.json"
        return self.noted


@pytest.mark.parametrize(
    ("noted", "found"),
    [
        (json.dumps({"url": "https://x/y.git", "vcs_info": {"vcs": "git", "commit_id": COMMIT}}), COMMIT),
        (json.dumps({"url": "file:///x", "dir_info": {"editable": True}}), None),
        (None, None),  # from a package index
        ("{", None),
        ("[]", None),
    ],
)
def test_what_pip_noted(noted, found, monkeypatch):
    monkeypatch.setattr(provenance.importlib.metadata, "distribution", lambda name: Installed(noted))
    assert provenance.installed_commit() == found


def test_a_checkout_tells_its_own_commit(monkeypatch):
    folder = str(provenance.Path(provenance.__file__).parent)
    head = subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode:
        pytest.skip("no git, or no checkout")
    assert (provenance.commit() or "").removesuffix("-dirty") == head.stdout.strip()


def test_outside_a_checkout_it_is_what_pip_noted(monkeypatch):
    def none(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", none)
    monkeypatch.setattr(provenance, "installed_commit", lambda: COMMIT)
    assert provenance.commit.__wrapped__() == COMMIT  # without the cache
