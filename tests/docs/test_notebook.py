"""The notebooks in examples/ run from top to bottom and print what is stored in them."""

import contextlib
import io
import json

import matplotlib
import pytest

from doc_blocks import ROOT, check_output

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def code_cells(notebook):
    """Source and stored output of each code cell, as a reader of the file sees them."""
    stored = json.loads(notebook.read_text())
    assert (stored["nbformat"], stored["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in stored["cells"]}) == len(stored["cells"])
    for cell in stored["cells"]:
        if cell["cell_type"] == "code":
            printed = ["".join(each["text"]) for each in cell["outputs"] if each["output_type"] == "stream"]
            yield "".join(cell["source"]), "".join(printed), cell


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_notebook(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    names = {"__name__": "__main__"}
    for number, (source, stored, cell) in enumerate(code_cells(notebook), start=1):
        assert cell["execution_count"] == number
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(source, f"{notebook.name}, cell {number}", "exec", dont_inherit=True), names)
        check_output(stored or "\n", printed.getvalue(), f"{notebook.name}, cell {number}")
    assert not list(tmp_path.iterdir())  # nothing is left behind


def test_there_is_a_notebook_and_it_is_named_on_the_page_of_examples():
    assert NOTEBOOKS
    page = (ROOT / "docs" / "examples.md").read_text()
    assert all(f"examples/{notebook.name}" in page for notebook in NOTEBOOKS)
