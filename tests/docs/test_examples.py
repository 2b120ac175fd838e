"""Every script in examples/ runs as it stands and prints what its .txt file says."""

import contextlib
import io
import runpy
import sys
from typing import Any

import pytest

from doc_blocks import ROOT, check_output
from locallearn.losses.objectives import objectives
from locallearn.nn.backbones import backbones

SCRIPTS = sorted(path.with_suffix(".py") for path in (ROOT / "examples").glob("*.txt"))


@pytest.fixture(autouse=True)
def _registries():
    """Scripts register things; the next test must not see them."""
    registries: list[Any] = [backbones, objectives]
    before = [dict(registry._entries) for registry in registries]
    yield
    for registry, entries in zip(registries, before, strict=True):
        registry._entries.clear()
        registry._entries.update(entries)


def test_every_example_shows_its_output():
    assert SCRIPTS
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == {path.stem for path in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_example(script, tmp_path, monkeypatch):
    if "from transformers " in script.read_text():
        pytest.importorskip("transformers", reason="needs the package transformers")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(script)])
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        runpy.run_path(str(script), run_name="__main__")
    check_output(script.with_suffix(".txt").read_text(), printed.getvalue(), script.name)
    assert not list(tmp_path.iterdir())  # nothing is left behind
