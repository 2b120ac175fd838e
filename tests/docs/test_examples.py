"""Every script in examples/ runs as it stands and prints what its .txt file says."""

import contextlib
import io
import runpy
import sys

import pytest

from doc_blocks import ROOT, check_output

SCRIPTS = sorted(path.with_suffix(".py") for path in (ROOT / "examples").glob("*.txt"))


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
