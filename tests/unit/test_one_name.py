"""One name, one thing: no two modules of the package are named alike, and no two public classes."""

import ast
from collections import Counter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "locallearn"
TWINS = {"Kernels"}
"""What stands for a class of a house that may be absent has its name."""


def repeated(names):
    return sorted(name for name, times in Counter(names).items() if times > 1)


def classes(source):
    return [node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name[0] != "_"]


def test_modules():
    paths = [path for path in SOURCE.rglob("*.py") if not path.stem.startswith("__")]
    assert len(paths) > 300
    assert repeated(path.stem for path in paths) == []


def test_classes():
    found = [name for path in SOURCE.rglob("*.py") for name in classes(path.read_text())]
    assert len(found) > 300
    assert set(repeated(found)) == TWINS


@pytest.mark.parametrize(
    ("source", "names"), [("class A: pass\nclass A: pass", ["A"]), ("class _A: pass\nclass _A: pass", [])]
)
def test_they_would_be_found(source, names):
    assert repeated(classes(source)) == names
