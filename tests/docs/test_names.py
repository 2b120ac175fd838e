"""Files and modules that the pages name exist."""

import importlib.util
import re

import pytest

from doc_blocks import ROOT

PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
_FILE = re.compile(r"`((?:tests|docs|benchmarks|examples|src|bench|thesis|nn|core|cli)/[\w./-]+)`")
_MODULE = re.compile(r"`locallearn((?:\.\w+)+)`")


def missing_files(text):
    """Files named in a text that are not there, in the project's folder or in the package."""
    places = (ROOT, ROOT / "src" / "locallearn")
    return [name for name in _FILE.findall(text) if not any((place / name).exists() for place in places)]


def missing_modules(text):
    """Modules named in a text, or names in modules, that are not there."""
    return [name for name in _MODULE.findall(text) if not _is_there("locallearn" + name)]


def _is_there(name):
    parent, _, last = name.rpartition(".")
    try:
        if importlib.util.find_spec(name):
            return True
    except ModuleNotFoundError:  # a class in a module: its methods are one further
        return _is_there(parent)
    return hasattr(importlib.import_module(parent), last)


@pytest.mark.parametrize("page", PAGES)
def test_files_and_modules_that_a_page_names_exist(page):
    text = (ROOT / page).read_text()
    assert (missing_files(text), missing_modules(text)) == ([], [])


def test_what_is_not_there_is_found():
    assert missing_files("see `docs/gain.md`, `docs/no-such.md`") == ["docs/no-such.md"]
    text = "`locallearn.costs.planner` has `locallearn.costs.planner.choose`; `locallearn.costs.planer`"
    assert missing_modules(text) == [".costs.planer"]
